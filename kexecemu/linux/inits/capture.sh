#!/bin/sh
# The init of a capture kernel: copies /proc/vmcore to a disk, and powers off.
#
# kexecemu.disk=DEVICE    where to, /dev/vda unless told
# kexecemu.copy=HOW       "vmcopy", the fast way; "dd" with kexecemu.bs=SIZE at a time; "no" only says what there is

name=kdump
. /common.sh

# Powers off; what nobody may have heard is in the disk's last sector as well.
finish() {
	if [ -n "$silent" ] && [ -b "$disk" ]; then
		read -r sectors <"/sys/class/block/${disk#/dev/}/size"
		printf '%s: Linux %s is up\n%s: %s\n' $name "$release" $name "$*" |
			dd of="$disk" bs=512 seek=$((sectors - 1)) conv=sync oflag=direct
	fi
	power_off "$@"
}

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
how=$(parameter copy vmcopy)
if [ ! -b "$disk" ] || [ "$how" = no ]; then
	head -c 4096 /proc/vmcore >/dev/null || finish "end: /proc/vmcore cannot be read"
	finish "end: headers read, nothing copied"
fi

status=1
if [ "$how" = vmcopy ]; then
	vmcopy /proc/vmcore "$disk"
	status=$?
	[ $status = 0 ] || say "vmcopy: status $status, trying dd"
fi
# dd knows how to say what is wrong. It goes past the page cache as well; the size is one of whole pages, so the last
# block is one of whole sectors.
if [ $status != 0 ]; then
	told=$(dd if=/proc/vmcore of="$disk" bs="$(parameter bs 1M)" oflag=direct 2>&1)
	status=$?
	[ $status = 0 ] || echo "$told" | while read -r line; do
		say "$line"
	done
fi
finish "end: status $status, $size bytes to $disk"
