// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the purgatory says: to people on the console, to the kernel that it
 * starts in the device tree. All of this with the MMU off.
 */
#include "locate.h"
#include "mmu.h"
#include "report.h"

static struct purgatory_verdict *const verdict = &purgatory_verdict;

void report_line(const char *what)
{
	console_puts("purgatory: ");
	console_puts(what);
	console_puts("\n");
}

void report_start(void)
{
	u64 bytes = 0;
	u32 regions = 0;
	int i;

	for (i = 0; i < KEXEC_SEGMENT_MAX; i++) {
		if (!purgatory_sha_regions[i].len)
			continue;
		regions++;
		bytes += purgatory_sha_regions[i].len;
	}
	console_puts("purgatory: checking ");
	console_put_dec(regions);
	console_puts(" regions, ");
	console_put_hex(bytes);
	console_puts(" bytes");
	if (verdict->flags & PURGATORY_MMU_ON)
		console_puts(", caches on");
	if (verdict->flags & PURGATORY_CRYPTO)
		console_puts(", SHA-2 instructions");
	console_puts("\n");
}

static void put_digests(const char *indent, const u8 *expected, const u8 *found)
{
	console_puts(indent);
	console_puts("expected ");
	console_put_digest(expected);
	console_puts("\n");
	console_puts(indent);
	console_puts("found    ");
	console_put_digest(found);
	console_puts("\n");
}

static int region_at(u64 phys)
{
	int i;

	for (i = 0; i < KEXEC_SEGMENT_MAX - 1; i++)
		if (phys - purgatory_sha_regions[i].start < purgatory_sha_regions[i].len)
			break;
	return i;
}

/* One range: which region, where, and the digests of the first piece in it. */
static void report_range(u64 start, u64 len)
{
	int region = region_at(start);
	u8 found[SHA256_DIGEST_SIZE] __attribute__((aligned(8)));
	u64 offset = start - purgatory_sha_regions[region].start;

	console_puts("purgatory: damaged: region ");
	console_put_dec(region);
	console_puts(", ");
	console_put_hex(start);
	console_puts("-");
	console_put_hex(start + len - 1);
	console_puts("\n");
	if (!verdict->damaged_pages || purgatory_page_digests == start) {
		put_digests("purgatory:   ", purgatory_region_digests[region], purgatory_found[region]);
		return;
	}
	if (verdict->flags & PURGATORY_REPAIRED)
		return;			/* it is as expected by now */
	digest_of(start, len < PURGATORY_PAGE_SIZE ? len : PURGATORY_PAGE_SIZE, found);
	put_digests("purgatory:   page ", page_digest(region, offset), found);
}

void report_mismatch(void)
{
	u32 i;

	if (verdict->damaged & PURGATORY_SELF) {
		report_line("the purgatory itself is damaged");
		return;
	}
	if (verdict->damaged & PURGATORY_DTB) {
		report_line("x0 is not the device tree that was loaded");
		return;
	}
	report_line("digests do NOT match");
	put_digests("purgatory: ", verdict->expected, verdict->found);
	for (i = 0; i < verdict->ranges; i++)
		report_range(verdict->damage[i].start, verdict->damage[i].len);
	if (!verdict->damaged_pages)
		return;
	console_puts("purgatory: damaged pages: ");
	console_put_dec(verdict->damaged_pages);
	console_puts("\n");
}

void report_trap(void)
{
	console_puts("purgatory: exception, ESR ");
	console_put_hex(verdict->esr);
	console_puts(" at ");
	console_put_hex(verdict->elr);
	console_puts(", FAR ");
	console_put_hex(verdict->far);
	console_puts("\n");
}

/* Big-endian cells, each aligned as the device tree is: to 4 bytes. */
static volatile u32 *put_cell(volatile u32 *cell, u32 value)
{
#ifndef __AARCH64EB__
	value = __builtin_bswap32(value);
#endif
	*cell = value;
	return cell + 1;
}

void record_in_device_tree(void)
{
	volatile u32 *cell = (volatile u32 *)purgatory_chosen;
	u32 i, ranges = verdict->ranges < 8 ? verdict->ranges : 8;

	u64 end = purgatory_chosen + sizeof(struct purgatory_chosen_record);

	if (!cell || purgatory_chosen % 4)
		return;
	dcache_clean_inval_poc(purgatory_chosen, end);
	cell = put_cell(cell, verdict->version);
	cell = put_cell(cell, verdict->state);
	cell = put_cell(cell, verdict->flags);
	cell = put_cell(cell, verdict->damaged);
	cell = put_cell(cell, ranges);
	cell = put_cell(cell, verdict->damaged_pages);
	for (i = 0; i < ranges; i++) {
		cell = put_cell(cell, verdict->damage[i].start >> 32);
		cell = put_cell(cell, verdict->damage[i].start);
		cell = put_cell(cell, verdict->damage[i].len >> 32);
		cell = put_cell(cell, verdict->damage[i].len);
	}
	/* The check has read the device tree: no line of that time may hide what was just stored. */
	dcache_clean_inval_poc(purgatory_chosen, end);
}
