/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SHA256_H
#define SHA256_H

#include "purgatory.h"

#define SHA256_BLOCK_SIZE	64

struct sha256_state {
	u32 state[8];
	u64 count;			/* bytes taken in so far */
	u32 buf[SHA256_BLOCK_SIZE / 4];	/* the incomplete block, as bytes */
};

void sha256_init(struct sha256_state *sctx);
void sha256_update(struct sha256_state *sctx, const u8 *data, u64 len);
void sha256_final(struct sha256_state *sctx, u8 out[SHA256_DIGEST_SIZE]);

#endif /* SHA256_H */
