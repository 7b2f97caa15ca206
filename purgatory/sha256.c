// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * SHA-256 (FIPS 180-4) for a CPU whose MMU is off.
 *
 * All memory is Device memory then, so each access costs a trip to DRAM and has
 * to be aligned. Eight working variables and the message schedule as a ring of
 * 16 words fit into the 31 general registers, provided that every index into
 * the ring is a constant: 16 rounds are written out, and done four times.
 */
#include "sha256.h"
#include "sha256-k.h"

static inline u32 ror32(u32 word, u32 shift)
{
	return (word >> shift) | (word << (32 - shift));
}

/* The functions of FIPS 180-4 section 4.1.2, by the names used there. */
#define Ch(x, y, z)	((z) ^ ((x) & ((y) ^ (z))))
#define SIGMA0(x)	(ror32(x, 2) ^ ror32(x, 13) ^ ror32(x, 22))
#define SIGMA1(x)	(ror32(x, 6) ^ ror32(x, 11) ^ ror32(x, 25))
#define sigma0(x)	(ror32(x, 7) ^ ror32(x, 18) ^ ((x) >> 3))
#define sigma1(x)	(ror32(x, 17) ^ ror32(x, 19) ^ ((x) >> 10))

/*
 * Instead of moving eight variables up by one, rename them from call to call.
 * Maj(a, b, c) is ((a ^ b) & (b ^ c)) ^ b, and this round's a ^ b is the next
 * one's b ^ c.
 */
#define ROUND(a, b, c, d, e, f, g, h, i) do {				\
	u32 a_b = a ^ b;						\
									\
	h += SIGMA1(e) + Ch(e, f, g) + k[i] + w[i];			\
	d += h;								\
	h += SIGMA0(a) + ((a_b & b_c) ^ b);				\
	b_c = a_b;							\
} while (0)

#define ROUNDS8(i) do {							\
	ROUND(a, b, c, d, e, f, g, h, (i) + 0);				\
	ROUND(h, a, b, c, d, e, f, g, (i) + 1);				\
	ROUND(g, h, a, b, c, d, e, f, (i) + 2);				\
	ROUND(f, g, h, a, b, c, d, e, (i) + 3);				\
	ROUND(e, f, g, h, a, b, c, d, (i) + 4);				\
	ROUND(d, e, f, g, h, a, b, c, (i) + 5);				\
	ROUND(c, d, e, f, g, h, a, b, (i) + 6);				\
	ROUND(b, c, d, e, f, g, h, a, (i) + 7);				\
} while (0)

/* Replace word t of the schedule, in its place, by word t + 16. */
#define EXPAND(t)							\
	(w[t] += sigma0(w[((t) + 1) % 16]) + w[((t) + 9) % 16] +	\
		 sigma1(w[((t) + 14) % 16]))

#define EXPAND4(t) do {							\
	EXPAND((t) + 0);						\
	EXPAND((t) + 1);						\
	EXPAND((t) + 2);						\
	EXPAND((t) + 3);						\
} while (0)

/* One big-endian word; the bytewise way is for regions at odd addresses. */
static inline u32 load_word(const u8 *p, u32 aligned)
{
#ifdef __AARCH64EB__
	if (aligned)
		return *(const u32 *)p;
#else
	if (aligned)
		return __builtin_bswap32(*(const u32 *)p);
#endif
	return (u32)p[0] << 24 | (u32)p[1] << 16 | (u32)p[2] << 8 | p[3];
}

static void sha256_block(u32 *state, const u8 *block)
{
	u32 a = state[0], b = state[1], c = state[2], d = state[3];
	u32 e = state[4], f = state[5], g = state[6], h = state[7];
	u32 aligned = !((unsigned long)block % 4);
	const u32 *k = sha256_k;
	u32 b_c = b ^ c;
	u32 w[16];
	int i;

	for (i = 0; i < 16; i++)
		w[i] = load_word(block + 4 * i, aligned);

	for (;;) {
		ROUNDS8(0);
		ROUNDS8(8);
		k += 16;
		if (k == sha256_k + 64)
			break;
		EXPAND4(0);
		EXPAND4(4);
		EXPAND4(8);
		EXPAND4(12);
	}

	state[0] += a;
	state[1] += b;
	state[2] += c;
	state[3] += d;
	state[4] += e;
	state[5] += f;
	state[6] += g;
	state[7] += h;
}

void sha256_init(struct sha256_ctx *sctx)
{
	sctx->state[0] = 0x6a09e667;
	sctx->state[1] = 0xbb67ae85;
	sctx->state[2] = 0x3c6ef372;
	sctx->state[3] = 0xa54ff53a;
	sctx->state[4] = 0x510e527f;
	sctx->state[5] = 0x9b05688c;
	sctx->state[6] = 0x1f83d9ab;
	sctx->state[7] = 0x5be0cd19;
	sctx->count = 0;
}

static noinline void sha256_blocks(struct sha256_ctx *sctx, const u8 *data, u64 blocks)
{
	for (; blocks; blocks--, data += SHA256_BLOCK_SIZE)
		sha256_block(sctx->state, data);
}

/* Unlike the kernel's, len is 64 bits wide: a region may be larger than 4 GiB. */
void sha256_update(struct sha256_ctx *sctx, const u8 *data, u64 len)
{
	u8 *buf = (u8 *)sctx->buf;
	u32 used = sctx->count % SHA256_BLOCK_SIZE;

	sctx->count += len;
	while (len) {
		if (!used && len >= SHA256_BLOCK_SIZE) {
			sha256_blocks(sctx, data, len / SHA256_BLOCK_SIZE);
			data += len & -SHA256_BLOCK_SIZE;
			len &= SHA256_BLOCK_SIZE - 1;
			continue;
		}
		buf[used++] = *data++;
		len--;
		if (used == SHA256_BLOCK_SIZE) {
			sha256_blocks(sctx, buf, 1);
			used = 0;
		}
	}
}

__cold				/* once a digest: small rather than fast */
void sha256_final(struct sha256_ctx *sctx, u8 out[SHA256_DIGEST_SIZE])
{
	static const u8 padding[2] = { 0x80, 0 };
	u64 bits = sctx->count * 8;
	u8 length[8];
	int i;

	for (i = 0; i < 8; i++)
		length[i] = bits >> (56 - 8 * i);

	sha256_update(sctx, &padding[0], 1);
	while (sctx->count % SHA256_BLOCK_SIZE != SHA256_BLOCK_SIZE - sizeof(length))
		sha256_update(sctx, &padding[1], 1);
	sha256_update(sctx, length, sizeof(length));

	for (i = 0; i < SHA256_DIGEST_SIZE; i++)
		out[i] = sctx->state[i / 4] >> (24 - 8 * (i % 4));
}
