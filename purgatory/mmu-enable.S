/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The two moments at which the MMU goes on and off, with their maintenance.
 */
#include "el.h"

/* By its number: clang knows the name for other profiles of the architecture only. */
#define TTBR0_EL2	s3_4_c2_c0_0

	.text

	/*
	 * void mmu_enable(const struct mmu_registers *new, u64 start, u64 end)
	 *
	 * [start, end) was stored to with the caches off. Lines of it that a CPU
	 * fetched on its own initiative before would hide that: drop them. No
	 * new ones appear while the MMU is off.
	 */
	.globl	mmu_enable
	.type	mmu_enable, %function
mmu_enable:
	ldp	x5, x6, [x0]		// mair, tcr
	ldp	x7, x8, [x0, #16]	// ttbr0, sctlr
	line_size x3, x4
	by_line	ivac, x1, x2, x3, x4
	mrs	x9, CurrentEL
	cmp	x9, #CurrentEL_EL2
	b.eq	1f
	tlbi	vmalle1
	b	2f
1:	tlbi	alle2
2:	ic	iallu
	dsb	nsh
	if_el2	x9, 3f
	msr	mair_el1, x5
	msr	tcr_el1, x6
	msr	ttbr0_el1, x7
	isb
	msr	sctlr_el1, x8
	isb
	ret
3:	msr	mair_el2, x5
	msr	tcr_el2, x6
	msr	TTBR0_EL2, x7
	isb
	msr	sctlr_el2, x8
	isb
	ret
	.size	mmu_enable, . - mmu_enable

	/*
	 * void mmu_disable(const struct mmu_registers *old, u64 start, u64 end)
	 *
	 * What was stored to [start, end) must be in memory before the caches are
	 * off, and nothing is stored in between. Lines may come back until the
	 * MMU is off, clean ones: those go afterwards.
	 */
	.globl	mmu_disable
	.type	mmu_disable, %function
mmu_disable:
	mov	x11, x30		// there is no stack now
	ldp	x5, x6, [x0]
	ldp	x7, x8, [x0, #16]
	mov	x10, x1
	mov	x0, x1
	mov	x1, x2
	bl	dcache_clean_inval_poc	// changes x0, x2 to x4
	if_el2	x9, 1f
	isb				// Falkor erratum 1041 wants one right here
	msr	sctlr_el1, x8
	isb
	msr	mair_el1, x5
	msr	tcr_el1, x6
	msr	ttbr0_el1, x7
	b	2f
1:	isb
	msr	sctlr_el2, x8
	isb
	msr	mair_el2, x5
	msr	tcr_el2, x6
	msr	TTBR0_EL2, x7
2:	isb
	mrs	x9, CurrentEL
	cmp	x9, #CurrentEL_EL2
	b.eq	3f
	tlbi	vmalle1
	b	4f
3:	tlbi	alle2
4:	dsb	nsh
	isb
	mov	x0, x10
	bl	dcache_clean_inval_poc
	ret	x11
	.size	mmu_disable, . - mmu_disable

	.section .note.GNU-stack, "", %progbits
