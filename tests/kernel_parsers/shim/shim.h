/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the kernel's ASN.1 decoder and the parsers on top of it need of the kernel, for a program in user space. Every
 * linux/ header that they ask for and that is not the kernel's own is this one.
 *
 * Memory comes from an arena that each message empties, so that nothing has to be freed and what lies behind a message
 * is zero.
 */
#pragma once
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t time64_t;

void *arena(size_t size);
time64_t mktime64(unsigned year, unsigned month, unsigned day, unsigned hour, unsigned minute, unsigned second);

static inline void *arena_copy(const void *from, size_t size)
{
	void *to = arena(size);

	if (size)
		memcpy(to, from, size);
	return to;
}

#define kzalloc(size, flags) arena(size)
#define kmalloc(size, flags) arena(size)
#define kzalloc_obj(type) arena(sizeof(type))
#define kmemdup(from, size, flags) arena_copy(from, size)
#define kfree(pointer) ((void)(pointer))
#define GFP_KERNEL 0

#define MAX_ERRNO 4095
#define IS_ERR(pointer) ((unsigned long)(pointer) >= (unsigned long)-MAX_ERRNO)
#define IS_ERR_OR_NULL(pointer) (!(pointer) || IS_ERR(pointer))
#define PTR_ERR(pointer) ((long)(pointer))
#define ERR_PTR(error) ((void *)(long)(error))
#define ERR_CAST(pointer) ((void *)(pointer))

#define DEFINE_FREE(name, type, free) \
	static inline void __free_##name(void *p) { type _T = *(type *)p; free; }
#define __free(name) __attribute__((__cleanup__(__free_##name)))
#define return_ptr(p) return ({ __auto_type taken_ = (p); (p) = NULL; taken_; })
static inline void __free_kfree(void *p) { (void)p; }

#define test_bit(bit, word) (*(word) >> (bit) & 1)
static inline int __test_and_set_bit(int bit, unsigned long *word)
{
	int was = test_bit(bit, word);

	*word |= 1UL << bit;
	return was;
}

#define unlikely(x) (x)
#define likely(x) (x)
#define fallthrough __attribute__((__fallthrough__))
#define IS_REACHABLE(option) 1
#define BUG_ON(condition) ((void)0)
#define EXPORT_SYMBOL(name)
#define EXPORT_SYMBOL_GPL(name)
#define MODULE_DESCRIPTION(text)
#define MODULE_AUTHOR(text)
#define MODULE_LICENSE(text)
static inline int said(const char *format, ...) { (void)format; return 0; }
#define printk said
#define pr_err said
#define pr_warn said
#define pr_notice said
#define pr_debug said
#define pr_devel said

#define SHA256_DIGEST_SIZE 32
struct kernel_pkey_params;
struct kernel_pkey_query;
struct key;
struct key_type;
union key_payload;
enum hash_algo { HASH_ALGO_NONE };

/* keys/asymmetric-type.h */
struct asymmetric_key_id {
	unsigned short len;
	unsigned char data[];
};
struct asymmetric_key_id *asymmetric_key_generate_id(const void *val_1, size_t len_1, const void *val_2, size_t len_2);
