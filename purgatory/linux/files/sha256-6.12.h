/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SHA256_H
#define SHA256_H

#include <linux/minmax.h>
#include <linux/sizes.h>
#include <crypto/sha2.h>

#define sha256_ctx	sha256_state

/* sha256_update() takes an unsigned int, and a region may be larger. */
static inline void sha256_update_all(struct sha256_ctx *sctx, const u8 *data, u64 len)
{
	u64 some;

	for (; len; data += some, len -= some) {
		some = min_t(u64, len, SZ_1G);
		sha256_update(sctx, data, some);
	}
}

/* For sha2.c, which takes whole blocks past sha256_update(). */
static inline u32 *sha256_words(struct sha256_ctx *sctx) { return sctx->state; }
static inline u64 *sha256_count(struct sha256_ctx *sctx) { return &sctx->count; }

#endif /* SHA256_H */
