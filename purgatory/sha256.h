/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SHA-256, as lib/crypto of the kernel has it. There it is that one, and this
 * file is another.
 */
#ifndef SHA256_H
#define SHA256_H

#include "types.h"

#define SHA256_DIGEST_SIZE	32
#define SHA256_BLOCK_SIZE	64

struct sha256_ctx {
	u32 state[8];
	u64 count;			/* bytes taken in so far */
	u32 buf[SHA256_BLOCK_SIZE / 4];	/* the incomplete block, as bytes */
};

void sha256_init(struct sha256_ctx *sctx);
void sha256_update(struct sha256_ctx *sctx, const u8 *data, u64 len);
void sha256_final(struct sha256_ctx *sctx, u8 out[SHA256_DIGEST_SIZE]);

/* Some kernels' sha256_update() takes an unsigned int, and a region may be larger. */
static inline void sha256_update_all(struct sha256_ctx *sctx, const u8 *data, u64 len)
{
	sha256_update(sctx, data, len);
}

/* For sha2.c, which takes whole blocks past sha256_update(). */
static inline u32 *sha256_words(struct sha256_ctx *sctx) { return sctx->state; }
static inline u64 *sha256_count(struct sha256_ctx *sctx) { return &sctx->count; }

#endif /* SHA256_H */
