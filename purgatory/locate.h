/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef LOCATE_H
#define LOCATE_H

#include "purgatory.h"

/* What locate() saw of a region without a table of pages. */
extern u8 purgatory_found[KEXEC_SEGMENT_MAX][SHA256_DIGEST_SIZE];

/* Entry of the table of page digests for the page at `offset` of that region. */
const u8 *page_digest(int region, u64 offset);
int page_digests_usable(void);

/* Bytes of the piece at `offset` that has a digest: a page with a table, else the region. */
u64 piece_len(int region, u64 offset, int by_page);

#endif /* LOCATE_H */
