// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * For the model checker: region_sane() for all regions and wherever the
 * purgatory lies, and the walk of regions_match(): each region once, in order,
 * nothing else, and the answer is that of all bytes of the digest.
 */
#include "options.h"

u64 nondet_u64(void);
u8 nondet_u8(void);

/* Wherever: not where the model checker puts its own objects. */
static u64 own_start, own_end;
#define purgatory_start	((const u8 *)own_start)
#define purgatory_end	((const u8 *)own_end)
#include "purgatory.c"

static u32 begun, updates, ended;
static u8 digest[SHA256_DIGEST_SIZE];

void sha256_init(struct sha256_ctx *sctx)
{
	begun++;
}

void sha256_update(struct sha256_ctx *sctx, const u8 *data, u64 len)
{
	__CPROVER_assert(begun == 1 && !ended, "of one message");
	__CPROVER_assert(updates < KEXEC_SEGMENT_MAX, "no more than there are");
	__CPROVER_assert((u64)data == purgatory_sha_regions[updates].start, "from where it starts");
	__CPROVER_assert(len == purgatory_sha_regions[updates].len, "all of it");
	updates++;
}

void sha256_final(struct sha256_ctx *sctx, u8 out[SHA256_DIGEST_SIZE])
{
	__CPROVER_assert(updates == KEXEC_SEGMENT_MAX, "all regions");
	ended++;
	for (int i = 0; i < SHA256_DIGEST_SIZE; i++)
		out[i] = digest[i] = nondet_u8();
}

void prove_region_sane(void)
{
	struct kexec_sha_region region = { nondet_u64(), nondet_u64() };
	unsigned __int128 end = (unsigned __int128)region.start + region.len;
	int inside, clear;

	own_start = nondet_u64();
	own_end = nondet_u64();
	inside = end <= (unsigned __int128)1 << 52;
	clear = end <= own_start || region.start >= own_end;
	__CPROVER_assert(region_sane(&region) == (!region.len || (inside && clear)),
			 "no wrap, in what can be memory, and not on ourselves");
}

void prove_regions_sane(void)
{
	int all = 1;

	own_start = nondet_u64();
	own_end = nondet_u64();
	for (int i = 0; i < KEXEC_SEGMENT_MAX; i++) {
		purgatory_sha_regions[i].start = nondet_u64();
		purgatory_sha_regions[i].len = nondet_u64();
		all &= region_sane(&purgatory_sha_regions[i]);
	}
	__CPROVER_assert(regions_sane() == all, "each of them");
}

void prove_regions_match(void)
{
	u8 found[SHA256_DIGEST_SIZE] __aligned(8);
	int same = 1, answer;

	for (int i = 0; i < KEXEC_SEGMENT_MAX; i++) {
		purgatory_sha_regions[i].start = nondet_u64();
		purgatory_sha_regions[i].len = nondet_u64();
	}
	for (int i = 0; i < SHA256_DIGEST_SIZE; i++)
		purgatory_sha256_digest[i] = nondet_u8();
	answer = regions_match(found);
	__CPROVER_assert(begun == 1 && ended == 1, "one digest");
	for (int i = 0; i < SHA256_DIGEST_SIZE; i++) {
		same &= digest[i] == purgatory_sha256_digest[i];
		__CPROVER_assert(found[i] == digest[i], "and that is what was found");
	}
	__CPROVER_assert(answer == same, "all bytes of it are compared");
}
