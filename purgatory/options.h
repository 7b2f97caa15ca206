/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the purgatory is made of.
 *
 * Options: what can be built into it besides its core. A macro of each is
 * defined or not, by the command line or by Kconfig; without it the option's
 * files are not compiled, and what they would have done is nothing: the empty
 * functions below.
 *
 * PURGATORY_CACHES	MMU and caches on while it hashes: mmu.c, mmu-enable.S
 * PURGATORY_SHA2	SHA-256 by the CPU's instructions: sha2.c, sha256-ce.S
 * PURGATORY_REPORT	says on a PL011 what it finds: report.c, console.c
 * PURGATORY_RECORD	and in a record in memory: record.c
 * PURGATORY_LOCATE	which region it is, which pages: locate.c; needs RECORD
 * PURGATORY_CHOSEN	tells it the kernel that it starts: chosen.c; needs RECORD
 * PURGATORY_POLICY	reset, off, return, boot anyway: policy.c
 * PURGATORY_REPAIR	from a second copy: repair.c; needs LOCATE, POLICY
 * PURGATORY_EARLY	purgatory_check, for a kernel that is alive: early.c
 */
#ifndef OPTIONS_H
#define OPTIONS_H

#if defined(PURGATORY_LOCATE) && !defined(PURGATORY_RECORD)
#error PURGATORY_LOCATE needs PURGATORY_RECORD
#endif
#if defined(PURGATORY_CHOSEN) && !defined(PURGATORY_RECORD)
#error PURGATORY_CHOSEN needs PURGATORY_RECORD
#endif
#if defined(PURGATORY_REPAIR) && !(defined(PURGATORY_LOCATE) && defined(PURGATORY_POLICY))
#error PURGATORY_REPAIR needs PURGATORY_LOCATE and PURGATORY_POLICY
#endif

#if defined(PURGATORY_POLICY) || defined(PURGATORY_EARLY)
#define PURGATORY_CALLER	1	/* somebody waits for an answer: caller.h */
#define RETURN_TO_CALLER	2	/* and gets it: beside START_KERNEL and STOP */
#endif
#if defined(PURGATORY_CALLER) || defined(PURGATORY_REPORT) || defined(PURGATORY_RECORD)
#define PURGATORY_TRAP		1	/* an exception does more than stop: trap.S, trap.c */
#endif
#if defined(PURGATORY_CALLER) || defined(PURGATORY_RECORD)
#define PURGATORY_STATE		1	/* somebody goes on from what a run leaves, or reads it */
#endif

#if defined(PURGATORY_CACHES) || defined(PURGATORY_TRAP)
#define PURGATORY_PAGE_SIZE	4096
#endif

#ifdef PURGATORY_CACHES
/* There is a map, and what is written has pages of its own. */
#define PURGATORY_DATA_ALIGN	PURGATORY_PAGE_SIZE
#else
#define PURGATORY_DATA_ALIGN	64
#endif

#ifndef __ASSEMBLER__

#include "purgatory.h"

#if defined(PURGATORY_CACHES) || defined(PURGATORY_SHA2) || defined(PURGATORY_TRAP)
/* What the purgatory stores to, in one place that is clean of caches when it begins. */
#define __purgatory_data	__section(".data")
#endif

#if defined(PURGATORY_RECORD) || !defined(__KERNEL__)
#include "record.h"			/* what its functions are called with, too */
#endif

#ifdef PURGATORY_CACHES
#ifndef __KERNEL__
/* Not 0: leave MMU and caches off. In Linux that is Kconfig's to say. */
extern u64 purgatory_no_mmu;
#endif

/* Build the identity map; if it cannot be done, caches_on() does nothing. */
void caches_prepare(void);
#ifdef PURGATORY_REPAIR
void caches_prepare_writable(void);
#endif

/* In between nothing is printed: the UART is not in the map. */
void caches_on(void);
void caches_off(void);

