// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * An identity map of what the check reads, so that it runs with the caches on.
 *
 * With them off a check of a usual image takes tens of seconds. Nothing is in
 * the map that is not needed: own code can be executed and not written, own
 * data the other way round, the regions can only be read. The UART is not there
 * at all: nothing is printed while the MMU is on.
 */
#include "el.h"
#include "locate.h"
#include "mmu.h"

#define PTE_VALID		(1UL << 0)
#define PTE_TABLE		(1UL << 1)	/* at the last level: a page */
#define PTE_AP1			(1UL << 6)	/* EL2 without VHE: has to be 1 */
#define PTE_RDONLY		(1UL << 7)
#define PTE_SH_INNER		(3UL << 8)
#define PTE_AF			(1UL << 10)
#define PTE_PXN			(1UL << 53)
#define PTE_UXN			(1UL << 54)	/* EL2 without VHE: the only XN */
#define PTE_ADDR_MASK		0x0000fffffffff000UL

/* 4 KiB granule, 48 bits: four levels of 9 bits each. */
#define LEVEL_SHIFT(level)	(39 - 9 * (level))
#define LAST_LEVEL		3
#define VA_BITS			48
#define PA_BITS			52	/* above VA_BITS it is checked with the MMU off */

#define MAIR_NORMAL_WB		0xffUL		/* attribute 0: write-back, allocate */
#define TCR_T0SZ		(64UL - VA_BITS)
#define TCR_WALKS_CACHED	(1UL << 8 | 1UL << 10 | 3UL << 12)
#define TCR_EPD1		(1UL << 23)	/* no walks by TTBR1, whatever is in it */
#define TCR_TG1_4K		(2UL << 30)	/* 0 would be reserved */
#define TCR_EL1_IPS_SHIFT	32
#define TCR_EL2_PS_SHIFT	16
#define TCR_EL2_RES1		(1UL << 31 | 1UL << 23)

#define SCTLR_M			(1UL << 0)
#define SCTLR_C			(1UL << 2)
#define SCTLR_I			(1UL << 12)

/* Enough for sixteen regions in two places of memory; with more tables than these the MMU stays off. */
#define TABLES			24

