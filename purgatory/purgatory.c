// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The purgatory runs between a crashed kernel and its capture kernel. It asks
 * one question: are the loaded segments still the bytes that were loaded? Read
 * purgatory() first.
 *
 * Options: what is called here and is neither here nor in entry.S and sha256.c
 * belongs to one, and is nothing where that is not built in: see options.h.
 */
#include "options.h"

__kexec_purgatory struct kexec_sha_region purgatory_sha_regions[KEXEC_SEGMENT_MAX];
__kexec_purgatory __aligned(8) u8 purgatory_sha256_digest[SHA256_DIGEST_SIZE];
__kexec_purgatory u64 purgatory_kernel_entry;
__kexec_purgatory u64 purgatory_dtb;
#ifndef PURGATORY_NO_GCS
__kexec_purgatory u64 purgatory_gcs;
#endif

/* Behind all symbols that a loader sets: the linker's script sees to it. */
__section(".kexec-purgatory.last") __aligned(8)
u8 purgatory_self_digest[SHA256_DIGEST_SIZE];

/* The architecture's limit. */
#define PA_BITS			52

/* Digests lie at multiples of 8 bytes. */
int digest_same(const u8 *a, const u8 *b)
{
	const u64 *x = (const u64 *)a, *y = (const u64 *)b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]));
}

int digest_known(const u8 *digest)
{
	const u64 *words = (const u64 *)digest;

	return !!(words[0] | words[1] | words[2] | words[3]);
}

noinline void digest_update(struct sha256_ctx *sctx, unsigned long start, unsigned long len)
{
	sha2_update(sctx, &start, &len);
	sha256_update_all(sctx, (const u8 *)start, len);
}

void digest_of(unsigned long start, unsigned long len, u8 digest[SHA256_DIGEST_SIZE])
{
	struct sha256_ctx sctx;

	sha256_init(&sctx);
	digest_update(&sctx, start, len);
	sha256_final(&sctx, digest);
}

int digest_matches(unsigned long start, unsigned long len, const u8 *expected)
{
	u8 found[SHA256_DIGEST_SIZE] __aligned(8);

	digest_of(start, len, found);
	return digest_same(found, expected);
}

/*
 * Code and symbols are those that were loaded. It is no proof: whoever can
 * change this code can change the answer. But it is what notices a changed
 * address or table, and most of a changed code, before they are used.
 */
static int self_matches(void)
{
	record_flag(PURGATORY_FLAG_SELF_CHECKED);
	return digest_matches((unsigned long)purgatory_start,
			      purgatory_self_digest - purgatory_start, purgatory_self_digest);
}

/* A region that wraps, lies where no memory can be or on ourselves was not loaded. */
int region_sane(const struct kexec_sha_region *region)
{
	u64 end = region->start + region->len;

	if (!region->len)
		return 1;
	return end > region->start && !((end - 1) >> PA_BITS) &&
	       (end <= (unsigned long)purgatory_start ||
		region->start >= (unsigned long)purgatory_end);
}

static int regions_sane(void)
{
	int i;

	for (i = 0; i < KEXEC_SEGMENT_MAX; i++)
		if (!region_sane(&purgatory_sha_regions[i]))
			return 0;
	return 1;
}

/* What is to be looked at is in memory, not in some cache that a stray store went to. */
void clean_regions(void)
{
	int i;

	for (i = 0; i < KEXEC_SEGMENT_MAX; i++) {
		const struct kexec_sha_region *region = &purgatory_sha_regions[i];

		if (region->len)
			dcache_clean_inval_poc(region->start, region->start + region->len);
	}
}

/* All regions as one message, compared with what the loader stored. */
int regions_match(u8 found[SHA256_DIGEST_SIZE])
{
	const struct kexec_sha_region *region = purgatory_sha_regions;
	const struct kexec_sha_region *end = region + KEXEC_SEGMENT_MAX;
	struct sha256_ctx sctx;

	sha256_init(&sctx);
	for (; region < end; region++) {
		digest_update(&sctx, region->start, region->len);
		record_hashed(region->len);
	}
	sha256_final(&sctx, found);
	return digest_same(found, purgatory_sha256_digest);
}

/*
 * 0 if all is as it was loaded. The table of regions may lead anywhere until it
 * is known to be ours.
 */
u32 check(unsigned long dtb)
{
	u8 found[SHA256_DIGEST_SIZE] __aligned(8);
	int self_known = digest_known(purgatory_self_digest);
	u32 damaged = 0;

	suspect(self_known ? PURGATORY_SELF : 0);
	sha2_forget();
	if ((self_known && !self_matches()) || !regions_sane())
		damaged |= PURGATORY_SELF;
	if (purgatory_dtb && purgatory_dtb != dtb)
		damaged |= PURGATORY_DTB;
	suspect(damaged);
	if (!damaged) {
		sha2_begin();
		caches_prepare();
		report_start();
		clean_regions();
		caches_on();
		if (!regions_match(found))
			damaged = PURGATORY_REGIONS;
		record_found(found);
		locate(damaged);
		caches_off();
		repair(damaged);
		sha2_end();
	}

	record_result(damaged);
	report_result(damaged, found);
	return damaged;
}

unsigned long finish(unsigned long answer)
{
	if (answer != START_KERNEL)
		return answer;
	if (!purgatory_kernel_entry) {
		report_stop("no kernel entry");
		return STOP;
	}
	chosen();
	return START_KERNEL;
}

unsigned long purgatory(unsigned long dtb)
{
#ifdef PURGATORY_POLICY
	u32 damaged;

	begin(0);
	damaged = check(dtb);
	return finish(damaged ? refuse(damaged) : START_KERNEL);
#else
	begin(0);
	if (check(dtb)) {
		report_stop(NULL);
		return STOP;
	}
	return finish(START_KERNEL);
#endif
}
