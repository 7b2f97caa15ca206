/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Entries and exits of the purgatory.
 *
 * Entered with the MMU and the caches off and DAIF masked, at EL1 or EL2, x0 =
 * physical address of the device tree, x1 = x2 = x3 = 0. sp and everything else
 * are whatever the dead kernel left.
 */
#include "el.h"

/* What enter leaves on the stack, from sp on: VBAR, 0, SP of this EL, device tree, and the caller's registers. */
#define FRAME_SIZE	144
#define FRAME_DTB	24

	.text

	/*
	 * The vectors are here, too: of the sixteen only one can be taken, the
	 * synchronous exception of the current EL on its own stack pointer, at
	 * 0x200. Everything else is masked.
	 */
	.balign	4096
purgatory_vectors:

	/* cpu_soft_restart() comes here. */
	.globl	purgatory_start
	.type	purgatory_start, %function
purgatory_start:
	mov	x9, x30			// for PURGATORY_RETURN
	bl	enter
	mov	x1, xzr			// not early
	bl	purgatory
decide:
	/*
	 * Go on only with a plain 0: x0 is the device tree's address if the
	 * call above was overwritten, and that stops, too.
	 */
	cbnz	x0, refused

	/* The kernel's boot protocol is the contract we were entered with. */
	bl	restore_vectors
	ic	iallu			// a repair has written code
	dsb	nsh
	isb
	ldr	x9, purgatory_kernel_entry
	cbnz	x9, 1f
	ldr	x9, purgatory_sha_regions	// the start of the first
1:
	ldr	x0, [sp, #FRAME_DTB]
	mov	x1, xzr
	mov	x2, xzr
	mov	x3, xzr
	br	x9
	.size	purgatory_start, . - purgatory_start

refused:
	cmp	x0, #2
	b.ne	.Lstop
	mov	x0, #1
	b	leave

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
	bl	enter
	mov	x1, #1
	bl	purgatory
	cmp	x0, #0
	cset	x0, ne
	b	leave
	.size	purgatory_check, . - purgatory_check

	/*
	 * What a stray store did to us may still be in a cache: there it would be
	 * hidden from a look with the caches off, and be executed with them on;
	 * and it could be written back over what we are going to store. x9 is the
	 * caller's x30.
	 */
enter:
	mov	x15, x0
	mov	x14, x30
	adr	x0, purgatory_vectors
	adr	x1, purgatory_data_end
	bl	dcache_clean_inval_poc	// changes x0 to x4
	ic	iallu
	dsb	nsh
	isb
	mrs	x10, spsel
	mov	x11, sp
	msr	spsel, #1
	mov	x12, sp
	adr	x13, purgatory_stack_top
	mov	sp, x13
	stp	x19, x20, [sp, #-16]!
	stp	x21, x22, [sp, #-16]!
	stp	x23, x24, [sp, #-16]!
	stp	x25, x26, [sp, #-16]!
	stp	x27, x28, [sp, #-16]!
	stp	x29, x9, [sp, #-16]!
	stp	x10, x11, [sp, #-16]!
	stp	x12, x15, [sp, #-16]!
	adr	x13, purgatory_vectors
	if_el2	x10, 2f
	mrs	x11, vbar_el1
	msr	vbar_el1, x13
	b	3f
2:	mrs	x11, vbar_el2
	msr	vbar_el2, x13
3:	isb
	stp	x11, xzr, [sp, #-16]!
	mov	x0, x15
	mov	x29, xzr
	br	x14

	/* sp is where enter left it: C functions balance it. */
restore_vectors:
	ldr	x11, [sp]
	if_el2	x10, 2f
	msr	vbar_el1, x11
	b	3f
2:	msr	vbar_el2, x11
3:	isb
	ret

	/* Back to the caller with x0. */
leave:
	bl	restore_vectors
	ldr	x12, [sp, #16]
	add	sp, sp, #32
	ldp	x10, x11, [sp], #16
	ldp	x29, x9, [sp], #16
	ldp	x27, x28, [sp], #16
	ldp	x25, x26, [sp], #16
	ldp	x23, x24, [sp], #16
	ldp	x21, x22, [sp], #16
	ldp	x19, x20, [sp], #16
	mov	sp, x12
	msr	spsel, x10
	mov	sp, x11
	ret	x9

	.org	purgatory_vectors + 0x200
	/*
	 * Whatever we were doing, say what happened. The frame of enter is still
	 * there, and the report has the rest of the stack.
	 */
	if_el2	x3, 2f
	mrs	x0, esr_el1
	mrs	x1, elr_el1
	mrs	x2, far_el1
	b	3f
2:	mrs	x0, esr_el2
	mrs	x1, elr_el2
	mrs	x2, far_el2
3:	adr	x3, purgatory_stack_top - FRAME_SIZE
	mov	sp, x3
	bl	purgatory_trapped
	b	decide

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
