// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Where is the damage, and can it be mended? Only after a mismatch, so that a
 * good image is hashed once and no more.
 */
#include "locate.h"

__purgatory_data __attribute__((aligned(8)))
u8 purgatory_found[KEXEC_SEGMENT_MAX][SHA256_DIGEST_SIZE];

static u8 fpsimd_save[FPSIMD_SAVE_SIZE] __attribute__((section(".data"), aligned(16)));
static u64 fpsimd_control __purgatory_data;
static u32 use_crypto __purgatory_data;

void crypto_begin(void)
{
	u64 features, sve, sme;

	__asm__ volatile("mrs %0, id_aa64isar0_el1" : "=r" (features));
	use_crypto = 0;
	if (purgatory_no_crypto || !(features >> 12 & 0xf))
		return;
	__asm__ volatile("mrs %0, id_aa64pfr0_el1" : "=r" (sve));
	__asm__ volatile("mrs %0, id_aa64pfr1_el1" : "=r" (sme));
	sve = sve >> 32 & 0xf;
	sme = sme >> 24 & 0xf;
	/* Only the low 128 bits of somebody's vectors would come back, and nothing of a streaming mode. */
	if (purgatory_verdict.flags & PURGATORY_EARLY && (sve || sme))
		return;
	fpsimd_control = fpsimd_begin(fpsimd_save, sme);
	use_crypto = 1;
	purgatory_verdict.flags |= PURGATORY_CRYPTO;
}

void crypto_end(void)
{
	if (!use_crypto)
		return;
	fpsimd_end(fpsimd_save, fpsimd_control);
	use_crypto = 0;
}

void digest_begin(struct sha256_state *sctx)
{
	sha256_init(sctx);
	sctx->crypto = use_crypto;
}

void digest_of(u64 start, u64 len, u8 digest[SHA256_DIGEST_SIZE])
{
	struct sha256_state sctx;

	digest_begin(&sctx);
	sha256_update(&sctx, (const u8 *)start, len);
	sha256_final(&sctx, digest);
}

/* Digests lie at multiples of 8 bytes. */
static int same(const u8 *a, const u8 *b)
{
	const u64 *x = (const u64 *)a, *y = (const u64 *)b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]));
}

int digest_known(const u8 digest[SHA256_DIGEST_SIZE])
{
	const u64 *words = (const u64 *)digest;

	return !!(words[0] | words[1] | words[2] | words[3]);
}

int digest_matches(u64 start, u64 len, const u8 expected[SHA256_DIGEST_SIZE])
{
	u8 found[SHA256_DIGEST_SIZE] __attribute__((aligned(8)));

	digest_of(start, len, found);
	return same(found, expected);
}

int is_table(int region)
{
	return purgatory_page_digests && purgatory_sha_regions[region].start == purgatory_page_digests;
}

static u64 pages(u64 len)
{
	return (len + PURGATORY_PAGE_SIZE - 1) / PURGATORY_PAGE_SIZE;
}

const u8 *page_digest(int region, u64 offset)
{
	u64 index = offset / PURGATORY_PAGE_SIZE;
	int i;

	for (i = 0; i < region; i++)
		index += pages(purgatory_sha_regions[i].len);
	return (const u8 *)purgatory_page_digests + index * SHA256_DIGEST_SIZE;
}

/* The table is the region behind those that it describes, and has a digest in our own segment. */
int page_digests_usable(void)
{
	int i;

	for (i = 0; i < KEXEC_SEGMENT_MAX; i++)
		if (is_table(i))
			return digest_known(purgatory_region_digests[i]) &&
			       !(purgatory_verdict.damaged >> i & 1);
	return 0;
}

/* Bytes of the piece at `offset` that has a digest of its own: a page with a table, else the region. */
static u64 piece_len(int region, u64 offset, int by_page)
{
	u64 left = purgatory_sha_regions[region].len - offset;

	return by_page && left > PURGATORY_PAGE_SIZE ? PURGATORY_PAGE_SIZE : left;
}

static void add_damage(int region, u64 start, u64 len)
{
	struct purgatory_verdict *verdict = &purgatory_verdict;
	struct kexec_sha_region *next = &verdict->damage[verdict->ranges];

	verdict->damaged |= 1U << region;
	if (verdict->ranges && next[-1].start + next[-1].len == start &&
	    start != purgatory_sha_regions[region].start) {
		next[-1].len += len;
	} else if (verdict->ranges < PURGATORY_DAMAGE_MAX) {
		next->start = start;
		next->len = len;
		verdict->ranges++;
	}
}

static void locate_region(int region)
{
	const u8 *expected = purgatory_region_digests[region];
	u64 start = purgatory_sha_regions[region].start;
	u64 len = purgatory_sha_regions[region].len;

	if (!len || !digest_known(expected))
		return;
	digest_of(start, len, purgatory_found[region]);
	if (!same(purgatory_found[region], expected))
		add_damage(region, start, len);
}

static void locate_pages(int region)
{
	u64 start = purgatory_sha_regions[region].start;
	u64 len = purgatory_sha_regions[region].len;
	u64 offset, piece;

	for (offset = 0; offset < len; offset += piece) {
		piece = piece_len(region, offset, 1);
		if (digest_matches(start + offset, piece, page_digest(region, offset)))
			continue;
		add_damage(region, start + offset, piece);
		purgatory_verdict.damaged_pages++;
	}
}

void locate(void)
{
	int i;

	for (i = 0; i < KEXEC_SEGMENT_MAX; i++)
		if (is_table(i))
			locate_region(i);
	for (i = 0; i < KEXEC_SEGMENT_MAX; i++) {
		if (is_table(i))
			continue;
		if (page_digests_usable())
			locate_pages(i);
		else
			locate_region(i);
	}
}

int repair(void)
{
	int by_page = page_digests_usable();
	u64 copy = purgatory_copy;
	int i;

	for (i = 0; i < KEXEC_SEGMENT_MAX; i++) {
		u64 start = purgatory_sha_regions[i].start;
		u64 len = is_table(i) ? 0 : purgatory_sha_regions[i].len;
		u64 offset, piece, at;

		for (offset = 0; offset < len; offset += piece, copy += piece) {
			const u8 *expected = by_page ? page_digest(i, offset) : purgatory_region_digests[i];

			u64 step;

			piece = piece_len(i, offset, by_page);
			step = (start | copy | piece) % 8 ? 1 : 8;
			if (digest_matches(start + offset, piece, expected))
				continue;
			if (!digest_matches(copy, piece, expected))
				return 0;
			/* A kernel's segments are whole pages; others may have an odd end. */
			for (at = 0; at < piece; at += step)
				if (step == 8)
					*(volatile u64 *)(start + offset + at) = *(const u64 *)(copy + at);
				else
					*(volatile u8 *)(start + offset + at) = *(const u8 *)(copy + at);
		}
	}
	return 1;
}
