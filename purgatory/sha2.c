// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PURGATORY_SHA2: SHA-256 by the CPU's own instructions, where it has them.
 */
#include "options.h"
#include "sysreg.h"

#ifdef __KERNEL__
#include "sha256-k.h"
#endif

#ifndef __KERNEL__
__kexec_purgatory u64 purgatory_no_crypto;
#endif

__kexec_purgatory u64 purgatory_sme;

u32 sha2_in_use __purgatory_data;

#ifdef PURGATORY_CALLER
static u8 fpsimd_saved[FPSIMD_SAVE_SIZE] __purgatory_data __aligned(16);
#endif
static u64 fpsimd_control __purgatory_data;

void sha2_begin(void)
{
	u64 sha2 = sysreg_read(id_aa64isar0_el1) >> 12 & 0xf;

#ifndef __KERNEL__
	if (purgatory_no_crypto)
		return;
#endif
	if (!sha2)
		return;
#ifdef PURGATORY_EARLY
	/* Only 128 bits of their vectors would come back, and no streaming mode. */
	if (is_early() && (sysreg_read(id_aa64pfr0_el1) >> 32 & 0xf ||
			   sysreg_read(id_aa64pfr1_el1) >> 24 & 0xf))
		return;
#endif
	fpsimd_control = fpsimd_begin(purgatory_sme);
#ifdef PURGATORY_CALLER
	fpsimd_save(fpsimd_saved);
#endif
	sha2_in_use = 1;
	record_flag(PURGATORY_FLAG_CRYPTO);
}

/* An incomplete block, and what is left of the last one, is for sha256_update(). */
void sha2_update(struct sha256_ctx *sctx, unsigned long *start, unsigned long *len)
{
	unsigned long blocks = *len / SHA256_BLOCK_SIZE;

	if (!sha2_in_use || *sha256_count(sctx) % SHA256_BLOCK_SIZE || !blocks)
		return;
	sha256_ce_blocks(sha256_words(sctx), (const u8 *)*start, blocks);
	*sha256_count(sctx) += blocks * SHA256_BLOCK_SIZE;
	*start += blocks * SHA256_BLOCK_SIZE;
	*len %= SHA256_BLOCK_SIZE;
}

void sha2_end(void)
{
	if (!sha2_in_use)
		return;
#ifdef PURGATORY_CALLER
	fpsimd_restore(fpsimd_saved);
#endif
	fpsimd_end(fpsimd_control);
	sha2_in_use = 0;
}
