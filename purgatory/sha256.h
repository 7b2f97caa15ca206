/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SHA256_H
#define SHA256_H

#include "types.h"

#define SHA256_DIGEST_SIZE	32
#define SHA256_BLOCK_SIZE	64

struct sha256_state {
	u32 state[8];
	u64 count;			/* bytes taken in so far */
	u32 buf[SHA256_BLOCK_SIZE / 4];	/* the incomplete block, as bytes */
};

void sha256_init(struct sha256_state *sctx);
void sha256_update(struct sha256_state *sctx, const u8 *data, u64 len);
void sha256_final(struct sha256_state *sctx, u8 out[SHA256_DIGEST_SIZE]);

#ifdef PURGATORY_SHA2
/* sha2.c, sha256-ce.S: by the instructions, while this is 1 */
extern u32 sha2_in_use;
void sha256_ce_blocks(u32 state[8], const u8 *data, u64 blocks);
#endif

#endif /* SHA256_H */
