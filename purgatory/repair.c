// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PURGATORY_REPAIR: what is damaged is written anew from a second copy, if its
 * pages there are what was loaded.
 */
#include "locate.h"
#include "options.h"

__kexec_purgatory u64 purgatory_copy;

/* A kernel's segments are whole pages; others may have an odd end. */
static void copy_piece(u64 to, u64 from, u64 len)
{
	u64 step = (to | from | len) % 8 ? 1 : 8;
	u64 at;

	for (at = 0; at < len; at += step) {
		if (step == 8)
			*(u64 *)(unsigned long)(to + at) = *(u64 *)(unsigned long)(from + at);
		else
			*(u8 *)(unsigned long)(to + at) = *(u8 *)(unsigned long)(from + at);
		barrier();		/* a loop, and no call of memcpy() */
	}
}

unsigned long copy_len(void)
{
	unsigned long len = 0;
	int i;

	if (!purgatory_copy)
		return 0;
	for (i = 0; i < KEXEC_SEGMENT_MAX; i++)
		if (!is_table(i))
			len += purgatory_sha_regions[i].len;
	return len;
}

/* 0 if not all of it could be mended. */
static int copy_damaged(void)
{
	int by_page = page_digests_usable();
	u64 copy = purgatory_copy;
	int i;

	for (i = 0; i < KEXEC_SEGMENT_MAX; i++) {
		u64 start = purgatory_sha_regions[i].start;
		u64 len = is_table(i) ? 0 : purgatory_sha_regions[i].len;
		u64 offset, piece;

		for (offset = 0; offset < len; offset += piece, copy += piece) {
			const u8 *expected = by_page ? page_digest(i, offset) :
						       purgatory_region_digests[i];

			piece = piece_len(i, offset, by_page);
			if (digest_matches(start + offset, piece, expected))
				continue;
			if (!digest_matches(copy, piece, expected))
				return 0;
			copy_piece(start + offset, copy, piece);
		}
	}
	return 1;
}

/* Regions can be written to meanwhile. What was found at first stays in the record. */
void repair(u32 damaged)
{
	u8 found[SHA256_DIGEST_SIZE] __aligned(8);
	int mended;

	if (!damaged || is_early() || purgatory_policy != PURGATORY_POLICY_REPAIR ||
	    !purgatory_copy)
		return;
	caches_prepare_writable();
	caches_on();
	mended = copy_damaged();
	if (mended) {
		purgatory_verdict.bytes_hashed = 0;
		mended = regions_match(found);
	}
	caches_off();
	clean_regions();
	if (mended)
		record_flag(PURGATORY_FLAG_REPAIRED);
}