#define read_sysreg(reg) ({					\
	u64 __value;						\
	__asm__ volatile("mrs %0, " #reg : "=r" (__value));	\
	__value;						\
})
#define read_sysreg_el(reg) \
	(at_plain_el2() ? read_sysreg(reg##_el2) : read_sysreg(reg##_el1))

extern const u8 purgatory_start[];

/* Page tables, and room to align them here: a loader would pad the whole file for it. */
static u8 table_area[(TABLES + 1) * PURGATORY_PAGE_SIZE];
static u64 tables_used __purgatory_data;
static struct mmu_registers old __purgatory_data, new __purgatory_data;

int at_el2(void)
{
	return read_sysreg(CurrentEL) == CurrentEL_EL2;
}

int at_plain_el2(void)
{
	return at_el2() && !(read_sysreg(hcr_el2) >> HCR_E2H_SHIFT & 1);
}

static u64 tables_start(void)
{
	return ((u64)table_area + PURGATORY_PAGE_SIZE - 1) & -PURGATORY_PAGE_SIZE;
}

static u64 *new_table(void)
{
	u64 *table = (u64 *)(tables_start() + tables_used * PURGATORY_PAGE_SIZE);
	int i;

	if (tables_used == TABLES)
		return 0;
	tables_used++;
	for (i = 0; i < 512; i++)
		((volatile u64 *)table)[i] = 0;
	return table;
}

/* Map [start, end) to itself with the largest blocks that fit. 0: no room, or something else is there. */
static int map(u64 *table, int level, u64 start, u64 end, u64 attributes)
{
	u64 size = 1UL << LEVEL_SHIFT(level);
	u64 next;

	for (; start < end; start = next) {
		u64 *entry = &table[start >> LEVEL_SHIFT(level) & 511];

		next = (start | (size - 1)) + 1;
		if (next > end)
			next = end;
		if (level > 0 && next - start == size && !*entry) {
			*entry = start | attributes | PTE_VALID | (level == LAST_LEVEL ? PTE_TABLE : 0);
			continue;
		}
		if (!*entry) {
			u64 *below = level < LAST_LEVEL ? new_table() : 0;

			if (!below)
				return 0;
			*entry = (u64)below | PTE_TABLE | PTE_VALID;
		}
		if (level == LAST_LEVEL || !(*entry & PTE_TABLE))
			return 0;
		if (!map((u64 *)(*entry & PTE_ADDR_MASK), level + 1, start, next, attributes))
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

/* A region that wraps, lies where no memory can be or on ourselves was not loaded: its table is damaged. */
int region_sane(const struct kexec_sha_region *region)
{
	u64 end = region->start + region->len;

	if (!region->len)
		return 1;
	return end > region->start && !((end - 1) >> PA_BITS) &&
	       (end <= (u64)purgatory_start || region->start >= (u64)table_area + sizeof(table_area));
}

int mmu_prepare(int writable)
{
	u64 features = read_sysreg(id_aa64mmfr0_el1);
	u64 pa_range = features & 0xf;
	u64 granule_4k = features >> 28 & 0xf;	/* 0 and 1: there, 15: not */
	u64 data = (u64)&purgatory_verdict;
	u64 normal = PTE_AF | PTE_SH_INNER;
	u64 never = PTE_UXN, code = 0, readonly, total = 0;
	u64 *top;
	int i;

	if (purgatory_no_mmu || granule_4k > 1)
		return 0;
	if (at_plain_el2()) {
		normal |= PTE_AP1;
	} else {
		never |= PTE_PXN;
		code = PTE_UXN;
	}
	readonly = normal | never | (writable ? 0 : PTE_RDONLY);

	dcache_clean_inval_poc(tables_start(), tables_start() + TABLES * PURGATORY_PAGE_SIZE);
	tables_used = 0;
	top = new_table();
	if (!map_pages(top, (u64)purgatory_start, data - (u64)purgatory_start,
		       normal | code | PTE_RDONLY) ||
	    !map_pages(top, data, (u64)table_area - data + sizeof(table_area), normal | never))
		return 0;
	for (i = 0; i < KEXEC_SEGMENT_MAX; i++) {
		const struct kexec_sha_region *region = &purgatory_sha_regions[i];

		if (!map_pages(top, region->start, region->len, readonly))
			return 0;
		if (!is_table(i))
			total += region->len;
	}
	if (purgatory_copy && !map_pages(top, purgatory_copy, total, normal | never | PTE_RDONLY))
		return 0;

	if (pa_range > 5)
		pa_range = 5;			/* 48 bits, all that this granule has */
	old.mair = read_sysreg_el(mair);
	old.tcr = read_sysreg_el(tcr);
	old.ttbr0 = at_plain_el2() ? read_sysreg(s3_4_c2_c0_0) : read_sysreg(ttbr0_el1);
	old.sctlr = read_sysreg_el(sctlr);
	new.mair = MAIR_NORMAL_WB;
	new.tcr = TCR_T0SZ | TCR_WALKS_CACHED;
	new.tcr |= at_plain_el2() ? pa_range << TCR_EL2_PS_SHIFT | TCR_EL2_RES1 :
				    pa_range << TCR_EL1_IPS_SHIFT | TCR_EPD1 | TCR_TG1_4K;
	new.ttbr0 = (u64)top;
	new.sctlr = old.sctlr | SCTLR_M | SCTLR_C | SCTLR_I;
	return 1;
}

/* Own data and the tables, in one piece: all that is stored to. */
void mmu_on(void)
{
	mmu_enable(&new, (u64)&purgatory_verdict, (u64)table_area + sizeof(table_area));
}

void mmu_off(void)
{
	mmu_disable(&old, (u64)&purgatory_verdict, (u64)table_area + sizeof(table_area));
}
