// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The purgatory runs between a crashed kernel and its capture kernel. It asks
 * one question: are the loaded segments still the bytes that were loaded?
 */
#include "purgatory.h"
#include "sha256.h"

__kexec_purgatory struct kexec_sha_region purgatory_sha_regions[KEXEC_SEGMENT_MAX];
__kexec_purgatory u8 purgatory_sha256_digest[SHA256_DIGEST_SIZE];
__kexec_purgatory u64 purgatory_kernel_entry;
__kexec_purgatory u64 purgatory_uart_base;

__kexec_purgatory struct purgatory_verdict purgatory_verdict = {
	.magic = PURGATORY_VERDICT_MAGIC,
	.version = PURGATORY_VERDICT_VERSION,
};

/* The record is read by others: every store to it has to happen, in order. */
static volatile struct purgatory_verdict *const verdict = &purgatory_verdict;

static void announce(void)
{
	u64 bytes = 0;
	u32 regions = 0;
	int i;

	for (i = 0; i < KEXEC_SEGMENT_MAX; i++) {
		if (!purgatory_sha_regions[i].len)
			continue;
		regions++;
		bytes += purgatory_sha_regions[i].len;
	}

	console_puts("purgatory: checking ");
	console_put_dec(regions);
	console_puts(" regions, ");
	console_put_hex(bytes);
	console_puts(" bytes\n");
}

static void hash_regions(u8 digest[SHA256_DIGEST_SIZE])
{
	const struct kexec_sha_region *region = purgatory_sha_regions;
	const struct kexec_sha_region *end = region + KEXEC_SEGMENT_MAX;
	struct sha256_state sctx;

	sha256_init(&sctx);
	for (; region < end; region++) {
		sha256_update(&sctx, (const u8 *)region->start, region->len);
		verdict->bytes_hashed += region->len;
	}
	sha256_final(&sctx, digest);
}

/* Compare found and expected digest, and put both into the record. */
static int same_digest(const u8 found[SHA256_DIGEST_SIZE])
{
	u32 different = 0;
	int i;

	for (i = 0; i < SHA256_DIGEST_SIZE; i++) {
		u8 expected = purgatory_sha256_digest[i];

		verdict->expected[i] = expected;
		verdict->found[i] = found[i];
		different |= expected ^ found[i];
	}
	return !different;
}

int purgatory(void)
{
	u8 digest[SHA256_DIGEST_SIZE];

	verdict->bytes_hashed = 0;
	verdict->state = PURGATORY_CHECKING;
	announce();
	hash_regions(digest);

	if (!same_digest(digest)) {
		verdict->state = PURGATORY_MISMATCH;
		console_puts("purgatory: digests do NOT match\n");
		console_puts("purgatory: expected ");
		console_put_digest(purgatory_sha256_digest);
		console_puts("\npurgatory: found    ");
		console_put_digest(digest);
		console_puts("\npurgatory: stopped\n");
		return 1;
	}
	verdict->state = PURGATORY_MATCH;
	console_puts("purgatory: digests match\n");

	if (!purgatory_kernel_entry)
		purgatory_kernel_entry = purgatory_sha_regions[0].start;
	if (!purgatory_kernel_entry) {
		console_puts("purgatory: no kernel entry\npurgatory: stopped\n");
		return 1;
	}
	return 0;
}
