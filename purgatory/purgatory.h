/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the purgatory, its loader and whoever reads its memory afterwards
 * agree on.
 *
 * A loader has to set purgatory_sha_regions and purgatory_sha256_digest, as
 * the kernel's generic code does, and purgatory_kernel_entry, as its arm64 code
 * has to. Everything else may stay zero and then means what is said beside it.
 * All of these lie in .kexec-purgatory, which is PROGBITS: the kernel's loader
 * refuses to set a symbol in a bss section, or one whose size is not exactly
 * the expected one.
 */
#ifndef PURGATORY_H
#define PURGATORY_H

#include <stdint.h>

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;

#define __kexec_purgatory	__attribute__((section(".kexec-purgatory")))

/* What the purgatory stores to, in one place that is clean of caches when it begins. */
#define __purgatory_data	__attribute__((section(".data")))

#define KEXEC_SEGMENT_MAX	16
#define SHA256_DIGEST_SIZE	32
#define PURGATORY_PAGE_SIZE	4096

/* One loaded segment: physical start and length in bytes. 0 bytes hash nothing. */
struct kexec_sha_region {
	u64 start;
	u64 len;
};

/* What to hash, in order, as one message; and its SHA-256. */
extern struct kexec_sha_region purgatory_sha_regions[KEXEC_SEGMENT_MAX];
extern u8 purgatory_sha256_digest[SHA256_DIGEST_SIZE];

/*
 * Where to go when the digests match, a physical address. 0 is a loader's
 * mistake and stops: no region can be taken for the kernel, since IMA's list
 * is a segment in front of it where the kernel passes one on.
 */
extern u64 purgatory_kernel_entry;

/* Physical address of a PL011 that is set up already. 0: silent. */
extern u64 purgatory_uart_base;

/* The device tree's physical address: x0 has to be that. 0: not compared. */
extern u64 purgatory_dtb;

/* What to do when the check fails. */
enum purgatory_policy {
	PURGATORY_STOP = 0,		/* wait for somebody to switch the power off */
	PURGATORY_RESET = 1,		/* PSCI SYSTEM_RESET */
	PURGATORY_OFF = 2,		/* PSCI SYSTEM_OFF */
	PURGATORY_RETURN = 3,		/* to x30 as it was at entry, with x0 = 1 */
	PURGATORY_BOOT_ANYWAY = 4,	/* a doubtful dump is better than none; but not if we are damaged ourselves */
	PURGATORY_REPAIR = 5,		/* from the second copy; stop if it cannot be done */
};
extern u64 purgatory_policy;

/* How PSCI is called, as "method" in the device tree. 0: not at all (reset and off then stop). */
enum purgatory_conduit {
	PURGATORY_NO_PSCI = 0,
	PURGATORY_HVC = 1,
	PURGATORY_SMC = 2,
};
extern u64 purgatory_psci_conduit;

/* Not 0: leave MMU and caches off; do without the SHA-2 instructions. */
extern u64 purgatory_no_mmu;
extern u64 purgatory_no_crypto;

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

/* All regions but the table's once more, back to back: physical address, 0: none. Not hashed. */
extern u64 purgatory_copy;

/* Where /chosen/linux,purgatory-verdict has its value, a physical address. 0: none. */
extern u64 purgatory_chosen;

/*
 * SHA-256 of all of .text and .kexec-purgatory as loaded, from purgatory_start
 * up to this symbol, which is the last thing in them. 32 zero bytes: not
 * checked.
 */
extern u8 purgatory_self_digest[SHA256_DIGEST_SIZE];

/*
 * What the purgatory has found, for a reader of its memory: at the start of a
 * page, so that a search for the magic has to look at 1 of 512 words.
 *
 * The record is in the image from the start (magic, version, state NOT_RUN).
 * `state` is written last in each step, so that what it announces is there.
 */
#define PURGATORY_VERDICT_MAGIC		0x5444525647525550	/* "PURGVRDT" */
#define PURGATORY_VERDICT_VERSION	2
#define PURGATORY_DAMAGE_MAX		16

enum purgatory_state {
	PURGATORY_NOT_RUN = 0,
	PURGATORY_CHECKING = 1,
	PURGATORY_MATCH = 2,
	PURGATORY_MISMATCH = 3,
	PURGATORY_TRAPPED = 4,		/* an exception in the purgatory: esr, elr, far */
};

/* Bits of `flags`. */
#define PURGATORY_MMU_ON	(1U << 0)	/* checked with MMU and caches on */
#define PURGATORY_CRYPTO	(1U << 1)	/* by the SHA-2 instructions */
#define PURGATORY_SELF_CHECKED	(1U << 2)	/* the self digest was there, and compared */
#define PURGATORY_AT_EL2	(1U << 3)
#define PURGATORY_REPAIRED	(1U << 4)	/* mended from the copy, and now it matches */
#define PURGATORY_EARLY		(1U << 5)	/* this was purgatory_check, for the old kernel */

/* Bits of `damaged`: 0 to 15 are the regions, as far as they have digests of their own. */
#define PURGATORY_SELF		(1U << 16)	/* the purgatory itself */
#define PURGATORY_DTB		(1U << 17)	/* x0 is not purgatory_dtb */

struct purgatory_verdict {
	u64 magic;
	u32 version;
	u32 state;				/* enum purgatory_state */
	u64 bytes_hashed;			/* of the regions done so far */
	u8 expected[SHA256_DIGEST_SIZE];	/* as set by the loader */
	u8 found[SHA256_DIGEST_SIZE];		/* valid in MATCH and MISMATCH */
	u32 flags;
	u32 damaged;
	u64 damaged_pages;			/* 0 without a table of page digests */
	u64 esr, elr, far;			/* valid in TRAPPED */
	u32 ranges;				/* entries used in damage[] */
	u32 reserved;
	struct kexec_sha_region damage[PURGATORY_DAMAGE_MAX];	/* the first ones: the table's, then by region */
};

extern struct purgatory_verdict purgatory_verdict;

/*
 * The value of /chosen/linux,purgatory-verdict, for the kernel that is booted:
 * big-endian cells as everything in a device tree. The loader puts zeros of
 * this size there, and sets purgatory_chosen to their address.
 */
struct purgatory_chosen_record {
	u32 version;		/* PURGATORY_VERDICT_VERSION */
	u32 state;
	u32 flags;
	u32 damaged;
	u32 ranges;
	u32 pages;
	u32 damage[8][4];	/* start, length: 64 bits each */
};

#endif /* PURGATORY_H */
