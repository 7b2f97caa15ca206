/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SHA256_H
#define SHA256_H

#include "purgatory.h"

#define SHA256_BLOCK_SIZE	64

struct sha256_state {
	u32 state[8];
	u64 count;			/* bytes taken in so far */
	u32 buf[SHA256_BLOCK_SIZE / 4];	/* the incomplete block, as bytes */
#ifdef SHA256_CE
	u32 crypto;			/* use the instructions; only between begin and end below */
#endif
};

void sha256_init(struct sha256_state *sctx);
void sha256_update(struct sha256_state *sctx, const u8 *data, u64 len);
void sha256_final(struct sha256_state *sctx, u8 out[SHA256_DIGEST_SIZE]);

#ifdef SHA256_CE
/* sha256-ce.S */
#define FPSIMD_SAVE_SIZE	416
u64 fpsimd_begin(void *save, u64 sme);
void fpsimd_end(const void *save, u64 control);
void sha256_ce_blocks(u32 state[8], const u8 *data, u64 blocks);
#endif

#endif /* SHA256_H */
