/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which system registers rule where we run. With VHE (HCR_EL2.E2H) the names
 * that end in _EL1 mean those of EL2, with the layout of EL1: so there are two
 * cases, not three.
 */
#ifndef EL_H
#define EL_H

#define CurrentEL_EL2	(2 << 2)
#define HCR_E2H_SHIFT	34

#ifdef __ASSEMBLER__
	/* Branch to \label at EL2 without VHE. */
	.macro	if_el2, reg, label
	mrs	\reg, CurrentEL
	cmp	\reg, #CurrentEL_EL2
	b.ne	.Lnot_el2\@
	mrs	\reg, hcr_el2
	tbz	\reg, #HCR_E2H_SHIFT, \label
.Lnot_el2\@:
	.endm
#endif

#endif /* EL_H */
