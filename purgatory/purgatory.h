/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the purgatory's core and its loader agree on.
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

#include "sha256.h"
#include "types.h"

#define __kexec_purgatory	__section(".kexec-purgatory")

#ifdef __KERNEL__
#include <linux/purgatory.h>
#else
#define KEXEC_SEGMENT_MAX	16

/* One loaded segment: physical start and length in bytes. 0 bytes hash nothing. */
struct kexec_sha_region {
	unsigned long start;
	unsigned long len;
};

/* What to hash, in order, as one message; and its SHA-256. */
extern struct kexec_sha_region purgatory_sha_regions[KEXEC_SEGMENT_MAX];
extern u8 purgatory_sha256_digest[SHA256_DIGEST_SIZE];
#endif

/*
 * Where to go when the digests match, a physical address. 0 is a loader's
 * mistake and stops: no region can be taken for the kernel, since IMA's list
 * is a segment in front of it where the kernel passes one on.
 */
extern u64 purgatory_kernel_entry;

/* The device tree's physical address: x0 has to be that. 0: not compared. */
extern u64 purgatory_dtb;

#ifndef PURGATORY_NO_GCS
/*
 * Not 0: the kernel that loads us uses guarded control stacks, so GCSCR may be
 * written to. Where it does not, firmware need not let anybody, and what is in
 * GCSCR is what that kernel has made its own calls with.
 */
extern u64 purgatory_gcs;
#endif

/*
 * SHA-256 of all of .text and .kexec-purgatory as loaded, from purgatory_start
 * up to this symbol, which is the last thing in them. 32 zero bytes: not
 * checked.
 */
extern u8 purgatory_self_digest[SHA256_DIGEST_SIZE];

/* What check() says: 0, or bits. 0 to 15 are the regions, all of them if it is not known which. */
#define PURGATORY_REGIONS	0xffffU
#define PURGATORY_SELF		BIT(16)	/* the purgatory itself */
#define PURGATORY_DTB		BIT(17)	/* x0 is not purgatory_dtb */

/* What entry.S does with an answer. */
enum { START_KERNEL = 0, STOP = 1 };

/* entry.S: a page of its own begins at purgatory_data where there is a map */
extern const u8 purgatory_start[], purgatory_data[], purgatory_data_end[], purgatory_end[];
void dcache_clean_inval_poc(unsigned long start, unsigned long end);

/* purgatory.c */
unsigned long purgatory(unsigned long dtb);
u32 check(unsigned long dtb);
unsigned long finish(unsigned long answer);
int region_sane(const struct kexec_sha_region *region);
int regions_match(u8 found[SHA256_DIGEST_SIZE]);
void clean_regions(void);
void digest_update(struct sha256_ctx *sctx, unsigned long start, unsigned long len);
void digest_of(unsigned long start, unsigned long len, u8 digest[SHA256_DIGEST_SIZE]);
int digest_matches(unsigned long start, unsigned long len, const u8 *expected);
int digest_same(const u8 *a, const u8 *b);
int digest_known(const u8 *digest);

#endif /* PURGATORY_H */
