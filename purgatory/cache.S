/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Maintenance of caches, and the two moments at which the MMU goes on and off.
 */
#include "el.h"

/* By its number: clang knows the name for profiles of the architecture only that we do not ask for. */
#define TTBR0_EL2	s3_4_c2_c0_0

	.macro	line_size, reg, tmp
	mrs	\tmp, ctr_el0
	ubfx	\tmp, \tmp, #16, #4	// DminLine: log2 of words in the smallest line
	mov	\reg, #4
	lsl	\reg, \reg, \tmp
	.endm

	.macro	by_line, op, start, end, size, tmp
	dmb	sy			// with stores while the MMU is off it is in no order otherwise
	sub	\tmp, \size, #1
	bic	\start, \start, \tmp
.Lby_line\@:
	cmp	\start, \end
	b.hs	.Lby_line_done\@
	dc	\op, \start
	add	\start, \start, \size
	b	.Lby_line\@
.Lby_line_done\@:
	dsb	sy
	.endm

	.text

	/* void dcache_clean_inval_poc(u64 start, u64 end): changes x0, x2 to x4 only */
	.globl	dcache_clean_inval_poc
	.type	dcache_clean_inval_poc, %function
dcache_clean_inval_poc:
	line_size x2, x3
	by_line	civac, x0, x1, x2, x3
	ret
	.size	dcache_clean_inval_poc, . - dcache_clean_inval_poc

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
	ldp	x5, x6, [x0]
	ldp	x7, x8, [x0, #16]
	mov	x10, x1
	line_size x3, x4
	by_line	civac, x1, x2, x3, x4
	isb				// Falkor erratum 1041 wants one right before the MMU goes off
	if_el2	x9, 1f
	msr	sctlr_el1, x8
	isb
	msr	mair_el1, x5
	msr	tcr_el1, x6
	msr	ttbr0_el1, x7
	b	2f
1:	msr	sctlr_el2, x8
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
	by_line	civac, x10, x2, x3, x4
	ret
	.size	mmu_disable, . - mmu_disable

	.section .note.GNU-stack, "", %progbits
