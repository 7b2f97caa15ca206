#!/bin/sh
# The init of a capture kernel: copies /proc/vmcore to a disk, and powers off.
#
# kexecemu.disk=DEVICE    where to, /dev/vda unless told
# kexecemu.copy=0         only say what there is, even with a disk
# kexecemu.bs=SIZE        bytes that dd reads and writes at a time

name=kdump
. /common.sh

if [ ! -e /proc/vmcore ]; then
	power_off "end: no /proc/vmcore, this kernel was not started by a crash"
fi
size=$(stat -c %s /proc/vmcore)
say "/proc/vmcore has $size bytes"
# The notes come right after the first page, vmcoreinfo the last of them.
head -c 32768 /proc/vmcore | tr '\0' '\n' | grep -a -E '^(OSRELEASE|CRASHTIME)=' | while read -r line; do
	say "$line"
done

load_modules
disk=$(parameter disk /dev/vda)
if [ ! -b "$disk" ] || [ "$(parameter copy 1)" = 0 ]; then
	head -c 4096 /proc/vmcore >/dev/null || power_off "end: /proc/vmcore cannot be read"
	power_off "end: headers read, nothing copied"
fi

# Past the page cache: each page is copied once by this CPU, from the crashed kernel's memory to dd's buffer, and the
# disk takes it from there. The size is one of whole pages, so the last block is one of whole sectors.
bs=$(parameter bs 1M)
told=$(dd if=/proc/vmcore of="$disk" bs="$bs" oflag=direct 2>&1)
status=$?
[ $status = 0 ] || echo "$told" | while read -r line; do
	say "$line"
done
power_off "end: status $status, $size bytes to $disk"
