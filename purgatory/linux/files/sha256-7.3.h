/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SHA256_H
#define SHA256_H

#include <crypto/sha2.h>

static inline void sha256_update_all(struct sha256_ctx *sctx, const u8 *data, u64 len)
{
	sha256_update(sctx, data, len);
}

/* For sha2.c, which takes whole blocks past sha256_update(). */
static inline u32 *sha256_words(struct sha256_ctx *sctx) { return sctx->ctx.state.h; }
static inline u64 *sha256_count(struct sha256_ctx *sctx) { return &sctx->ctx.bytecount; }

#endif /* SHA256_H */
