/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Entry and exit of the purgatory.
 *
 * Entered by cpu_soft_restart with the MMU and the caches off, DAIF masked, at
 * EL1 or EL2, x0 = physical address of the device tree, x1 = x2 = x3 = 0. sp
 * and everything else are whatever the dead kernel left.
 */

	.text

	.balign	4
	.globl	purgatory_start
	.type	purgatory_start, %function
purgatory_start:
	adr	x9, purgatory_stack_top
	mov	sp, x9
	mov	x19, x0			// a C function preserves x19
	bl	purgatory
	/*
	 * Go on only with a plain 0: x0 is the device tree's address if the
	 * call above was overwritten, and that stops, too.
	 */
	cbnz	x0, .Lstop

	/* The kernel's boot protocol is the contract we were entered with. */
	ldr	x9, purgatory_kernel_entry
	mov	x0, x19
	mov	x1, xzr
	mov	x2, xzr
	mov	x3, xzr
	br	x9
	.size	purgatory_start, . - purgatory_start

	/* A bad image must not run, and nobody is left to return to. */
	.globl	purgatory_stop
	.type	purgatory_stop, %function
purgatory_stop:
.Lstop:
	wfi
	b	.Lstop			// a local label needs no relocation
	.size	purgatory_stop, . - purgatory_stop

	/* No initial content is needed, so that it takes no room in the file. */
	.bss
	.balign	16
	.type	purgatory_stack, %object
purgatory_stack:
	.skip	4096
	.size	purgatory_stack, . - purgatory_stack
purgatory_stack_top:

	.section .note.GNU-stack, "", %progbits
