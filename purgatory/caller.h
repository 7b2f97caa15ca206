/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * PURGATORY_CALLER: what entry.S does besides where somebody waits for an answer.
 * Until the stack is ours x9 is the caller's x30, x10 and x11 are SPSel and SP, x7
 * and x8 GCSCR and TCR2.
 */
#ifndef CALLER_H
#define CALLER_H

/* What push_caller takes. */
#define CALLER_SIZE	144

	.macro	caller_keeps_return_address
	mov	x9, x30
	.endm

	.macro	caller_keeps_stack
	mov	x7, xzr
	mov	x8, xzr
	mrs	x10, spsel
	mov	x11, sp
	.endm

	.macro	caller_keeps, reg, from
	mrs	\reg, \from
	.endm

	.macro	push_caller
	stp	x18, xzr, [sp, #-16]!	// its shadow call stack may be there
	stp	x19, x20, [sp, #-16]!
	stp	x21, x22, [sp, #-16]!
	stp	x23, x24, [sp, #-16]!
	stp	x25, x26, [sp, #-16]!
	stp	x27, x28, [sp, #-16]!
	stp	x29, x9, [sp, #-16]!
	stp	x10, x11, [sp, #-16]!
	stp	x8, x7, [sp, #-16]!
	.endm

	/* With PURGATORY_POLICY_RETURN it has jumped here, not called. */
	.macro	caller_gets_answer
	cmp	x0, #RETURN_TO_CALLER
	b.ne	.Lstop
	mov	x0, #1
	b	leave
	.endm
#endif /* CALLER_H */
