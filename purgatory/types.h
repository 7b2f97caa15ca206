/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef TYPES_H
#define TYPES_H

#ifdef __KERNEL__
#include <linux/bits.h>
#include <linux/compiler.h>
#include <linux/stddef.h>
#include <linux/types.h>
#include <asm/byteorder.h>
#else
#include <stdint.h>

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;
typedef u32 __le32;

#define __aligned(x)	__attribute__((aligned(x)))
#define __cold		__attribute__((cold))
#define __section(name)	__attribute__((section(name)))
#define noinline	__attribute__((noinline))
#define NULL		((void *)0)
#define BIT(n)		(1UL << (n))
#define __force
#ifdef __AARCH64EB__
#define cpu_to_le32(x)	__builtin_bswap32(x)
#else
#define cpu_to_le32(x)	((u32)(x))
#endif
#define le32_to_cpu	cpu_to_le32
#define barrier()	asm volatile("" : : : "memory")
#endif

#endif /* TYPES_H */
