/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the purgatory, its loader and whoever reads its memory afterwards
 * agree on.
 *
 * All variables lie in the section .kexec-purgatory, which is PROGBITS: the
 * kernel's loader refuses to set a symbol in a bss section, or one whose size
 * is not exactly the expected one.
 */
#ifndef PURGATORY_H
#define PURGATORY_H

#include <stdint.h>

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;

#define __kexec_purgatory	__attribute__((section(".kexec-purgatory")))

#define KEXEC_SEGMENT_MAX	16
#define SHA256_DIGEST_SIZE	32

/* One loaded segment: physical start and length in bytes. 0 bytes hash nothing. */
struct kexec_sha_region {
	u64 start;
	u64 len;
};

/* Set by any loader that knows kexec: what to hash, in order, and the result. */
extern struct kexec_sha_region purgatory_sha_regions[KEXEC_SEGMENT_MAX];
extern u8 purgatory_sha256_digest[SHA256_DIGEST_SIZE];

/*
 * Where to go when the digests match, a physical address. 0 means the start of
 * the first region: the kernel is always the first segment, and the arm64
 * loader has already added text_offset to its address. So a loader that sets
 * only the two symbols above gets its kernel started.
 */
extern u64 purgatory_kernel_entry;

/* Physical address of a PL011 that is set up already. 0 means to be silent. */
extern u64 purgatory_uart_base;

/*
 * What the purgatory has found, for a reader of its memory.
 *
 * The record is in the image from the start (magic, version, state NOT_RUN).
 * `state` is written last in each step, so that what it announces is there.
 */
#define PURGATORY_VERDICT_MAGIC		0x5444525647525550	/* "PURGVRDT" */
#define PURGATORY_VERDICT_VERSION	1

enum purgatory_state {
	PURGATORY_NOT_RUN = 0,
	PURGATORY_CHECKING = 1,
	PURGATORY_MATCH = 2,
	PURGATORY_MISMATCH = 3,
};

struct purgatory_verdict {
	u64 magic;
	u32 version;
	u32 state;				/* enum purgatory_state */
	u64 bytes_hashed;			/* of the regions done so far */
	u8 expected[SHA256_DIGEST_SIZE];	/* as set by the loader */
	u8 found[SHA256_DIGEST_SIZE];		/* valid in MATCH and MISMATCH */
};

extern struct purgatory_verdict purgatory_verdict;

/* entry.S calls this; 0 means to start the kernel, anything else to stop. */
int purgatory(void);

/* console.c */
void console_puts(const char *s);
void console_put_dec(u32 value);
void console_put_hex(u64 value);
void console_put_digest(const u8 digest[SHA256_DIGEST_SIZE]);

#endif /* PURGATORY_H */
