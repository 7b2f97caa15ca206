/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Entries and exits of the purgatory.
 *
 * Entered with the MMU and the caches off and DAIF masked, at EL1 or EL2, x0 =
 * physical address of the device tree, x1 = x2 = x3 = 0. sp and everything else
 * are whatever the dead kernel left: cpu_soft_restart() resets SCTLR and no more.
 */
#include "el.h"

/*
 * What enter leaves on the stack, from sp on: VBAR, SCTLR, TCR2, GCSCR, SP of
 * this EL, device tree, and the caller's registers.
 */
#define FRAME_SIZE	160
#define FRAME_DTB	40

	/* 0 where the CPU has no guarded control stack, or no TCR2: those registers are undefined then. */
	.macro	has_gcs_and_tcr2, gcs, tcr2
	mrs	\gcs, id_aa64pfr1_el1
	ubfx	\gcs, \gcs, #PFR1_GCS_SHIFT, #4
	mrs	\tcr2, ID_AA64MMFR3_EL1
	and	\tcr2, \tcr2, #(1 << MMFR3_TCRX_WIDTH) - 1
	.endm

	.text

	/*
	 * The vectors are here, too: of the sixteen only those of the current EL
	 * on its own stack pointer can be taken, at 0x200 and behind. Other code
	 * lies between them, for a page less.
	 */
	.balign	4096
purgatory_vectors:

	/* cpu_soft_restart() comes here. */
	.globl	purgatory_start
	.type	purgatory_start, %function
purgatory_start:
	mov	x9, x30			// for PURGATORY_RETURN
	adr	x14, 1f
	b	enter
1:	mov	x1, xzr			// not early
	bl	purgatory
