/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * System registers, for C.
 */
#ifndef SYSREG_H
#define SYSREG_H

#include "el.h"
#include "types.h"

#define sysreg_read(reg) ({					\
	u64 __value;						\
	asm volatile("mrs %0, " #reg : "=r" (__value));		\
	__value;						\
})

static inline int at_el2(void)
{
	return sysreg_read(CurrentEL) == CurrentEL_EL2;
}

/* At EL2 without VHE, where registers and descriptors are EL2's own. */
static inline int at_plain_el2(void)
{
	return at_el2() && !(sysreg_read(hcr_el2) >> HCR_E2H_SHIFT & 1);
}

#endif /* SYSREG_H */
