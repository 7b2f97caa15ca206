/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef REPORT_H
#define REPORT_H

#include "purgatory.h"

void report_start(void);
void report_line(const char *what);
void report_mismatch(void);
void report_trap(void);
void record_in_device_tree(void);

/* entry.S */
#define PSCI_SYSTEM_OFF		0x84000008UL
#define PSCI_SYSTEM_RESET	0x84000009UL
u64 psci_call(u64 function, u64 conduit);

/* console.c */
extern u32 console_stuck;	/* say nothing more */
void console_puts(const char *s);
void console_put_dec(u32 value);
void console_put_hex(u64 value);
void console_put_digest(const u8 digest[SHA256_DIGEST_SIZE]);

#endif /* REPORT_H */