extern u32 mmu_prepared, mmu_is_on;
static inline u32 caches_prepared(void) { return mmu_prepared; }
static inline u32 caches_are_on(void) { return mmu_is_on; }

#ifdef PURGATORY_STATE
static inline void caches_begin(void)
{
	mmu_is_on = 0;
}
#endif

/* mmu-enable.S */
struct mmu_registers {
	u64 mair, tcr, ttbr0, sctlr;
};

void mmu_enable(const struct mmu_registers *new, unsigned long start, unsigned long end);
void mmu_disable(const struct mmu_registers *old, unsigned long start, unsigned long end);
#else
static inline void caches_prepare(void) { }
static inline u32 caches_prepared(void) { return 0; }
static inline void caches_on(void) { }
static inline void caches_off(void) { }
static inline u32 caches_are_on(void) { return 0; }
#ifdef PURGATORY_STATE
static inline void caches_begin(void) { }
#endif
#ifdef PURGATORY_REPAIR
static inline void caches_prepare_writable(void) { }
#endif
#endif

#ifdef PURGATORY_SHA2
#ifndef __KERNEL__
/* Not 0: do without the SHA-2 instructions. In Linux that is Kconfig's to say. */
extern u64 purgatory_no_crypto;
#endif

/* Not 0: the kernel uses SME, and may have left the CPU in streaming mode. */
extern u64 purgatory_sme;

/* They may be used in between, where the CPU has them. */
void sha2_begin(void);
void sha2_end(void);

/* Take what can be taken in whole blocks by them; what is left is in start and len. */
void sha2_update(struct sha256_ctx *sctx, unsigned long *start, unsigned long *len);

extern u32 sha2_in_use;
static inline u32 sha2_used(void) { return sha2_in_use; }

/* Whatever is in memory, they are not in use yet. */
static inline void sha2_forget(void)
{
	sha2_in_use = 0;
}

/* sha256-ce.S */
void sha256_ce_blocks(u32 state[8], const u8 *data, u64 blocks);
u64 fpsimd_begin(u64 sme);
void fpsimd_end(u64 control);
#ifdef PURGATORY_CALLER
#define FPSIMD_SAVE_SIZE	416
void fpsimd_save(void *to);
void fpsimd_restore(const void *from);
#endif
#else
static inline void sha2_begin(void) { }
static inline void sha2_end(void) { }
static inline void sha2_update(struct sha256_ctx *sctx, unsigned long *at, unsigned long *len) { }
static inline u32 sha2_used(void) { return 0; }
static inline void sha2_forget(void) { }
#endif

#ifdef PURGATORY_REPORT
/* Physical address of a PL011 that is set up already. 0: silent. */
extern u64 purgatory_uart_base;

void report_start(void);
void report_line(const char *what);

/* It stops, and why; NULL if that has been said. */
void report_stop(const char *why);

void report_result(u32 damaged, const u8 *found);
void report_trap(unsigned long esr, unsigned long elr, unsigned long far);

extern u32 console_stuck;

#ifdef PURGATORY_STATE
static inline void report_begin(void)
{
	console_stuck = 0;
}
#endif

static inline void report_no_more(void)
{
	console_stuck = 1;
}
#else
#ifdef PURGATORY_STATE
static inline void report_begin(void) { }
#endif
static inline void report_start(void) { }
static inline void report_line(const char *what) { }
static inline void report_stop(const char *why) { }
static inline void report_result(u32 damaged, const u8 *found) { }
static inline void report_trap(unsigned long esr, unsigned long elr, unsigned long far) { }
static inline void report_no_more(void) { }
#endif

#ifdef PURGATORY_RECORD
void record_begin(void);
void record_flag(u32 flag);
void record_found(const u8 *found);
void record_trap(unsigned long esr, unsigned long elr, unsigned long far);
void record_result(u32 damaged);

