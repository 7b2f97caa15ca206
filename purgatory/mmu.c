// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PURGATORY_CACHES: an identity map of what the check reads, so that it runs
 * with the caches on.
 *
 * With them off a check of a usual image takes tens of seconds. Nothing is in
 * the map that is not needed: own code can be executed and not written, own
 * data the other way round, the regions can only be read. The UART is not there
 * at all: nothing is printed while the MMU is on.
 */
#include "options.h"
#include "sysreg.h"

#ifndef __KERNEL__
__kexec_purgatory u64 purgatory_no_mmu;
#endif

#define PTE_VALID		BIT(0)
#define PTE_TABLE		BIT(1)	/* at the last level: a page */
#define PTE_AP1			BIT(6)	/* EL2 without VHE: has to be 1 */
#define PTE_RDONLY		BIT(7)
#define PTE_SH_INNER		(3UL << 8)
#define PTE_AF			BIT(10)
#define PTE_PXN			BIT(53)
#define PTE_UXN			BIT(54)	/* EL2 without VHE: the only XN */
#define PTE_ADDR_MASK		0x0000fffffffff000UL

/* 4 KiB granule, 48 bits: four levels of 9 bits each. */
#define LEVEL_SHIFT(level)	(39 - 9 * (level))
#define LAST_LEVEL		3
#define VA_BITS			48	/* what lies above is checked with the MMU off */

#define MAIR_NORMAL_WB		0xffUL		/* attribute 0: write-back, allocate */
#define TCR_T0SZ		(64UL - VA_BITS)
#define TCR_WALKS_CACHED	(BIT(8) | BIT(10) | 3UL << 12)
#define TCR_EPD1		BIT(23)	/* no walks by TTBR1, whatever is in it */
#define TCR_TG1_4K		(2UL << 30)	/* 0 would be reserved */
#define TCR_EL1_IPS_SHIFT	32
#define TCR_EL2_PS_SHIFT	16
#define TCR_EL2_RES1		(BIT(31) | BIT(23))

#define SCTLR_M			BIT(0)
#define SCTLR_C			BIT(2)
#define SCTLR_I			BIT(12)

/*
 * A crash image lies in one or two places. Where regions are in many, and it
 * takes more, the MMU stays off.
 */
#define TABLES			24

