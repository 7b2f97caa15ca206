// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a compiler calls of its own accord, and lib/crypto by name, a byte at a
 * time: with the MMU off nothing wider may be unaligned.
 */
#include <linux/compiler.h>

#include "string.h"

void *memcpy(void *to, const void *from, size_t len)
{
	u8 *out = to;
	const u8 *in = from;

	while (len--)
		*out++ = *in++;
	return to;
}

void *memset(void *to, int value, size_t len)
{
	u8 *out = to;

	while (len--)
		*out++ = value;
	return to;
}

int memcmp(const void *a, const void *b, size_t len)
{
	const u8 *one = a;
	const u8 *other = b;

	for (; len--; one++, other++)
		if (*one != *other)
			return *one - *other;
	return 0;
}

void *__memcpy(void *to, const void *from, size_t len) __alias(memcpy);
void *__memset(void *to, int value, size_t len) __alias(memset);
