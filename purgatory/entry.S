/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The way into the purgatory, and out of it.
 *
 * Entered with the MMU and the caches off and DAIF masked, at EL1 or EL2, x0 =
 * physical address of the device tree, x1 = x2 = x3 = 0. sp and everything else
 * are whatever the dead kernel left: cpu_soft_restart() resets SCTLR and no more.
 */
#include "el.h"
#include "options.h"

/* On the stack, from sp on: VBAR, SCTLR; device tree, SP of this EL. */
#define FRAME_DTB	16
#ifdef PURGATORY_CALLER
#include "caller.h"
#else
	.macro	caller_keeps_return_address
	.endm
	.macro	caller_keeps_stack
	.endm
	.macro	caller_keeps, reg, from
	.endm
	.macro	push_caller
	.endm
	.macro	caller_gets_answer
	.endm
#endif

	.text

	/* Of the sixteen vectors only four can be taken, from 0x200 on. */
	.balign	2048
purgatory_vectors:

	/* cpu_soft_restart() comes here. */
	.globl	purgatory_start
	.type	purgatory_start, %function
purgatory_start:
	caller_keeps_return_address
	adr	x14, 1f
	b	enter
1:	mov	x29, xzr
	bl	purgatory
decided:
	/*
	 * Go on only with a plain 0: x0 is the device tree's address if the
	 * call above was overwritten, and that stops, too.
	 */
	cbnz	x0, 3f

	/*
	 * The kernel's boot protocol is the contract we were entered with. What
	 * else was set to 0 stays so: a kernel that does not know it expects that.
	 */
	ic	iallu			// what comes next is not what was here
	dsb	nsh
	ldr	x14, purgatory_kernel_entry
	ldp	x13, x12, [sp]		// VBAR, SCTLR
	ldr	x0, [sp, #FRAME_DTB]
	mov	x1, xzr
	mov	x2, xzr
	mov	x3, xzr

#ifdef PURGATORY_CALLER
restore:
#endif
	/* VBAR and SCTLR from x13 and x12, and on to x14; x4 changes. */
	if_el2	x4, 1f
	msr	vbar_el1, x13
	msr	sctlr_el1, x12
	b	2f
1:	msr	vbar_el2, x13
	msr	sctlr_el2, x12
2:	isb
	br	x14

3:
	caller_gets_answer
	.size	purgatory_start, . - purgatory_start

	/* A bad image must not run, and nobody is left to return to. */
	.globl	purgatory_stop
	.type	purgatory_stop, %function
purgatory_stop:
.Lstop:
	wfi
	b	.Lstop			// a local label needs no relocation
	.size	purgatory_stop, . - purgatory_stop

	/* Our state of one exception level; VBAR and SCTLR go to x13 and x12. */
	.macro	own_state, sctlr, off, vbar, tcr2
	mrs	x12, \sctlr
	mrs	x13, \vbar
	mov32	x0, \off
	adr	x1, purgatory_vectors
	msr	\sctlr, x0
	msr	\vbar, x1
	cbz	x6, .Lno_tcr2\@
	caller_keeps x8, \tcr2
	msr	\tcr2, xzr		// no indirect permissions, overlays, protected tables ...
.Lno_tcr2\@:
	isb				// from here on a load is in our byte order
	.endm

#ifdef PURGATORY_NO_GCS
	.macro	own_gcs, gcscr
	.endm
#else
	/* No guarded control stack, if there is one that the kernel may switch on. */
	.macro	own_gcs, gcscr
	has_gcs	x5
	cbz	x5, .Lno_gcs\@
	caller_keeps x7, \gcscr
	msr	\gcscr, xzr
	isb
.Lno_gcs\@:
	.endm
#endif

	/*
	 * x14 is where to go on. Nothing may be loaded or stored, nor called
	 * (that pushes, with a guarded control stack), before the state is ours.
	 *
	 * Then: what a stray store did to us may still be in a cache. There it
	 * would be hidden from a look with the caches off, and be executed with
	 * them on; and it could be written back over what we are going to store.
	 */
enter:
	mov	x15, x0
	has_tcr2 x6
	caller_keeps_stack
	msr	spsel, #1
	if_el2	x0, 1f
	own_state sctlr_el1, SCTLR_EL1_MMU_OFF, vbar_el1, TCR2_EL1
	own_gcs	GCSCR_EL1
	b	2f
1:	own_state sctlr_el2, SCTLR_EL2_MMU_OFF, vbar_el2, TCR2_EL2
	own_gcs	GCSCR_EL2
2:
	adr	x0, purgatory_vectors
	adr	x1, purgatory_data_end
	bl	dcache_clean_inval_poc	// changes x0, x2 to x4
	ic	iallu
	dsb	nsh
	isb
	mov	x1, sp
	adr	x0, purgatory_stack_top
	mov	sp, x0
	push_caller
	stp	x15, x1, [sp, #-16]!
	stp	x13, x12, [sp, #-16]!
	mov	x0, x15
	br	x14

	/* void dcache_clean_inval_poc(start, end): changes x0, x2 to x4 only */
	.globl	dcache_clean_inval_poc
	.type	dcache_clean_inval_poc, %function
dcache_clean_inval_poc:
	line_size x2, x3
	by_line	civac, x0, x1, x2, x3
	ret
	.size	dcache_clean_inval_poc, . - dcache_clean_inval_poc

#ifdef PURGATORY_TRAP
#include "trap.S"
#else
	/* Stops, too, but elsewhere: an exception is no answer. */
	.org	purgatory_vectors + 0x200
	.globl	purgatory_exception
	.type	purgatory_exception, %function
purgatory_exception:
	.rept	4			// synchronous, IRQ, FIQ, SError
1:	wfi
	b	1b
	.balign	128
	.endr
	.size	purgatory_exception, . - purgatory_exception
#endif

	.section .data_start, "aw", %progbits
	.balign	PURGATORY_DATA_ALIGN
	.globl	purgatory_data
purgatory_data:

	/* Zeros in the file: with a bss section of its own alignment it would cost a page. */
	.data
	.balign	16
	.type	purgatory_stack, %object
purgatory_stack:
	.skip	2048
	.size	purgatory_stack, . - purgatory_stack
purgatory_stack_top:

	.section .data_end, "aw", %progbits
	.balign	64			// lines may be longer: by_line takes them whole
	.globl	purgatory_data_end
purgatory_data_end:

	.section .bss_end, "aw", %nobits
	.globl	purgatory_end
purgatory_end:

	.section .note.GNU-stack, "", %progbits
