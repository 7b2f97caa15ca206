// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The purgatory runs between a crashed kernel and its capture kernel. It asks
 * one question: are the loaded segments still the bytes that were loaded? Read
 * purgatory() first.
 */
#include "mmu.h"
#include "purgatory.h"
#include "report.h"
#include "locate.h"

__kexec_purgatory struct kexec_sha_region purgatory_sha_regions[KEXEC_SEGMENT_MAX];
__kexec_purgatory u8 purgatory_sha256_digest[SHA256_DIGEST_SIZE];
__kexec_purgatory u64 purgatory_kernel_entry;
__kexec_purgatory u64 purgatory_uart_base;
__kexec_purgatory u64 purgatory_dtb;
__kexec_purgatory u64 purgatory_policy;
__kexec_purgatory u64 purgatory_psci_conduit;
__kexec_purgatory u64 purgatory_no_mmu;
__kexec_purgatory u64 purgatory_no_crypto;
__kexec_purgatory __attribute__((aligned(8)))
u8 purgatory_region_digests[KEXEC_SEGMENT_MAX][SHA256_DIGEST_SIZE];
__kexec_purgatory u64 purgatory_page_digests;
__kexec_purgatory u64 purgatory_copy;
__kexec_purgatory u64 purgatory_chosen;

/* Behind all of the above: the linker's script sees to it. */
__attribute__((section(".kexec-purgatory.last"), aligned(8)))
u8 purgatory_self_digest[SHA256_DIGEST_SIZE];

__attribute__((section(".data.verdict"), aligned(PURGATORY_PAGE_SIZE)))
struct purgatory_verdict purgatory_verdict = {
	.magic = PURGATORY_VERDICT_MAGIC,
	.version = PURGATORY_VERDICT_VERSION,
};

/* The record is read by others: every store to it has to happen, in order. */
static volatile struct purgatory_verdict *const verdict = &purgatory_verdict;

extern const u8 purgatory_start[];

static u32 mmu_is_on __purgatory_data;
static u32 traps __purgatory_data;

/* What entry.S does with the answer of purgatory() and purgatory_trapped(). */
enum { START_KERNEL = 0, STOP = 1, RETURN_TO_CALLER = 2 };

/* What is to be looked at is in memory, not in some cache that a stray store went to. */
static void clean_regions(void)
{
	int i;

	for (i = 0; i < KEXEC_SEGMENT_MAX; i++) {
		const struct kexec_sha_region *region = &purgatory_sha_regions[i];

		dcache_clean_inval_poc(region->start, region->start + region->len);
	}
}

static int regions_sane(void)
{
	int i;

	for (i = 0; i < KEXEC_SEGMENT_MAX; i++)
		if (!region_sane(&purgatory_sha_regions[i]))
			return 0;
	return 1;
}

static void begin(u64 early)
{
	int i;

	verdict->state = PURGATORY_CHECKING;
	verdict->bytes_hashed = 0;
	verdict->flags = (early ? PURGATORY_EARLY : 0) | (at_el2() ? PURGATORY_AT_EL2 : 0);
	verdict->damaged = 0;
	verdict->damaged_pages = 0;
	verdict->ranges = 0;
	for (i = 0; i < SHA256_DIGEST_SIZE; i++)
		verdict->found[i] = 0;
	mmu_is_on = 0;
	traps = 0;
	console_stuck = 0;
}

/* Everything between these two runs with the caches on, if that can be had. Nothing is printed there. */
static void caches_on(int possible)
{
	if (!possible)
		return;
	mmu_is_on = 1;
	mmu_on();
}

static void caches_off(void)
{
	if (!mmu_is_on)
		return;
	mmu_off();
	mmu_is_on = 0;
}

/* All regions as one message, compared with what the loader stored; both go into the record. */
static int regions_match(void)
{
	const struct kexec_sha_region *region = purgatory_sha_regions;
	const struct kexec_sha_region *end = region + KEXEC_SEGMENT_MAX;
	u8 found[SHA256_DIGEST_SIZE];
	struct sha256_state sctx;
	u32 different = 0;
	int i;

	verdict->bytes_hashed = 0;
	digest_begin(&sctx);
	for (; region < end; region++) {
		sha256_update(&sctx, (const u8 *)region->start, region->len);
		verdict->bytes_hashed += region->len;
	}
	sha256_final(&sctx, found);
	for (i = 0; i < SHA256_DIGEST_SIZE; i++) {
		u8 expected = purgatory_sha256_digest[i];

		verdict->expected[i] = expected;
		verdict->found[i] = found[i];
		different |= expected ^ found[i];
	}
	return !different;
}

