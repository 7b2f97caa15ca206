/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the kernel's decoder does, whatever the actions would say to it: which it calls, in which order, with what.
 *
 * stdin as in oracle.c, the byte being the number of a grammar. stdout, for each: 1 if the decoder refuses, the number of
 * actions, and a CRC-32 over their numbers, header lengths, offsets and lengths.
 */
#include <stdlib.h>
#include "shim.h"
#include <linux/asn1_decoder.h>

static const u8 *start;
static u32 count, crc;

static void word(u32 value)
{
	crc = ~crc;
	for (int byte = 0; byte < 4; byte++) {
		crc ^= value >> 8 * byte & 0xFF;
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
	}
	crc = ~crc;
}

static int called(u32 number, bool with_value, size_t hdrlen, const void *value, size_t vlen)
{
	count++;
	word(number);
	if (with_value) {
		word((u32)hdrlen);
		word((u32)((const u8 *)value - start));
		word((u32)vlen);
	}
	return 0;
}

#define ACTION(name, number, with_value) \
	int name(void *context, size_t hdrlen, unsigned char tag, const void *value, size_t vlen) \
	{ (void)context; (void)tag; return called(number, with_value, hdrlen, value, vlen); }
#include "actions.h"

#define GRAMMAR(name) extern const struct asn1_decoder name##_decoder;
#include "grammars.h"
#undef GRAMMAR
#define GRAMMAR(name) &name##_decoder,
static const struct asn1_decoder *const decoders[] = {
#include "grammars.h"
};

int main(void)
{
	static u8 data[1 << 17];
	u8 kind;
	u32 size;

	while (fread(&kind, 1, 1, stdin) == 1 && fread(&size, 4, 1, stdin) == 1) {
		if (size > sizeof(data) || fread(data, 1, size, stdin) != size)
			return 1;
		start = data;
		count = crc = 0;
		int ret = asn1_ber_decoder(decoders[kind], NULL, data, size);
		printf("%d %u %u\n", ret < 0, count, crc);
	}
	return 0;
}
