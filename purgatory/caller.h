/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What entry.S does besides where there is a caller, or a word to say about an
 * exception; nothing in the core. Until the stack is ours x9 is the caller's
 * x30, x10 and x11 are SPSel and SP, x7 and x8 GCSCR and TCR2.
 */
#ifndef CALLER_H
#define CALLER_H

#include "options.h"

/* On the stack, from sp on: VBAR, SCTLR; device tree, SP of this EL; and the caller's state. */
#define FRAME_DTB	16

#ifdef PURGATORY_CALLER
#define FRAME_SIZE	160

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
	cmp	x0, #2			// RETURN_TO_CALLER
	b.ne	.Lstop
	mov	x0, #1
	b	leave
	.endm
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

#endif /* CALLER_H */
