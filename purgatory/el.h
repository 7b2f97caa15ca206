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

/*
 * SCTLR while MMU and caches are off: the bits that have to be 1, our byte order,
 * and A, since Device memory refuses what is not aligned anyway. So whatever the
 * dead kernel had there (EE, WXN, NMI, TCF, nAA ...) is gone.
 */
#ifdef __AARCH64EB__
#define SCTLR_EE		(1 << 25)
#else
#define SCTLR_EE		0
#endif
#define SCTLR_A			(1 << 1)
/* LSMAOE, nTLSMD, SPAN, EIS, TSCXT, EOS; and what is RES1 at EL2 without VHE. */
#define SCTLR_EL1_MMU_OFF	(0x30d00800 | SCTLR_EE | SCTLR_A)
#define SCTLR_EL2_MMU_OFF	(0x30c50830 | SCTLR_EE | SCTLR_A)

/* By their numbers: assemblers know the names for newer profiles of the architecture only. */
#define ID_AA64MMFR3_EL1	s3_0_c0_c7_3
#define MMFR3_TCRX_WIDTH	4		/* from bit 0 on */
#define TCR2_EL1		s3_0_c2_c0_3
#define TCR2_EL2		s3_4_c2_c0_3
#ifndef PURGATORY_NO_GCS
#define PFR1_GCS		(0xf << 44)	/* of ID_AA64PFR1_EL1 */
#define GCSCR_EL1		s3_0_c2_c5_0
#define GCSCR_EL2		s3_4_c2_c5_0
#endif

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

	/*
	 * 0 where the CPU has no TCR2: no such register then. Where it has, Linux
	 * uses it by the same look, and firmware has to let it (booting.rst).
	 */
	.macro	has_tcr2, reg
	mrs	\reg, ID_AA64MMFR3_EL1
	and	\reg, \reg, #(1 << MMFR3_TCRX_WIDTH) - 1
	.endm

#ifndef PURGATORY_NO_GCS
	/*
	 * 0 where the CPU has no guarded control stack, or Linux does not use it:
	 * firmware need not let anybody touch its registers then. Both, as what
	 * the loader has said is not known to be that yet.
	 */
	.macro	has_gcs, reg
	mrs	\reg, id_aa64pfr1_el1
	ands	\reg, \reg, #PFR1_GCS
	b.eq	.Lhas_no_gcs\@
	ldr	\reg, purgatory_gcs
.Lhas_no_gcs\@:
	.endm
#endif

	/* A constant of 32 bits. */
	.macro	mov32, reg, value
	mov	\reg, #(\value) & 0xffff
	movk	\reg, #(\value) >> 16, lsl #16
	.endm

	/* Bytes in the smallest line of a data cache. */
	.macro	line_size, reg, tmp
	mrs	\tmp, ctr_el0
	ubfx	\tmp, \tmp, #16, #4	// DminLine: log2 of words
	mov	\reg, #4
	lsl	\reg, \reg, \tmp
	.endm

	.macro	by_line, op, start, end, size, tmp
	dmb	sy			// in no order otherwise with stores, the MMU off
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
#endif

#endif /* EL_H */
