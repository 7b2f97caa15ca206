// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PURGATORY_RECORD: what was found, in memory. Others read it, whenever the
 * machine stops: so `state` is stored behind what it announces.
 */
#include "options.h"
#include "sysreg.h"

__section(".data.verdict") __aligned(PURGATORY_PAGE_SIZE)
struct purgatory_verdict purgatory_verdict = {
	.magic = PURGATORY_VERDICT_MAGIC,
	.version = PURGATORY_VERDICT_VERSION,
};

static struct purgatory_verdict *const verdict = &purgatory_verdict;

static void record_state(u32 state)
{
	barrier();
	verdict->state = state;
	barrier();
}

void record_begin(void)
{
	u64 *found = (u64 *)verdict->found;

	record_state(PURGATORY_CHECKING);
	verdict->bytes_hashed = 0;
	verdict->flags = (is_early() ? PURGATORY_FLAG_EARLY : 0) |
			 (at_el2() ? PURGATORY_FLAG_AT_EL2 : 0);
	verdict->damaged = 0;
	verdict->damaged_pages = 0;
	verdict->ranges = 0;
	found[0] = 0;
	found[1] = 0;
	found[2] = 0;
	found[3] = 0;
}

void record_flag(u32 flag)
{
	verdict->flags |= flag;
}

/* Both digests. */
void record_found(const u8 *found)
{
	int i;

	for (i = 0; i < SHA256_DIGEST_SIZE; i++) {
		verdict->expected[i] = purgatory_sha256_digest[i];
		verdict->found[i] = found[i];
		barrier();		/* a loop, and no call of memcpy() */
	}
}

void record_result(u32 damaged)
{
	record_state(damaged ? PURGATORY_MISMATCH : PURGATORY_MATCH);
}

void record_trap(unsigned long esr, unsigned long elr, unsigned long far)
{
	verdict->esr = esr;
	verdict->elr = elr;
	verdict->far = far;
	record_state(PURGATORY_TRAPPED);
}
