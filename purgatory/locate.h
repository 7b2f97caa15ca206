/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef LOCATE_H
#define LOCATE_H

#include "purgatory.h"
#include "sha256.h"

/* Digests of pieces, by the SHA-2 instructions between begin and end where they may be used. */
void crypto_begin(void);
void crypto_end(void);
void digest_begin(struct sha256_state *sctx);
int digest_known(const u8 digest[SHA256_DIGEST_SIZE]);
int digest_matches(u64 start, u64 len, const u8 expected[SHA256_DIGEST_SIZE]);
void digest_of(u64 start, u64 len, u8 digest[SHA256_DIGEST_SIZE]);

/* After a mismatch: put what is damaged into the record. */
void locate(void);

/* What locate() saw of a region without a table of pages. */
extern u8 purgatory_found[KEXEC_SEGMENT_MAX][SHA256_DIGEST_SIZE];

/* Is that region the table of page digests? */
int is_table(int region);

/* Entry of the page table of digests for the page at `start` of that region. */
const u8 *page_digest(int region, u64 offset);
int page_digests_usable(void);

/* Write what is damaged anew from the copy; 0 if not all of it could be mended. */
int repair(void);

#endif /* LOCATE_H */
