// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Counts the instructions that an emulated CPU starts, stops it exactly, and makes
 * the guest's clock of them. For a guest that is a whole operating system it also
 * takes the exceptions that need no thought.
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

/* Unicorn's numbers of registers (enum uc_arm64_reg) and exceptions; a test holds them to Unicorn's own. */
#define REG_SP		4
#define REG_XZR		7
#define REG_PC		260
#define REG_ELR_EL1	267
#define REG_SP_EL0	270
#define REG_SP_EL1	271
#define REG_ESR_EL1	277
#define REG_FAR_EL1	281
#define REG_VBAR_EL1	287
#define REG_PSTATE	265
#define REG_CP_REG	290

#define EXCP_UDEF	1
#define EXCP_SWI	2
#define EXCP_PREFETCH	3
#define EXCP_DATA	4
#define EXCP_HVC	11
#define EXCP_SMC	13

#define PSTATE_SP	(1 << 0)
#define PSTATE_EL	(3 << 2)
#define PSTATE_I	(1 << 7)
#define PSTATE_DAIF	(0xf << 6)
#define PSTATE_EL1H	(1 << 2 | PSTATE_SP)
#define PSTATE_KEPT	(0xfu << 28 | 1 << 22)	/* NZCV and PAN */

#define ESR_IL		(1u << 25)

/* What the host's work costs a guest, in instructions; work.py says what for. */
#define WORK_EXCEPTION		500
#define WORK_MAINTENANCE	5000

/*
 * The engine sees a store to code that it has translated only through a mapping
 * that is executable; Linux patches itself, and loads programs, through others.
 * As on silicon, the guest's IC is what makes the change count. LINE is A57's.
 */
#define LINE_SHIFT	6
#define LINE_MARKS	(1 << 18)	/* lines of 16 MiB of code, folded */
#define STALE_LINES	64
#define PAGE_SHIFT	12

#define STALE_SOME	1	/* the lines and pages named */
#define STALE_ALL	2	/* everything */
#define DOOMED		4	/* what runs has come to its end already: no block starts, and no exception is taken */

/* What maintenance notes. */
#define MAINTAINED_CODE	1	/* IC */
#define MAINTAINED_TLB	2	/* TLBI of the inner shareable domain */

enum why {
	WHY_NOTHING,	/* the engine ended by itself: WFI, or an error */
	WHY_STOP,	/* a block starts at one of the stop addresses */
	WHY_LEFT,	/* a block starts outside [within, within + within_size) */
	WHY_DEADLINE,	/* total has reached deadline */
	WHY_MISALIGNED,	/* a block starts at an address that is no multiple of 4 */
	WHY_INTERRUPT,	/* an exception, its Unicorn number in interrupt */
	WHY_IRQ,	/* the interrupt signal is up and PSTATE.I is clear */
	WHY_STALE,	/* translated code must be dropped before the next block runs */
};

/* CPUARMState.exception */
struct exception {
	u32 syndrome;
	u32 fsr;
	u64 vaddress;
	u32 target_el;
};

