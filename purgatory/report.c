// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PURGATORY_REPORT: what the purgatory says to people on the console. All of
 * this with the MMU off.
 */
#include "options.h"
#include "report.h"
#ifdef PURGATORY_LOCATE
#include "locate.h"
#endif

/* The beginning of a line. */
static noinline void say(const char *what)
{
	console_puts("purgatory: ");
	console_puts(what);
}

void report_line(const char *what)
{
	say(what);
	console_puts("\n");
}

static u32 regions __purgatory_data;	/* that are not empty */

void report_start(void)
{
	u64 bytes = 0;
	int i;

	regions = 0;
	for (i = 0; i < KEXEC_SEGMENT_MAX; i++) {
		if (!purgatory_sha_regions[i].len)
			continue;
		regions++;
		bytes += purgatory_sha_regions[i].len;
	}
	if (!regions) {
		report_line("nothing to check");
		return;
	}
	say("checking ");
	console_put_dec(regions);
	console_puts(" regions, ");
	console_put_hex(bytes);
	console_puts(" bytes");
	if (caches_prepared())
		console_puts(", caches on");
	if (sha2_used())
		console_puts(", SHA-2 instructions");
	console_puts("\n");
}

static void put_digests(const char *indent, const u8 *expected, const u8 *found)
{
	say(indent);
	console_puts("expected ");
	console_put_digest(expected);
	console_puts("\n");
	say(indent);
	console_puts("found    ");
	console_put_digest(found);
	console_puts("\n");
}

#ifdef PURGATORY_LOCATE
static int region_at(u64 phys)
{
	int i;

	for (i = 0; i < KEXEC_SEGMENT_MAX - 1; i++)
		if (phys - purgatory_sha_regions[i].start < purgatory_sha_regions[i].len)
			break;
	return i;
}

/* One range: which region, where, and the digests of the first piece in it. */
static void report_range(u64 start, u64 len)
{
	int region = region_at(start);
	u8 found[SHA256_DIGEST_SIZE] __aligned(8);
	u64 offset = start - purgatory_sha_regions[region].start;

	say("damaged: region ");
	console_put_dec(region);
	console_puts(", ");
	console_put_hex(start);
	console_puts("-");
	console_put_hex(start + len - 1);
	console_puts("\n");
	if (!purgatory_verdict.damaged_pages || purgatory_page_digests == start) {
		put_digests("  ", purgatory_region_digests[region], purgatory_found[region]);
		return;
	}
	if (purgatory_verdict.flags & PURGATORY_FLAG_REPAIRED)
		return;			/* it is as expected by now */
	digest_of(start, len < PURGATORY_PAGE_SIZE ? len : PURGATORY_PAGE_SIZE, found);
	put_digests("  page ", page_digest(region, offset), found);
}

static void report_damage(void)
{
	const struct purgatory_verdict *verdict = &purgatory_verdict;
	u32 i;

	for (i = 0; i < verdict->ranges; i++)
		report_range(verdict->damage[i].start, verdict->damage[i].len);
	if (!verdict->damaged_pages)
		return;
	say("damaged pages: ");
	console_put_dec(verdict->damaged_pages);
	console_puts("\n");
}
#else
static inline void report_damage(void) { }
#endif

void report_result(u32 damaged, const u8 *found)
{
	if (!damaged) {
		if (regions)
			report_line("digests match");
		return;
	}
	if (damaged & PURGATORY_SELF) {
		report_line("the purgatory itself is damaged");
		return;
	}
	if (damaged & PURGATORY_DTB) {
		report_line("x0 is not the device tree that was loaded");
		return;
	}
	report_line("digests do NOT match");
	put_digests("", purgatory_sha256_digest, found);
	report_damage();
}

void report_stop(const char *why)
{
	if (why)
		report_line(why);
	report_line("stopped");
}

void report_trap(unsigned long esr, unsigned long elr, unsigned long far)
{
	say("exception, ESR ");
	console_put_hex(esr);
	console_puts(" at ");
	console_put_hex(elr);
	console_puts(", FAR ");
	console_put_hex(far);
	console_puts("\n");
}