static inline void record_hashed(u64 bytes) { purgatory_verdict.bytes_hashed += bytes; }
static inline void record_damaged(u32 damaged) { purgatory_verdict.damaged = damaged; }
#else
static inline void record_begin(void) { }
static inline void record_flag(u32 flag) { }
static inline void record_hashed(u64 bytes) { }
static inline void record_found(const u8 *found) { }
static inline void record_damaged(u32 damaged) { }
static inline void record_trap(unsigned long esr, unsigned long elr, unsigned long far) { }
static inline void record_result(u32 damaged) { }
#endif

#ifdef PURGATORY_LOCATE
/*
 * SHA-256 of each region by itself; 32 zero bytes: not known. Looked at only
 * after a mismatch, to say which region it is.
 */
extern u8 purgatory_region_digests[KEXEC_SEGMENT_MAX][SHA256_DIGEST_SIZE];

/*
 * A table with the SHA-256 of every page of every region, in their order (the
 * last page of a region may be a part of one): physical address, 0 for none.
 * The table is a segment of its own behind the others, so that it is one of
 * the hashed regions as well: the last, and itself not described by the table.
 */
extern u64 purgatory_page_digests;

/* Is that region the table? */
int is_table(int region);

/* If anything is: put what is damaged into the record. */
void locate(u32 damaged);
#else
static inline void locate(u32 damaged) { }
#endif

#ifdef PURGATORY_CHOSEN
/* Where /chosen/linux,purgatory-verdict has its value, a physical address. 0: none. */
extern u64 purgatory_chosen;

void chosen(void);
#else
static inline void chosen(void) { }
#endif

#ifdef PURGATORY_POLICY
/* What to do when the check fails. */
enum purgatory_policy {
	PURGATORY_POLICY_STOP = 0,	/* wait for somebody to switch the power off */
	PURGATORY_POLICY_RESET = 1,	/* PSCI SYSTEM_RESET */
	PURGATORY_POLICY_OFF = 2,	/* PSCI SYSTEM_OFF */
	PURGATORY_POLICY_RETURN = 3,	/* to x30 as it was at entry, with x0 = 1 */
	/* A doubtful dump is better than none; but not if we are damaged ourselves. */
	PURGATORY_POLICY_BOOT_ANYWAY = 4,
	/* From the second copy; stop if it cannot be done. */
	PURGATORY_POLICY_REPAIR = 5,
};

extern u64 purgatory_policy;

/* How PSCI is called, as "method" in the device tree. 0: not at all (reset and off then stop). */
enum purgatory_conduit {
	PURGATORY_NO_PSCI = 0,
	PURGATORY_HVC = 1,
	PURGATORY_SMC = 2,
};

extern u64 purgatory_psci_conduit;

/* What is left to do when something is wrong. */
unsigned long refuse(u32 damaged);

/* trap.S */
int psci_call(u64 function, u64 conduit);
#endif

#ifdef PURGATORY_REPAIR
/* All regions but the table's once more, back to back: physical address, 0: none. Not hashed. */
extern u64 purgatory_copy;

/* For the map: what is there. */
unsigned long copy_len(void);

void repair(u32 damaged);
#else
static inline void repair(u32 damaged) { }
#endif

#ifdef PURGATORY_EARLY
unsigned long purgatory_early(unsigned long dtb);

/* Has purgatory_check been called? */
extern u32 early_check;
static inline u32 is_early(void) { return early_check; }

static inline void early_begin(u32 early)
{
	early_check = early;
}
#else
static inline u32 is_early(void) { return 0; }
static inline void early_begin(u32 early) { }
#endif

#ifdef PURGATORY_TRAP
unsigned long purgatory_trapped(unsigned long esr, unsigned long elr, unsigned long far);
#endif

#ifdef PURGATORY_STATE
/* What a run before this one has left is forgotten. */
void begin(u32 early);

/* What is damaged if an exception comes now. */
void suspect(u32 damaged);
#else
static inline void begin(u32 early) { }
static inline void suspect(u32 damaged) { }
#endif

#endif /* __ASSEMBLER__ */

#endif /* OPTIONS_H */