/* uc_arm64_cp_reg: a system register that an MRS, MSR or SYS names, and its value */
struct cp_reg {
	u32 crn, crm, op0, op1, op2;
	u64 val;
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
	u32 system;		/* take exceptions, see interrupts and timers */
	u32 irq;		/* the CPU's interrupt signal */
	u32 maintenance;	/* what the guest has done, MAINTAINED_ */
	u32 stale;		/* STALE_: what the owner must drop */
	u32 nr_stale;
	u32 nr_stale_pages;
	u32 user_ran;		/* code has run at EL0 since everything was dropped */
	u64 settled_page;	/* the last of stale_pages; named line by line, it comes often */
	u64 stale_lines[STALE_LINES];	/* by the address that they ran at */
	u64 stale_pages[STALE_LINES];	/* by the kernel's address for a page that ran elsewhere */
	unsigned char *marks;	/* LINE_MARKS bytes: which lines code has run from */
	u64 entered;		/* total when the last exception was taken here */
	u64 exceptions;		/* how many were */
	int (*reg_read)(void *uc, int reg, void *value);
	int (*reg_write_batch)(void *uc, const int *regs, void *const *values, int count);
	int (*context_save)(void *uc, void *context);
	void *context;
	const struct exception *exception;	/* inside context */
	/* A read (write = 0) or write of a timer's register; returns the value read. */
	u64 (*timer)(u32 crm, u32 op2, u32 write, u64 value);
	/*
	 * What ID_AA64PFR0_EL1 reads as where that is not the engine's to say, or 0. It is set where Python has system
	 * registers that the engine lacks: what is undefined at EL1 may be an access to one.
	 */
	u64 id_aa64pfr0;
	u64 work;		/* what the host has done for this CPU, in instructions */
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

/*
 * The owner reckons anew whether work and time are used up where the deadline is.
 * What a block does that has come to its end already leaves no trace here either.
 */
static void charge(struct blockcount *bc, u64 cost)
{
	if (bc->stale & DOOMED)
		return;
	bc->work += cost;
	bc->deadline -= bc->deadline < cost ? bc->deadline : cost;
}

static u64 get(void *uc, const struct blockcount *bc, int reg)
{
	u64 value = 0;

	bc->reg_read(uc, reg, &value);
	return value;
}

static u32 pstate(void *uc, const struct blockcount *bc)
{
	return (u32)get(uc, bc, REG_PSTATE);
}

static int marked(const struct blockcount *bc, u64 virt)
{
	return bc->marks[(virt >> LINE_SHIFT) % LINE_MARKS];
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

static void start_block(struct blockcount *bc, u64 virt, u32 size)
{
	u64 first = virt >> LINE_SHIFT, last = (virt + size - 1) >> LINE_SHIFT, line;

	bc->first = 0;
	bc->block = virt;
	bc->block_size = size;
	bc->total += size / 4;
	/* Bytes, because a store that depends on no load costs next to nothing. */
	bc->marks[first % LINE_MARKS] = 1;
	bc->marks[last % LINE_MARKS] = 1;
	for (line = first + 1; line < last; line++)
		bc->marks[line % LINE_MARKS] = 1;
}

static __attribute__((noinline)) void consider_block(void *uc, u64 virt, u32 size, struct blockcount *bc)
{
	if (bc->total >= bc->deadline)
		stop(uc, bc, WHY_DEADLINE);
	else if (bc->irq && !bc->first && !(pstate(uc, bc) & PSTATE_I))
		stop(uc, bc, WHY_IRQ);
	else if (virt & 3)
		stop(uc, bc, WHY_MISALIGNED);
	else if (bc->stale)
		stop(uc, bc, WHY_STALE);
	else
		start_block(bc, virt, size);
}

/* UC_HOOK_BLOCK in a system, where it is most of what is run: the common case saves no register. */
void blockcount_system_block(void *uc, u64 virt, u32 size, struct blockcount *bc)
{
	if (__builtin_expect(bc->total >= bc->deadline || virt & 3 || bc->irq || bc->stale, 0))
		consider_block(uc, virt, size, bc);
	else
		start_block(bc, virt, size);
}

/* Takes a synchronous exception to EL1; class Cpu's enter_exception() is the same in Python. */
static void enter(void *uc, struct blockcount *bc, u64 pc, u32 number)
{
	u32 from = pstate(uc, bc);
	/* Same level with SP_EL0, same level, lower level in AArch64. */
	u64 group = !(from & PSTATE_EL) ? 0x400 : from & PSTATE_SP ? 0x200 : 0;
	u64 to = PSTATE_EL1H | PSTATE_DAIF | (from & PSTATE_KEPT);
	u64 vector = get(uc, bc, REG_VBAR_EL1) + group;
	u64 esr = bc->exception->syndrome, far = bc->exception->vaddress;
	/* SPSR_EL1, which Unicorn names in this way only; as a system register it also renews what hangs on PSTATE. */
	struct cp_reg spsr = { .crn = 4, .crm = 0, .op0 = 3, .op1 = 0, .op2 = 0, .val = from };
	u64 sp = 0, sp_el0 = 0;
	int regs[8];
	void *values[8];
	int count = 0;

#define PUT(reg, variable) (regs[count] = (reg), values[count++] = &(variable))
	if (!(esr >> 26))
		esr = ESR_IL;	/* Unicorn forgets IL for some trapped system registers */

	PUT(REG_PSTATE, to);
	PUT(REG_ELR_EL1, pc);
	PUT(REG_ESR_EL1, esr);
	if (number == EXCP_PREFETCH || number == EXCP_DATA)
		PUT(REG_FAR_EL1, far);
	if (!(from & PSTATE_EL)) {
		bc->user_ran = 1;
		bc->settled_page = 0;
	}
	if (!(from & PSTATE_EL && from & PSTATE_SP)) {
		sp_el0 = get(uc, bc, REG_SP);
		sp = get(uc, bc, REG_SP_EL1);
		PUT(REG_SP_EL0, sp_el0);
		PUT(REG_SP, sp);
	}
	PUT(REG_CP_REG, spsr);
	/* In a batch, which writes PSTATE and what hangs on it in this order. */
	PUT(REG_PC, vector);
#undef PUT
	bc->reg_write_batch(uc, regs, values, count);
}

/* UC_HOOK_INTR */
void blockcount_interrupt(void *uc, u32 number, struct blockcount *bc)
{
	u64 pc, into;

	bc->interrupt = number;
	/* Calls to firmware are Python's, and so is a vector whose first instruction faults. */
	if (!bc->system || bc->stale & DOOMED || number == EXCP_HVC || number == EXCP_SMC ||
	    (number == EXCP_UDEF && bc->id_aa64pfr0 && pstate(uc, bc) & PSTATE_EL)) {
		stop(uc, bc, WHY_INTERRUPT);
		return;
	}

	pc = get(uc, bc, REG_PC);
	if (number == EXCP_PREFETCH && pc & 3) {
		/* That a PC is misaligned comes before what can be fetched from it. */
		stop(uc, bc, WHY_MISALIGNED);
		return;
	}
	into = pc - bc->block;
	if (bc->total - (into < bc->block_size ? (bc->block_size - into) / 4 : 0) == bc->entered) {
		stop(uc, bc, WHY_INTERRUPT);
		return;
	}

	bc->context_save(uc, bc->context);
	/* What of the block has not retired; a fetch that fails has started no block. */
	if (number != EXCP_PREFETCH && into < bc->block_size) {
		bc->total -= (bc->block_size - into) / 4;
		bc->block_size = into;
	}
	bc->entered = bc->total;
	bc->exceptions++;
	charge(bc, WORK_EXCEPTION);
	enter(uc, bc, pc, number);
}

static u64 ticks(void *uc, const struct blockcount *bc)
{
	/* total counts the whole block already, of which only what is before PC is done. */
	u64 to_come = bc->block + bc->block_size - get(uc, bc, REG_PC);

	return (bc->elsewhere + bc->total - to_come / 4) / INSTRUCTIONS_PER_TICK;
}

/*
 * UC_HOOK_INSN for MRS: CNTPCT_EL0 and CNTVCT_EL0 count instructions. Unicorn's
 * own read the host's clock, and no two runs would be the same. Its timers are
 * none, and read it too: without a system they are off. ID_AA64PFR0_EL1 says what the board has. Everything else is left to
 * Unicorn (returns 0).
 */
u32 blockcount_mrs(void *uc, int reg, const struct cp_reg *cp, struct blockcount *bc)
{
	u64 value;

	if (cp->op0 != 3)
		return 0;

	if (cp->crn == 14 && cp->op1 == 3 && cp->crm == 0 && (cp->op2 == 1 || cp->op2 == 2))
		value = ticks(uc, bc);
	else if (cp->crn == 14 && cp->op1 == 3 && (cp->crm == 2 || cp->crm == 3) && cp->op2 <= 2)
		value = bc->system ? bc->timer(cp->crm, cp->op2, 0, 0) : 0;
	else if (bc->id_aa64pfr0 && !cp->op1 && !cp->crn && cp->crm == 4 && !cp->op2)
		value = bc->id_aa64pfr0;
	else
		return 0;

	if (reg != REG_XZR)
		bc->reg_write(uc, reg, &value);
	return 1;
}

/* UC_HOOK_INSN for MSR, in a system only: CNTP_ and CNTV_TVAL, CTL and CVAL_EL0 */
u32 blockcount_msr(void *uc, int reg, const struct cp_reg *cp, struct blockcount *bc)
{
	(void)uc, (void)reg;
	if (cp->crn == 14 && (cp->crm == 2 || cp->crm == 3) && cp->op0 == 3 && cp->op1 == 3 && cp->op2 <= 2)
		bc->timer(cp->crm, cp->op2, 1, cp->val);
	return 0;
}

/* IC: other CPUs must hear of it, and what has been translated may be out of date. */
static void invalidate(struct blockcount *bc, const struct cp_reg *cp)
{
	u64 page = cp->val >> PAGE_SHIFT << PAGE_SHIFT;

	bc->maintenance |= MAINTAINED_CODE;
	charge(bc, WORK_MAINTENANCE);
	if (cp->op1 != 3) {
		bc->stale |= STALE_ALL;
		return;
	}

	/* IC IVAU */
	if (marked(bc, cp->val)) {
		bc->stale |= STALE_SOME;
		if (bc->nr_stale < STALE_LINES)
			bc->stale_lines[bc->nr_stale++] = cp->val >> LINE_SHIFT << LINE_SHIFT;
		else
			bc->stale |= STALE_ALL;
	}
	/*
	 * A kernel's address may stand for a page that programs see elsewhere, marked or not: marks are folded, and
	 * linear addresses share them with the kernel's own code.
	 */
	if (bc->user_ran && cp->val >> 63 && page != bc->settled_page) {
		bc->settled_page = page;
		bc->stale |= STALE_SOME;
		if (bc->nr_stale_pages < STALE_LINES)
			bc->stale_pages[bc->nr_stale_pages++] = page;
		else
			bc->stale |= STALE_ALL;
	}
}

/* UC_HOOK_INSN for SYS, in a system only */
u32 blockcount_sys(void *uc, int reg, const struct cp_reg *cp, struct blockcount *bc)
{
	(void)uc, (void)reg;
	if (cp->crn == 7 && (cp->crm == 1 || cp->crm == 5))
		invalidate(bc, cp);
	if (cp->crn != 8)
		return 0;
	if (cp->crm == 3)
		bc->maintenance |= MAINTAINED_TLB;
	charge(bc, WORK_EXCEPTION);
	return 0;
}

/* What a stretch of code touched of a region; class Accesses in campaign/accesses.py, which does the same in Python. */
#define GRAIN_SHIFT	3
#define TOUCHED_READ	1
#define TOUCHED_WRITTEN	2	/* wholly stored to before anything else */
#define MEM_WRITE	17	/* UC_MEM_WRITE */

struct touched {
	u64 start, size;	/* physical */
	unsigned char *grains;	/* TOUCHED_ of each 8 bytes */
	u64 *first_reads;	/* by line: 1 + total when it was first read, 0 if never */
	u64 *last_reads;
	const struct blockcount *bc;
};

static void touched_read(struct touched *t, u64 phys, u64 size)
{
	u64 from = phys < t->start ? 0 : phys - t->start;
	u64 to = phys + size - t->start, at;

	if (to > t->size)
		to = t->size;
	for (at = from >> GRAIN_SHIFT; at << GRAIN_SHIFT < to; at++)
		if (!t->grains[at])
			t->grains[at] = TOUCHED_READ;
	for (at = from >> LINE_SHIFT; at << LINE_SHIFT < to; at++) {
		t->last_reads[at] = t->bc->total + 1;
		if (!t->first_reads[at])
			t->first_reads[at] = t->bc->total + 1;
	}
}

/* UC_HOOK_MEM_READ and UC_HOOK_MEM_WRITE inside the region */
void touched_memory(void *uc, u32 type, u64 phys, u32 size, u64 value, struct touched *t)
{
	u64 from = phys < t->start ? 0 : phys - t->start;
	u64 to = phys + size - t->start, at;

	(void)uc, (void)value;
	if (type != MEM_WRITE) {
		touched_read(t, phys, size);
		return;
	}

	if (to > t->size)
		to = t->size;
	for (at = from >> GRAIN_SHIFT; at << GRAIN_SHIFT < to; at++) {
		if (t->grains[at])
			continue;
		/* What is stored to in part is kept in part, and may be read in whole. */
		t->grains[at] = at << GRAIN_SHIFT >= from && (at + 1) << GRAIN_SHIFT <= to ?
			TOUCHED_WRITTEN : TOUCHED_READ;
	}
}

/* UC_HOOK_BLOCK: code that runs at its physical address */
void touched_block(void *uc, u64 virt, u32 size, struct touched *t)
{
	(void)uc;
	if (virt < t->start + t->size && virt + size > t->start)
		touched_read(t, virt, size);
}
