/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef REPORT_H
#define REPORT_H

#include "purgatory.h"

/* console.c */
void console_puts(const char *s);
void console_put_dec(u32 value);
void console_put_hex(u64 value);
void console_put_digest(const u8 digest[SHA256_DIGEST_SIZE]);

#endif /* REPORT_H */
