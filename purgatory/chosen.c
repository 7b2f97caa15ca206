// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PURGATORY_CHOSEN: what was found, for the kernel that is started, in its
 * device tree. The MMU is off.
 */
#include "options.h"

__kexec_purgatory u64 purgatory_chosen;

/* Big-endian cells, each aligned as the device tree is: to 4 bytes. */
static u32 *put_cell(u32 *cell, u32 value)
{
#ifndef __AARCH64EB__
	value = __builtin_bswap32(value);
#endif
	*cell = value;
	return cell + 1;
}

static u32 *put_cells(u32 *cell, u64 value)
{
	return put_cell(put_cell(cell, value >> 32), value);
}

void chosen(void)
{
	const struct purgatory_verdict *verdict = &purgatory_verdict;
	u64 end = purgatory_chosen + sizeof(struct purgatory_chosen_record);
	u32 i, ranges = verdict->ranges < 8 ? verdict->ranges : 8;
	u32 *cell = (u32 *)(unsigned long)purgatory_chosen;

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
		cell = put_cells(cell, verdict->damage[i].start);
		cell = put_cells(cell, verdict->damage[i].len);
	}
	/* The check has read the device tree: no line of that time may hide what is stored now. */
	dcache_clean_inval_poc(purgatory_chosen, end);
}
