// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PURGATORY_TRAP: an exception is worth a word, or an answer.
 */
#include "options.h"

static u32 traps __purgatory_data;

#ifdef PURGATORY_STATE
static u32 suspected __purgatory_data;

void begin(u32 early)
{
	traps = 0;
	early_begin(early);
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
#endif

/* An exception: with a damaged table of regions or damaged code there may be any. */
unsigned long purgatory_trapped(unsigned long esr, unsigned long elr, unsigned long far)
{
	traps++;
	if (traps > 2 || (traps > 1 && caches_are_on())) {
#ifdef PURGATORY_EARLY
		if (is_early() && !caches_are_on())
			return RETURN_TO_CALLER;
#endif
		return STOP;
	}
	if (traps == 2)
		report_no_more();	/* it is that which fails: do without */
	caches_off();
#ifdef PURGATORY_STATE
	sha2_end();
#endif
	record_trap(esr, elr, far);
	report_trap(esr, elr, far);
#ifdef PURGATORY_EARLY
	if (is_early())
		return RETURN_TO_CALLER;
#endif
#ifdef PURGATORY_POLICY
	return finish(refuse(suspected));
#else
	report_stop(NULL);
	return STOP;
#endif
}
