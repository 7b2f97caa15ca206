/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A part of entry.S (PURGATORY_TRAP): the vectors where there is more to do
 * than to stop.
 */

/* What lies on the stack when enter is done: see there. */
#ifdef PURGATORY_CALLER
#define FRAME_SIZE	(32 + CALLER_SIZE)	/* the caller's by push_caller */
#else
#define FRAME_SIZE	32
#endif

	/*
	 * Whatever we were doing, say what happened. It may be the map that is
	 * wrong: so off with it before anything is stored, and what was stored
	 * with the caches on to memory. The frame of enter is still there, and
	 * the report has the rest of the stack.
	 */
	.org	purgatory_vectors + 0x200	// synchronous
trapped:
	if_el2	x3, 1f
	mrs	x20, esr_el1
	mrs	x21, elr_el1
	mrs	x22, far_el1
	mov32	x3, SCTLR_EL1_MMU_OFF
	isb				// as in mmu_disable
	msr	sctlr_el1, x3
	b	2f
1:	mrs	x20, esr_el2
	mrs	x21, elr_el2
	mrs	x22, far_el2
	mov32	x3, SCTLR_EL2_MMU_OFF
	isb
	msr	sctlr_el2, x3
2:	isb
	adr	x0, purgatory_data
	adr	x1, purgatory_data_end
	bl	dcache_clean_inval_poc
	mov	x0, x20
	mov	x1, x21
	mov	x2, x22
	adr	x3, purgatory_stack_top - FRAME_SIZE
	mov	sp, x3
	bl	purgatory_trapped
	b	decided

	.org	purgatory_vectors + 0x280	// IRQ, and NMI if SCTLR.NMI could be left on
	b	trapped

#ifdef PURGATORY_EARLY
	/*
	 * Here and below, what stands between two vectors saves a page.
	 *
	 * The early check: a kernel that is still alive calls this, its MMU off
	 * for the moment. x0 is 0 if all is well, 1 if not; x18 to x30, sp and
	 * system registers come back as they were.
	 */
	.globl	purgatory_check
	.type	purgatory_check, %function
purgatory_check:
	caller_keeps_return_address
	adr	x14, 1f
	b	enter
1:	bl	purgatory_early
	cmp	x0, #0
	cset	x0, ne
	b	leave
	.size	purgatory_check, . - purgatory_check
#endif

#ifdef PURGATORY_POLICY
	/* int psci_call(u64 function, u64 conduit) */
	.globl	psci_call
	.type	psci_call, %function
psci_call:
	mov	x4, x1
	mov	x1, xzr
	mov	x2, xzr
	mov	x3, xzr
	cmp	x4, #1
	b.eq	1f
	cmp	x4, #2
	b.ne	2f
	.inst	0xd4000003		// smc #0, which assemblers refuse without EL3
	ret
1:	hvc	#0
	ret
2:	mov	x0, #-1			// NOT_SUPPORTED
	ret
	.size	psci_call, . - psci_call
#endif

	.org	purgatory_vectors + 0x300	// FIQ
	b	trapped

#ifdef PURGATORY_CALLER
	/* All as enter found it, and back. sp is where enter left it: C functions balance it. */
leave:
	ldp	x13, x12, [sp], #16
	ldp	x15, x1, [sp], #16
	ldp	x8, x7, [sp], #16
	ldp	x10, x11, [sp], #16
	ldp	x29, x30, [sp], #16
	ldp	x27, x28, [sp], #16
	ldp	x25, x26, [sp], #16
	ldp	x23, x24, [sp], #16
	ldp	x21, x22, [sp], #16
	ldp	x19, x20, [sp], #16
	ldr	x18, [sp], #16
	mov	sp, x1
	msr	spsel, x10
	mov	sp, x11
	mov	x14, x30
	b	1f
#endif

	.org	purgatory_vectors + 0x380	// SError; an external abort, too, with SCTLR2.EASE
	b	trapped

#ifdef PURGATORY_CALLER
	/* 0 is what they are now, or they are not there. */
1:	if_el2	x4, 4f
	cbz	x8, 2f
	msr	TCR2_EL1, x8
2:	cbz	x7, 3f
	msr	GCSCR_EL1, x7
3:	b	restore
4:	cbz	x8, 5f
	msr	TCR2_EL2, x8
5:	cbz	x7, 6f
	msr	GCSCR_EL2, x7
6:	b	restore
#endif
