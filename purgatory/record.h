/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the purgatory has found, for a reader of its memory (PURGATORY_RECORD)
 * and for the kernel that it starts (PURGATORY_CHOSEN).
 */
#ifndef RECORD_H
#define RECORD_H

#include "purgatory.h"

/*
 * At the start of a page, so that a search for the magic has to look at 1 of
 * 512 words.
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
#define PURGATORY_FLAG_MMU_ON		BIT(0)	/* MMU and caches on */
#define PURGATORY_FLAG_CRYPTO		BIT(1)	/* by the SHA-2 instructions */
#define PURGATORY_FLAG_SELF_CHECKED	BIT(2)	/* by its self digest */
#define PURGATORY_FLAG_AT_EL2		BIT(3)
#define PURGATORY_FLAG_REPAIRED		BIT(4)	/* from the copy; it matches */
#define PURGATORY_FLAG_EARLY		BIT(5)	/* this was purgatory_check */

struct purgatory_verdict {
	u64 magic;
	u32 version;
	u32 state;				/* enum purgatory_state */
	u64 bytes_hashed;			/* of the regions done so far */
	u8 expected[SHA256_DIGEST_SIZE];	/* as set by the loader */
	u8 found[SHA256_DIGEST_SIZE];		/* valid in MATCH and MISMATCH */
	u32 flags;
	u32 damaged;				/* PURGATORY_SELF, _DTB, known regions */
	u64 damaged_pages;			/* 0 without a table of page digests */
	u64 esr, elr, far;			/* valid in TRAPPED */
	u32 ranges;				/* entries used in damage[] */
	u32 reserved;
	struct kexec_sha_region damage[PURGATORY_DAMAGE_MAX];	/* the table's, then by region */
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

#endif /* RECORD_H */