#define sysreg_read_el(reg) \
	(at_plain_el2() ? sysreg_read(reg##_el2) : sysreg_read(reg##_el1))

/* Page tables, and room to align them here: a loader would pad the whole file for it. */
static u8 table_area[(TABLES + 1) * PURGATORY_PAGE_SIZE];
static u64 tables_used __purgatory_data;
static struct mmu_registers old __purgatory_data, new __purgatory_data;

u32 mmu_prepared __purgatory_data, mmu_is_on __purgatory_data;

static unsigned long tables_start(void)
{
	return ((unsigned long)table_area + PURGATORY_PAGE_SIZE - 1) & -PURGATORY_PAGE_SIZE;
}

static u64 *new_table(void)
{
	unsigned long at = tables_start() + PURGATORY_PAGE_SIZE * tables_used;
	u64 *table = (u64 *)at;
	int i;

	if (tables_used == TABLES)
		return NULL;
	tables_used++;
	for (i = 0; i < 512; i++) {
		table[i] = 0;
		barrier();		/* a loop, and no call of memset() */
	}
	return table;
}

/*
 * Map [start, end) to itself with the largest blocks that fit. 0: no room, or
 * something else is there.
 */
static int map(u64 *table, int level, u64 start, u64 end, u64 attributes)
{
	u64 size = 1UL << LEVEL_SHIFT(level);
	u64 next;

	for (; start < end; start = next) {
		u64 *entry = &table[start >> LEVEL_SHIFT(level) & 511];
		u64 *below;

		next = (start | (size - 1)) + 1;
		if (next > end)
			next = end;
		if (level > 0 && next - start == size && !*entry) {
			*entry = start | attributes | PTE_VALID;
			if (level == LAST_LEVEL)
				*entry |= PTE_TABLE;
			continue;
		}
		if (!*entry) {
			below = level < LAST_LEVEL ? new_table() : NULL;
			if (!below)
				return 0;
			*entry = (unsigned long)below | PTE_TABLE | PTE_VALID;
		}
		if (level == LAST_LEVEL || !(*entry & PTE_TABLE))
			return 0;
		below = (u64 *)(unsigned long)(*entry & PTE_ADDR_MASK);
		if (!map(below, level + 1, start, next, attributes))
			return 0;
	}
	return 1;
}

static int map_pages(u64 *top, u64 start, u64 len, u64 attributes)
{
	u64 end = start + len;

	if (!len)
		return 1;
	if (end < start || (end - 1) >> VA_BITS)
		return 0;
	start &= -PURGATORY_PAGE_SIZE;
	end = (end + PURGATORY_PAGE_SIZE - 1) & -PURGATORY_PAGE_SIZE;
	return map(top, 0, start, end, attributes);
}

static int build_map(u64 rights)
{
	u64 features = sysreg_read(id_aa64mmfr0_el1);
	u64 pa_range = features & 0xf;
	u64 granule_4k = features >> 28 & 0xf;	/* 0 and 1: there, 15: not */
	unsigned long code_start = (unsigned long)purgatory_start;
	unsigned long data = (unsigned long)purgatory_data;
	u64 normal = PTE_AF | PTE_SH_INNER;
	u64 never = PTE_UXN, code = 0, regions;
	u64 *top;
	int i;

#ifndef __KERNEL__
	if (purgatory_no_mmu)
		return 0;
#endif
	if (granule_4k > 1)
		return 0;
	if (at_plain_el2()) {
		normal |= PTE_AP1;
	} else {
		never |= PTE_PXN;
		code = PTE_UXN;
	}
	regions = normal | never | rights;

	dcache_clean_inval_poc(tables_start(), tables_start() + TABLES * PURGATORY_PAGE_SIZE);
	tables_used = 0;
	top = new_table();
	if (!map_pages(top, code_start, data - code_start, normal | code | PTE_RDONLY) ||
	    !map_pages(top, data, (unsigned long)purgatory_end - data, normal | never))
		return 0;
	for (i = 0; i < KEXEC_SEGMENT_MAX; i++) {
		const struct kexec_sha_region *region = &purgatory_sha_regions[i];

		if (!map_pages(top, region->start, region->len, regions))
			return 0;
	}
#ifdef PURGATORY_REPAIR
	if (!map_pages(top, purgatory_copy, copy_len(), normal | never | PTE_RDONLY))
		return 0;
#endif

	if (pa_range > 5)
		pa_range = 5;			/* 48 bits, all that this granule has */
	old.mair = sysreg_read_el(mair);
	old.tcr = sysreg_read_el(tcr);
	old.ttbr0 = at_plain_el2() ? sysreg_read(s3_4_c2_c0_0) : sysreg_read(ttbr0_el1);
	old.sctlr = sysreg_read_el(sctlr);
	new.mair = MAIR_NORMAL_WB;
	new.tcr = TCR_T0SZ | TCR_WALKS_CACHED;
	new.tcr |= at_plain_el2() ? pa_range << TCR_EL2_PS_SHIFT | TCR_EL2_RES1 :
				    pa_range << TCR_EL1_IPS_SHIFT | TCR_EPD1 | TCR_TG1_4K;
	new.ttbr0 = (unsigned long)top;
	new.sctlr = old.sctlr | SCTLR_M | SCTLR_C | SCTLR_I;
	return 1;
}

static void prepare(u64 rights)
{
	mmu_prepared = build_map(rights);
#ifdef PURGATORY_RECORD
	if (mmu_prepared)
		record_flag(PURGATORY_FLAG_MMU_ON);
#endif
}

void caches_prepare(void)
{
	prepare(PTE_RDONLY);
}

#ifdef PURGATORY_REPAIR
void caches_prepare_writable(void)
{
	prepare(0);
}
#endif

/* Own data and the tables, in one piece: all that is stored to. */
void caches_on(void)
{
	if (!mmu_prepared)
		return;
	mmu_is_on = 1;
	mmu_enable(&new, (unsigned long)purgatory_data, (unsigned long)purgatory_end);
}

void caches_off(void)
{
	if (!mmu_is_on)
		return;
	mmu_disable(&old, (unsigned long)purgatory_data, (unsigned long)purgatory_end);
	mmu_is_on = 0;
}
