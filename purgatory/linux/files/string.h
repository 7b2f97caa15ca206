/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Not linux/string.h: some of its names are macros, with KASAN or FORTIFY_SOURCE. */
#ifndef STRING_H
#define STRING_H

#include <linux/types.h>

void *memcpy(void *to, const void *from, size_t len);
void *memset(void *to, int value, size_t len);
int memcmp(const void *a, const void *b, size_t len);

/* With KASAN, what is not instrumented calls them by these names. */
void *__memcpy(void *to, const void *from, size_t len);
void *__memset(void *to, int value, size_t len);

#endif /* STRING_H */
