// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PURGATORY_REPORT: output on a PL011 that the dead kernel, or its firmware, has set up.
 *
 * Line ends are "\r\n", as earlycon sends them (uart_console_write()), so that
 * one terminal setting suits the kernels before and after us.
 */
#include "options.h"
#include "report.h"

#define UART01x_DR	0x00
#define UART01x_FR	0x18
#define UART01x_FR_TXFF	BIT(5)	/* transmit FIFO full */

/*
 * At 115200 baud a full FIFO takes a byte every 87 us, a few hundred reads. A
 * UART that needs thousands of times as long is stuck, or is none: a dump is
 * worth more than its announcement.
 */
#define TX_PATIENCE	BIT(20)

__kexec_purgatory u64 purgatory_uart_base;

u32 console_stuck __purgatory_data;	/* say nothing more */

static u32 read_register(u64 phys)
{
	u32 value;

	asm volatile("ldr %w0, [%1]" : "=r" (value) : "r" (phys));
	return le32_to_cpu((__force __le32)value);
}

static void write_register(u64 phys, u32 value)
{
	asm volatile("str %w0, [%1]" : : "r" (cpu_to_le32(value)), "r" (phys));
}

static void console_putc(u8 c)
{
	u64 uart_base = purgatory_uart_base;
	u32 patience = TX_PATIENCE;

	if (!uart_base || console_stuck)
		return;
	while (read_register(uart_base + UART01x_FR) & UART01x_FR_TXFF) {
		if (!--patience) {
			console_stuck = 1;
			return;
		}
	}
	write_register(uart_base + UART01x_DR, c);
}

void console_puts(const char *s)
{
	for (; *s; s++) {
		if (*s == '\n')
			console_putc('\r');
		console_putc(*s);
	}
}

static void put_nibble(u32 value)
{
	value &= 0xf;
	console_putc(value < 10 ? '0' + value : 'a' + value - 10);
}

void console_put_dec(u32 value)
{
	if (value >= 10)
		console_put_dec(value / 10);
	console_putc('0' + value % 10);
}

/* As printk's %#llx, but 0 is 0x0. */
void console_put_hex(u64 value)
{
	int shift = 60;

	while (shift && !(value >> shift))
		shift -= 4;
	console_puts("0x");
	for (; shift >= 0; shift -= 4)
		put_nibble(value >> shift);
}

void console_put_digest(const u8 digest[SHA256_DIGEST_SIZE])
{
	int i;

	for (i = 0; i < SHA256_DIGEST_SIZE; i++) {
		put_nibble(digest[i] >> 4);
		put_nibble(digest[i]);
	}
}
