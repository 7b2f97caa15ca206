// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Counts the instructions that an emulated CPU starts, stops it exactly, and makes
 * the guest's clock of them.
 *
 * Unicorn calls blockcount_block() at the start of each translated block (a
 * straight run of instructions inside one page). uc_emu_stop() called from there
 * takes effect before the block's first instruction, so that every stop is exact
 * and nothing has to be undone. Python does the same job in counter.py, some
 * fifty times slower; both must behave alike, and a test holds them to it.
 *
 * No libc: this file is built ahead for each host architecture by
 * build_blockcount.py and loaded with ctypes, which also fills in the struct.
 * Keep struct blockcount in step with class BlockCount in counter.py.
 */

typedef unsigned long long u64;
typedef unsigned int u32;

#define FILTER_BITS 4096

/* The generic timer ticks at 62.5 MHz (CNTFRQ_EL0), so this is a CPU of 125 MIPS. */
#define INSTRUCTIONS_PER_TICK 2

enum why {
	WHY_NOTHING,	/* the engine ended by itself: WFI, or an error */
	WHY_STOP,	/* a block starts at one of the stop addresses */
	WHY_LEFT,	/* a block starts outside [within, within + within_size) */
	WHY_DEADLINE,	/* total has reached deadline */
	WHY_MISALIGNED,	/* a block starts at an address that is no multiple of 4 */
	WHY_INTERRUPT,	/* an exception, its Unicorn number in interrupt */
};

struct blockcount {
	u64 total;		/* instructions in all blocks that were started */
	u64 deadline;		/* stop when total is this or more */
	u64 block;		/* virtual address of the last block that was started */
	u64 block_size;		/* its length in bytes */
	u64 within;
	u64 within_size;
	const u64 *stops;	/* virtual addresses, ascending */
	u64 nr_stops;
	int (*emu_stop)(void *uc);
	int (*reg_write)(void *uc, int reg, const void *value);
	u64 elsewhere;		/* instructions that all other CPUs have retired */
	u32 why;
	u32 interrupt;
	u32 first;		/* set: the next block may start at a stop address */
	u32 reserved;
	u64 filter[FILTER_BITS / 64];	/* bit (address / 4) % FILTER_BITS of each stop */
};

static int is_stop(const struct blockcount *bc, u64 virt)
{
	u64 low = 0, high = bc->nr_stops;
	u64 bit = (virt >> 2) % FILTER_BITS;

	if (!(bc->filter[bit / 64] >> (bit % 64) & 1))
		return 0;

	while (low < high) {
		u64 middle = low + (high - low) / 2;

		if (bc->stops[middle] == virt)
			return 1;
		if (bc->stops[middle] < virt)
			low = middle + 1;
		else
			high = middle;
	}

	return 0;
}

static void stop(void *uc, struct blockcount *bc, u32 why)
{
	/*
	 * Unicorn may start one more block of its own after a stop request; what
	 * stopped us first is the truth.
	 */
	if (bc->why == WHY_NOTHING)
		bc->why = why;
	bc->emu_stop(uc);
}

/* UC_HOOK_BLOCK */
void blockcount_block(void *uc, u64 virt, u32 size, struct blockcount *bc)
{
	u32 first = bc->first;

	bc->first = 0;

	if (virt - bc->within >= bc->within_size) {
		stop(uc, bc, WHY_LEFT);
	} else if (bc->nr_stops && !first && is_stop(bc, virt)) {
		stop(uc, bc, WHY_STOP);
	} else if (bc->total >= bc->deadline) {
		stop(uc, bc, WHY_DEADLINE);
	} else if (virt & 3) {
		stop(uc, bc, WHY_MISALIGNED);
	} else {
		bc->block = virt;
		bc->block_size = size;
		bc->total += size / 4;
	}
}

/* UC_HOOK_INTR */
void blockcount_interrupt(void *uc, u32 number, struct blockcount *bc)
{
	bc->interrupt = number;
	stop(uc, bc, WHY_INTERRUPT);
}

/* uc_arm64_cp_reg: the system register that an MRS or MSR names */
struct cp_reg {
	u32 crn, crm, op0, op1, op2;
	u64 val;
};

/*
 * UC_HOOK_INSN for MRS: CNTPCT_EL0 and CNTVCT_EL0 count instructions. Unicorn's
 * own read the host's clock, and no two runs would be the same. Everything else
 * is left to Unicorn (returns 0).
 */
u32 blockcount_mrs(void *uc, int reg, const struct cp_reg *cp, struct blockcount *bc)
{
	u64 ticks;

	if (cp->crn != 14 || cp->crm != 0 || cp->op0 != 3 || cp->op1 != 3 ||
	    (cp->op2 != 1 && cp->op2 != 2))
		return 0;

	ticks = (bc->elsewhere + bc->total) / INSTRUCTIONS_PER_TICK;
	bc->reg_write(uc, reg, &ticks);
	return 1;
}
