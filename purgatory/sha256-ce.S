/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SHA-256 by the instructions that ARMv8 may have for it (ID_AA64ISAR0_EL1.SHA2).
 */
#include "el.h"
#include "options.h"

	.arch	armv8-a+crypto
	.text

#ifdef PURGATORY_CALLER
	/* v0-v9 and v16-v31 are the caller's, if it is still alive: x0 is where they go. */
	.macro	for_each_pair, op
	\op	q0, q1, [x0]
	\op	q2, q3, [x0, #32]
	\op	q4, q5, [x0, #64]
	\op	q6, q7, [x0, #96]
	\op	q8, q9, [x0, #128]
	\op	q16, q17, [x0, #160]
	\op	q18, q19, [x0, #192]
	\op	q20, q21, [x0, #224]
	\op	q22, q23, [x0, #256]
	\op	q24, q25, [x0, #288]
	\op	q26, q27, [x0, #320]
	\op	q28, q29, [x0, #352]
	\op	q30, q31, [x0, #384]
	.endm

	/* void fpsimd_save(void *to) */
	.globl	fpsimd_save
	.type	fpsimd_save, %function
fpsimd_save:
	for_each_pair stp
	ret
	.size	fpsimd_save, . - fpsimd_save

	/* void fpsimd_restore(const void *from) */
	.globl	fpsimd_restore
	.type	fpsimd_restore, %function
fpsimd_restore:
	for_each_pair ldp
	ret
	.size	fpsimd_restore, . - fpsimd_restore
#endif

	/*
	 * u64 fpsimd_begin(u64 sme): nobody has switched the unit on;
	 * returns what end wants. With SME the dead kernel may have left the CPU in
	 * streaming mode, where the instructions below are illegal: out of it.
	 */
	.globl	fpsimd_begin
	.type	fpsimd_begin, %function
fpsimd_begin:
	if_el2	x2, 1f
	mrs	x3, cpacr_el1
	orr	x2, x3, #(3 << 20)	// FPEN: no trap
	orr	x4, x2, #(3 << 24)	// SMEN
	cmp	x0, #0
	csel	x2, x2, x4, eq
	msr	cpacr_el1, x2
	b	2f
1:	mrs	x3, cptr_el2
	and	x2, x3, #~(1 << 10)	// TFP
	and	x4, x2, #~(1 << 12)	// TSM, RES1 without
	cmp	x0, #0
	csel	x2, x2, x4, eq
	msr	cptr_el2, x2
2:	isb
	cbz	x0, 3f
	.inst	0xd503427f		// smstop sm
3:	mov	x0, x3
	ret
	.size	fpsimd_begin, . - fpsimd_begin

	/* void fpsimd_end(u64 control) */
	.globl	fpsimd_end
	.type	fpsimd_end, %function
fpsimd_end:
	if_el2	x2, 1f
	msr	cpacr_el1, x0
	isb
	ret
1:	msr	cptr_el2, x0
	isb
	ret
	.size	fpsimd_end, . - fpsimd_end

	/* Four rounds with the words in \w and the constants in \k. */
	.macro	rounds, w, k
	add	v3.4s, \w\().4s, \k\().4s
	mov	v2.16b, v0.16b
	sha256h	q0, q1, v3.4s
	sha256h2 q1, q2, v3.4s
	.endm

	/* The same, and make the words that follow 12 later in place of \w. */
	.macro	rounds_and_words, w, w1, w2, w3, k
	add	v3.4s, \w\().4s, \k\().4s
	sha256su0 \w\().4s, \w1\().4s
	mov	v2.16b, v0.16b
	sha256h	q0, q1, v3.4s
	sha256h2 q1, q2, v3.4s
	sha256su1 \w\().4s, \w2\().4s, \w3\().4s
	.endm

	/* void sha256_ce_blocks(u32 state[8], const u8 *data, u64 blocks): blocks is not 0 */
	.globl	sha256_ce_blocks
	.type	sha256_ce_blocks, %function
sha256_ce_blocks:
	adr	x3, sha256_k
	ld1	{v16.4s - v19.4s}, [x3], #64
	ld1	{v20.4s - v23.4s}, [x3], #64
	ld1	{v24.4s - v27.4s}, [x3], #64
	ld1	{v28.4s - v31.4s}, [x3]
	ld1	{v0.4s, v1.4s}, [x0]
1:	ld1	{v4.16b - v7.16b}, [x1], #64	// elements of a byte: aligned wherever they lie
	mov	v8.16b, v0.16b
	mov	v9.16b, v1.16b
	rev32	v4.16b, v4.16b
	rev32	v5.16b, v5.16b
	rev32	v6.16b, v6.16b
	rev32	v7.16b, v7.16b
	rounds_and_words v4, v5, v6, v7, v16
	rounds_and_words v5, v6, v7, v4, v17
	rounds_and_words v6, v7, v4, v5, v18
	rounds_and_words v7, v4, v5, v6, v19
	rounds_and_words v4, v5, v6, v7, v20
	rounds_and_words v5, v6, v7, v4, v21
	rounds_and_words v6, v7, v4, v5, v22
	rounds_and_words v7, v4, v5, v6, v23
	rounds_and_words v4, v5, v6, v7, v24
	rounds_and_words v5, v6, v7, v4, v25
	rounds_and_words v6, v7, v4, v5, v26
	rounds_and_words v7, v4, v5, v6, v27
	rounds	v4, v28
	rounds	v5, v29
	rounds	v6, v30
	rounds	v7, v31
	add	v0.4s, v0.4s, v8.4s
	add	v1.4s, v1.4s, v9.4s
	sub	x2, x2, #1
	cbnz	x2, 1b
	st1	{v0.4s, v1.4s}, [x0]
	ret
	.size	sha256_ce_blocks, . - sha256_ce_blocks

	.section .note.GNU-stack, "", %progbits
