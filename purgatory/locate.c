// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PURGATORY_LOCATE: where is the damage? Only after a mismatch, so that a good
 * image is hashed once and no more.
 */
#include "locate.h"
#include "options.h"

__kexec_purgatory __aligned(8)
u8 purgatory_region_digests[KEXEC_SEGMENT_MAX][SHA256_DIGEST_SIZE];
__kexec_purgatory u64 purgatory_page_digests;

__purgatory_data __aligned(8)
u8 purgatory_found[KEXEC_SEGMENT_MAX][SHA256_DIGEST_SIZE];

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
	return (const u8 *)(unsigned long)purgatory_page_digests + index * SHA256_DIGEST_SIZE;
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

u64 piece_len(int region, u64 offset, int by_page)
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
	if (!digest_same(purgatory_found[region], expected))
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

void locate(u32 damaged)
{
	int i;

	if (!damaged)
		return;
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