decide:
	/*
	 * Go on only with a plain 0: x0 is the device tree's address if the
	 * call above was overwritten, and that stops, too.
	 */
	cbnz	x0, refused

	/*
	 * The kernel's boot protocol is the contract we were entered with. TCR2
	 * and GCSCR stay 0, which is what a kernel that knows them not expects.
	 */
	ic	iallu			// a repair has written code
	dsb	nsh
	ldr	x14, purgatory_kernel_entry
	ldp	x13, x12, [sp]		// VBAR, SCTLR
	mov	x8, xzr			// TCR2
	mov	x7, xzr			// GCSCR
	ldr	x0, [sp, #FRAME_DTB]
	mov	x1, xzr
	mov	x2, xzr
	mov	x3, xzr
	b	restore
	.size	purgatory_start, . - purgatory_start

refused:
	cmp	x0, #2
	b.ne	.Lstop
	mov	x0, #1
	adr	x14, 1f
	b	leave
1:	br	x9			// we were not called, but jumped to

	/* A bad image must not run, and nobody is left to return to. */
	.globl	purgatory_stop
	.type	purgatory_stop, %function
purgatory_stop:
.Lstop:
	wfi
	b	.Lstop			// a local label needs no relocation
	.size	purgatory_stop, . - purgatory_stop

	/*
	 * The early check: a kernel that is still alive calls this, its MMU off
	 * for the moment. x0 is 0 if all is well, 1 if not; x19 to x30, sp and
	 * system registers come back as they were.
	 */
	.globl	purgatory_check
	.type	purgatory_check, %function
purgatory_check:
	mov	x9, x30
	adr	x14, 1f
	b	enter
1:	mov	x1, #1
	bl	purgatory
	cmp	x0, #0
	cset	x0, ne
	adr	x14, 2f
	b	leave
2:	ret	x9
	.size	purgatory_check, . - purgatory_check

	/*
	 * x9 is the caller's x30, x14 where to go on. Nothing may be loaded or
	 * stored, nor called (that pushes, with GCSCR.PCRSEL), before the state
	 * is ours.
	 *
	 * Then: what a stray store did to us may still be in a cache. There it
	 * would be hidden from a look with the caches off, and be executed with
	 * them on; and it could be written back over what we are going to store.
	 */
enter:
	mov	x15, x0
	has_gcs_and_tcr2 x5, x6
	mov	x7, xzr
	mov	x8, xzr
	mrs	x10, spsel
	mov	x11, sp
	msr	spsel, #1
	if_el2	x0, 3f
	mrs	x12, sctlr_el1
	mov32	x0, SCTLR_EL1_MMU_OFF
	msr	sctlr_el1, x0
	cbz	x5, 1f
	mrs	x7, GCSCR_EL1
	msr	GCSCR_EL1, xzr
1:	cbz	x6, 2f
	mrs	x8, TCR2_EL1
	msr	TCR2_EL1, xzr		// no indirect permissions, overlays, protected tables ...
2:	mrs	x13, vbar_el1
	adr	x0, purgatory_vectors
	msr	vbar_el1, x0
	b	6f
3:	mrs	x12, sctlr_el2
	mov32	x0, SCTLR_EL2_MMU_OFF
	msr	sctlr_el2, x0
	cbz	x5, 4f
	mrs	x7, GCSCR_EL2
	msr	GCSCR_EL2, xzr
4:	cbz	x6, 5f
	mrs	x8, TCR2_EL2
	msr	TCR2_EL2, xzr
5:	mrs	x13, vbar_el2
	adr	x0, purgatory_vectors
	msr	vbar_el2, x0
6:	isb
	adr	x0, purgatory_vectors
	adr	x1, purgatory_data_end
	bl	dcache_clean_inval_poc	// changes x0, x2 to x4
	ic	iallu
	dsb	nsh
	isb
	mov	x1, sp
	adr	x0, purgatory_stack_top
	mov	sp, x0
	stp	x19, x20, [sp, #-16]!
	stp	x21, x22, [sp, #-16]!
	stp	x23, x24, [sp, #-16]!
	stp	x25, x26, [sp, #-16]!
	stp	x27, x28, [sp, #-16]!
	stp	x29, x9, [sp, #-16]!
	stp	x10, x11, [sp, #-16]!
	stp	x1, x15, [sp, #-16]!
	stp	x8, x7, [sp, #-16]!
	stp	x13, x12, [sp, #-16]!
	mov	x0, x15
	mov	x29, xzr
	br	x14

	/*
	 * Whatever we were doing, say what happened. It may be the map that is
	 * wrong: so off with it before anything is stored. The frame of enter is
	 * still there, and the report has the rest of the stack.
	 */
trapped:
	if_el2	x3, 2f
	mrs	x20, esr_el1
	mrs	x21, elr_el1
	mrs	x22, far_el1
	mov32	x3, SCTLR_EL1_MMU_OFF
	msr	sctlr_el1, x3
	b	3f
2:	mrs	x20, esr_el2
	mrs	x21, elr_el2
	mrs	x22, far_el2
	mov32	x3, SCTLR_EL2_MMU_OFF
	msr	sctlr_el2, x3
3:	isb
	b	report

	.org	purgatory_vectors + 0x200
	b	trapped

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
	.inst	0xd4000003		// smc #0, which an assembler for armv8-a without EL3 refuses
	ret
1:	hvc	#0
	ret
2:	mov	x0, #-1			// NOT_SUPPORTED
	ret
	.size	psci_call, . - psci_call

report:
	adr	x0, purgatory_verdict
	adr	x1, purgatory_data_end
	bl	dcache_clean_inval_poc	// what was stored with the caches on
	mov	x0, x20
	mov	x1, x21
	mov	x2, x22
	adr	x3, purgatory_stack_top - FRAME_SIZE
	mov	sp, x3
	bl	purgatory_trapped
	b	decide

	.org	purgatory_vectors + 0x280	// IRQ, and NMI if SCTLR.NMI could be left on
	b	trapped

	/* All as enter found it, and on to x14. sp is where enter left it: C functions balance it. */
leave:
	ldp	x13, x12, [sp], #16
	ldp	x8, x7, [sp], #16
	ldp	x1, x15, [sp], #16
	ldp	x10, x11, [sp], #16
	ldp	x29, x9, [sp], #16
	ldp	x27, x28, [sp], #16
	ldp	x25, x26, [sp], #16
	ldp	x23, x24, [sp], #16
	ldp	x21, x22, [sp], #16
	ldp	x19, x20, [sp], #16
	mov	sp, x1
	msr	spsel, x10
	mov	sp, x11
	b	restore

	.org	purgatory_vectors + 0x300	// FIQ
	b	trapped

	/* VBAR, SCTLR, TCR2 and GCSCR from x13, x12, x8 and x7, and on to x14; x4 to x6 change. */
restore:
	has_gcs_and_tcr2 x5, x6
	if_el2	x4, 3f
	msr	vbar_el1, x13
	cbz	x6, 1f
	msr	TCR2_EL1, x8
1:	cbz	x5, 2f
	msr	GCSCR_EL1, x7
2:	msr	sctlr_el1, x12
	b	6f
3:	msr	vbar_el2, x13
	cbz	x6, 4f
	msr	TCR2_EL2, x8
4:	cbz	x5, 5f
	msr	GCSCR_EL2, x7
5:	msr	sctlr_el2, x12
6:	isb
	br	x14

	.org	purgatory_vectors + 0x380	// SError; an external abort, too, with SCTLR2.EASE
	b	trapped

	/* Zeros in the file: with a bss section of its own alignment it would cost a page. */
	.data
	.balign	16
	.type	purgatory_stack, %object
purgatory_stack:
	.skip	2048
	.size	purgatory_stack, . - purgatory_stack
purgatory_stack_top:

	.section .data_end, "aw", %progbits
	.balign	64			// no line of a cache is shared with what follows
	.globl	purgatory_data_end
purgatory_data_end:

	.section .note.GNU-stack, "", %progbits
