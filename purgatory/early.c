// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PURGATORY_EARLY: the same check for a kernel that is still alive, by
 * purgatory_check in caller.S. It answers, and starts nothing.
 */
#include "options.h"

unsigned long purgatory_early(unsigned long dtb)
{
	begin(1);
	return check(dtb);
}
