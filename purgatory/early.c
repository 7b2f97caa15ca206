// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PURGATORY_EARLY: the same check for a kernel that is still alive, by
 * purgatory_check in trap.S. It answers, and starts nothing.
 */
#include "options.h"

u32 early_check __purgatory_data;

unsigned long purgatory_early(unsigned long dtb)
{
	begin(1);
	return check(dtb);
}
