#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# With CONFIG_ARM64_KEXEC_PURGATORY kexec_file_load() adds a purgatory to each
# image. Load a crash image and see it in the kernel's log, as the last segment
# of the image and with its entry; load over it again and again, and unload.
#
# What the purgatory says of an image that was written to takes a panic to see,
# and a look at the console: see Documentation/arch/arm64/kdump.rst.
#
# IMAGE and INITRD may name other files than those of the running kernel.

TEST="$0"
. ./kexec_common_lib.sh

IMAGE="${IMAGE:-$KERNEL_IMAGE}"
LOADED=/sys/kernel/kexec_crash_loaded
SYSCTL=/proc/sys/kernel
LOCKDOWN="${SECURITYFS:-/sys/kernel/security}/lockdown"

loaded()
{
	cat $LOADED
}

unload()
{
	kexec -s -p -u > /dev/null 2>&1
}

# $1: a sysctl of the kernel, $2: what it has to be, where there is one.
sysctl_is()
{
	[ ! -f "$SYSCTL/$1" ] || [ "$(cat "$SYSCTL/$1")" = "$2" ]
}

# $1: how often this was done before, for the message.
load()
{
	kexec -d -s -p "$IMAGE" ${INITRD:+--initrd="$INITRD"} \
		--append="maxcpus=1" > /dev/null 2>&1
	if [ $? -ne 0 ] || [ "$(loaded)" != 1 ]; then
		log_fail "a crash image was not loaded (after $1 others)"
	fi
}

# The last address that the log has for $1.
logged()
{
	dmesg | sed -n "s/.*$1 *\(0x[0-9a-f]*\).*/\1/p" | tail -n 1
}

require_root_privileges
get_kconfig
kconfig_enabled "CONFIG_ARM64_KEXEC_PURGATORY=y" "there is a purgatory"
if [ $? -eq 0 ]; then
	log_skip "CONFIG_ARM64_KEXEC_PURGATORY is not enabled"
fi
# What may keep anybody from loading, and says nothing of a purgatory.
kconfig_enabled "CONFIG_KEXEC_SIG_FORCE=y" "signatures are required"
if [ $? -eq 1 ]; then
	log_skip "only a signed kernel can be loaded"
fi
if [ -f "$LOCKDOWN" ] && ! grep -q "\[none\]" "$LOCKDOWN"; then
	log_skip "the kernel is locked down"
fi
if ! sysctl_is kexec_load_disabled 0 || ! sysctl_is kexec_load_limit_panic -1; then
	log_skip "loading is disabled, or limited"
fi
if [ "$(cat /sys/kernel/kexec_crash_size)" = 0 ]; then
	log_skip "no memory is reserved, see crashkernel="
fi
if [ "$(loaded)" != 0 ]; then
	log_skip "a crash image is loaded, and would be lost"
fi
if [ ! -f "$IMAGE" ]; then
	log_skip "no kernel to load at $IMAGE"
fi

# Nothing was loaded before, so nothing is left behind, however it ends.
trap unload EXIT
load 0
purgatory=$(logged "Loaded purgatory at")
start=$(logged "start:")
if [ -z "$purgatory" ]; then
	log_info "this kexec asks for no debug messages, or the kernel has none"
elif [ "$start" != "$purgatory" ]; then
	log_fail "the image starts at $start, and its purgatory is at $purgatory"
fi

# Each load takes the place of the one before it.
for before in 1 2 3 4 5 6 7 8; do
	load $before
done
if [ "$(logged "Loaded purgatory at")" != "$purgatory" ]; then
	log_fail "the same image has its purgatory elsewhere"
fi

if ! unload || [ "$(loaded)" != 0 ]; then
	log_fail "the crash image was not unloaded"
fi

log_pass "a crash image has a purgatory, and can be loaded over and unloaded"
