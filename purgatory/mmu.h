/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MMU_H
#define MMU_H

#include "purgatory.h"

/* 1 at EL2 without VHE, where registers and descriptors are EL2's own; 0 at EL1 and with VHE. */
int at_plain_el2(void);
int at_el2(void);

int region_sane(const struct kexec_sha_region *region);

/* Build the identity map; 0 if it cannot be done, and the MMU has to stay off. */
int mmu_prepare(int writable);
void mmu_on(void);
void mmu_off(void);

/* cache.S */
struct mmu_registers {
	u64 mair, tcr, ttbr0, sctlr;
};
void mmu_enable(const struct mmu_registers *new, u64 start, u64 end);
void mmu_disable(const struct mmu_registers *old, u64 start, u64 end);
void dcache_clean_inval_poc(u64 start, u64 end);

#endif /* MMU_H */
