// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PURGATORY_CALLER: what a run has to remember where it may end in an
 * exception that is worth a word, or with a caller.
 */
#include "options.h"

u32 early_check __purgatory_data;
static u32 suspected __purgatory_data;
static u32 traps __purgatory_data;

void begin(u32 early)
{
	early_check = early;
	traps = 0;
	caches_begin();
	report_begin();
	record_begin();
	suspect(0);
}

void suspect(u32 damaged)
{
	suspected = damaged;
	record_damaged(damaged);
}

/* An exception: with a damaged table of regions or damaged code there may be any. */
unsigned long purgatory_trapped(unsigned long esr, unsigned long elr, unsigned long far)
{
	traps++;
	if (traps > 2 || (traps > 1 && caches_are_on()))
		return early_check && !caches_are_on() ? RETURN_TO_CALLER : STOP;
	if (traps == 2)
		report_no_more();	/* it is that which fails: do without */
	caches_off();
	sha2_end();
	record_trap(esr, elr, far);
	report_trap(esr, elr, far);
	return early_check ? RETURN_TO_CALLER : finish(refuse(suspected));
}