/*
 * Code and symbols are those that were loaded. It is no proof: whoever can
 * change this code can change the answer. But it is what notices a changed
 * address or table, and most of a changed code, before they are used.
 */
static int self_matches(void)
{
	u64 len = purgatory_self_digest - purgatory_start;

	if (!digest_known(purgatory_self_digest))
		return 1;
	verdict->flags |= PURGATORY_SELF_CHECKED;
	return digest_matches((u64)purgatory_start, len, purgatory_self_digest);
}

/* Regions can be written to meanwhile. What was found at first stays in the record. */
static void mend(void)
{
	u8 found[SHA256_DIGEST_SIZE];
	int i, mended;

	for (i = 0; i < SHA256_DIGEST_SIZE; i++)
		found[i] = verdict->found[i];
	caches_on(mmu_prepare(1));
	mended = repair() && regions_match();
	caches_off();
	clean_regions();
	if (mended)
		verdict->flags |= PURGATORY_REPAIRED;
	for (i = 0; i < SHA256_DIGEST_SIZE; i++)
		verdict->found[i] = found[i];
}

static int check(u64 dtb)
{
	u32 damaged = 0;
	int possible, match;

	/* Until shown otherwise: what follows may end in an exception. */
	verdict->damaged = digest_known(purgatory_self_digest) ? PURGATORY_SELF : 0;
	crypto_begin();
	if (!self_matches() || !regions_sane())
		damaged |= PURGATORY_SELF;
	verdict->damaged = 0;
	if (purgatory_dtb && purgatory_dtb != dtb)
		damaged |= PURGATORY_DTB;
	if (damaged) {
		/* The table of regions may lead anywhere. */
		crypto_end();
		verdict->damaged = damaged;
		return 0;
	}

	possible = mmu_prepare(0);
	if (possible)
		verdict->flags |= PURGATORY_MMU_ON;
	report_start();

	clean_regions();
	caches_on(possible);
	match = regions_match();
	if (!match)
		locate();
	caches_off();

	if (!match && purgatory_policy == PURGATORY_REPAIR && purgatory_copy &&
	    !(verdict->flags & PURGATORY_EARLY))
		mend();
	crypto_end();
	return match;
}

/* What is left to do when something is wrong. */
static u64 refuse(void)
{
	if (verdict->flags & PURGATORY_EARLY)
		return RETURN_TO_CALLER;
	switch (purgatory_policy) {
	case PURGATORY_RESET:
	case PURGATORY_OFF:
		report_line(purgatory_policy == PURGATORY_RESET ? "resetting" : "switching off");
		psci_call(purgatory_policy == PURGATORY_RESET ? PSCI_SYSTEM_RESET : PSCI_SYSTEM_OFF,
			  purgatory_psci_conduit);
		break;			/* it came back */
	case PURGATORY_RETURN:
		report_line("returning");
		return RETURN_TO_CALLER;
	case PURGATORY_BOOT_ANYWAY:
		if (verdict->damaged & PURGATORY_SELF)
			break;		/* nor do we know where to */
		report_line("booting anyway");
		return START_KERNEL;
	case PURGATORY_REPAIR:
		if (verdict->flags & PURGATORY_REPAIRED) {
			report_line("repaired from the copy");
			return START_KERNEL;
		}
		break;
	}
	report_line("stopped");
	return STOP;
}

static u64 finish(u64 answer)
{
	if (answer != START_KERNEL)
		return answer;
	if (!purgatory_kernel_entry) {
		report_line("no kernel entry");
		report_line("stopped");
		return STOP;
	}
	record_in_device_tree();
	return START_KERNEL;
}

u64 purgatory(u64 dtb, u64 early)
{
	begin(early);
	if (check(dtb)) {
		verdict->state = PURGATORY_MATCH;
		report_line("digests match");
		return early ? START_KERNEL : finish(START_KERNEL);
	}
	verdict->state = PURGATORY_MISMATCH;
	report_mismatch();
	return finish(refuse());
}

/* An exception: with a damaged table of regions or damaged code there may be any. */
u64 purgatory_trapped(u64 esr, u64 elr, u64 far)
{
	traps++;
	if (traps > 2 || (traps > 1 && mmu_is_on))
		return verdict->flags & PURGATORY_EARLY && !mmu_is_on ? RETURN_TO_CALLER : STOP;
	if (traps == 2)
		console_stuck = 1;	/* it is the report that fails: do without, and follow the policy */
	caches_off();
	crypto_end();
	verdict->esr = esr;
	verdict->elr = elr;
	verdict->far = far;
	verdict->state = PURGATORY_TRAPPED;
	report_trap();
	return finish(refuse());
}
