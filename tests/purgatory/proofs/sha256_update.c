// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * For the model checker: sha256_update() takes every byte once, and in order.
 *
 * With USED bytes in the incomplete block, for all lengths up to three blocks
 * and any data: what goes on to sha256_blocks(), which is replaced by the one
 * below, and what stays in the incomplete block, is the old
 * incomplete block and then the data. Nothing is said of the digest itself: the
 * tests compare that with others.
 */
#include "sha256.h"

/* Of 64 it takes hours. The code knows the size by this name only: what holds for 8 does not rest on 64. */
#undef SHA256_BLOCK_SIZE
#define SHA256_BLOCK_SIZE	8
#include "sha256.c"

#define MAX_LENGTH	(3 * SHA256_BLOCK_SIZE)

u64 nondet_u64(void);
u8 nondet_u8(void);

static struct sha256_ctx sctx;
static u8 before[SHA256_BLOCK_SIZE];	/* the incomplete block as it was */
static u8 bytes[MAX_LENGTH];
static const u8 *const data = bytes;
static u64 taken;			/* bytes of old block and data that went on */

/* The incomplete block has from byte `first` of the old one and the data as one. */
static void check_buf(u64 first, u32 count)
{
	const u8 *buf = (const u8 *)sctx.buf;

	for (u32 i = 0; i < count; i++)
		if (first + i < USED)
			__CPROVER_assert(buf[i] == before[first + i], "of the old block");
		else
			__CPROVER_assert(buf[i] == data[first + i - USED], "of the data");
}

void checked_blocks(struct sha256_ctx *state, const u8 *from, u64 blocks)
{
	__CPROVER_assert(state == &sctx && blocks, "some blocks");
	if (from == (const u8 *)sctx.buf) {
		__CPROVER_assert(blocks == 1, "the incomplete block is one");
		check_buf(taken, SHA256_BLOCK_SIZE);
	} else {
		__CPROVER_assert(taken >= USED, "the old incomplete block went first");
		__CPROVER_assert(from == data + (taken - USED), "then data, from where it is next");
	}
	taken += blocks * SHA256_BLOCK_SIZE;
}

int main(void)
{
	u64 count = nondet_u64() / SHA256_BLOCK_SIZE * SHA256_BLOCK_SIZE + USED;
	u64 len = nondet_u64();

	__CPROVER_assume(len <= MAX_LENGTH);
	for (int i = 0; i < MAX_LENGTH; i++)
		bytes[i] = nondet_u8();
	sctx.count = count;
	for (int i = 0; i < SHA256_BLOCK_SIZE; i++)
		((u8 *)sctx.buf)[i] = before[i] = nondet_u8();

	sha256_update(&sctx, data, len);

	__CPROVER_assert(sctx.count == count + len, "all of it is counted");
	__CPROVER_assert(USED + len - taken == (USED + len) % SHA256_BLOCK_SIZE, "less than a block is left");
	check_buf(taken, (USED + len) % SHA256_BLOCK_SIZE);
	return 0;
}
