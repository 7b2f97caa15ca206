#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# What kexecemu doctor wants to know of a machine, as one tar. Reads only; as root it sees more.
#
#   sh collect.sh [-o FILE.tar] [-f] [-k LOG] [-s LOG]
#
# -o  where to (kdump-facts.tar)       -k  output of kexec -d, kept from a load
# -f  the kernel and initrd as well    -s  what a serial console showed of a crash
#
# Left out: see leave_out() below; the tar has the same list. KDUMP_FACTS_ROOT is for tests.

out=kdump-facts.tar files='' kexec_log='' serial_log=''
while getopts o:fk:s: option; do
	case $option in
	o) out=$OPTARG ;;
	f) files=yes ;;
	k) kexec_log=$(readlink -f "$OPTARG") ;;
	s) serial_log=$(readlink -f "$OPTARG") ;;
	*) exit 2 ;;
	esac
done
case $out in /*) ;; *) out=$PWD/$out ;; esac
umask 077
work=$(mktemp -d) || exit
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
to=$work/kdump-facts
mkdir "$to" && cd "${KDUMP_FACTS_ROOT:-/}" || exit
host=$(cat proc/sys/kernel/hostname) release=$(cat proc/sys/kernel/osrelease) serial=
[ -r proc/device-tree/serial-number ] && serial=$(tr -cd 'A-Za-z0-9._-' <proc/device-tree/serial-number)

leave_out() {
	cat <<-'END'
		left out, and why: none of it changes what a crash kernel does
		the host's name          HOST stands for it: it says whose machine this is
		MAC and IP addresses     MAC and IP stand for them: they name the machine and its network
		serial numbers, UUIDs    SERIAL and UUID stand for them: they name the machine and its disks
		kaslr-seed, rng-seed     zeros in the device tree: secrets of the kernel that runs
		targets of kdump.conf    the first word of each such line: who may log in where
	END
}

# Text, with what names the machine replaced.
clean() {
	sed -e "s/${serial:-no serial number}/SERIAL/g" -e "s/\<$host\>/HOST/g" \
		-e 's/[0-9A-Fa-f]\{2\}\(:[0-9A-Fa-f]\{2\}\)\{5,\}/MAC/g' \
		-e 's/[0-9a-fA-F]\{8\}\(-[0-9a-fA-F]\{4\}\)\{3\}-[0-9a-fA-F]\{12\}/UUID/g' \
		-e 's/\<[0-9]\{1,3\}\(\.[0-9]\{1,3\}\)\{3\}\>/IP/g' \
		-e 's/\([Ss]erial[ _-]\{0,1\}[Nn]umber[=: ]*\)[^ ]*/\1SERIAL/'
}

# keep NAME COMMAND...: what a command prints; what there is not, or may not be read, is an empty file.
keep() {
	name=$1
	shift
	"$@" 2>/dev/null | clean >"$to/$name"
}

# Small files of /proc and /sys: each line with its path in front.
each() {
	for path; do
		if [ -f "$path" ] && [ -r "$path" ]; then
			while IFS= read -r line || [ -n "$line" ]; do echo "/$path: $line"; done <"$path"
		fi
	done
}

versions() {
	cat etc/os-release
	for tool in 'kexec --version' 'makedumpfile -v' 'crash --version' 'drgn --version' 'kdumpctl --version'; do
		echo "$tool: $($tool 2>&1 </dev/null | head -n 1)"
	done
}

# Zeros in the device tree's blob wherever it has what a file says, of 4 bytes and more.
blank() {
	want=$(od -An -v -tx1 "$1" | tr -d ' \n')
	[ ${#want} -ge 8 ] || return
	od -An -v -tx1 "$to/fdt" | tr -d ' \n' | awk -v want="$want" '{
		while ((n = index(substr($0, at + 1), want)) > 0) { at += n; if (at % 2) print (at - 1) / 2 } }' |
		while read -r at; do
			dd if=/dev/zero of="$to/fdt" bs=1 seek="$at" count=$((${#want} / 2)) conv=notrunc 2>/dev/null
		done
}

echo 'kexecemu doctor 1' >"$to/format"
leave_out >"$to/left-out"
keep uname uname -srvm
for file in cmdline iomem meminfo cpuinfo modules consoles interrupts; do keep $file cat proc/$file; done
keep dmesg dmesg
[ -s "$to/dmesg" ] || keep dmesg journalctl -k -b -o short-monotonic --no-hostname
if [ -r "boot/config-$release" ]; then
	keep config cat "boot/config-$release"
else
	keep config gzip -dc proc/config.gz
fi
keep sysfs each sys/kernel/kexec_* sys/kernel/kexec/* sys/kernel/crash_* sys/kernel/security/l* \
	proc/sys/kernel/kexec_load_* proc/sys/kernel/panic* proc/sys/kernel/*watchdog* sys/class/watchdog/*/identity \
	sys/class/watchdog/*/timeout sys/class/watchdog/*/state sys/class/tty/console/active \
	sys/devices/system/cpu/present sys/fs/selinux/enforce sys/firmware/efi/fw_platform_size
keep tables ls sys/firmware/acpi/tables sys/class/iommu
keep versions versions
keep kdump-config cat etc/default/kdump-tools etc/sysconfig/kdump
keep kdump-conf sed -e 's/#.*//' -e 's/^\(\(nfs4\{0,1\}\|ssh\|sshkey\|raw\|ext4\|xfs\)\>\).*/\1/' etc/kdump.conf
keep boot ls -lL boot var/lib/kdump
if cat sys/firmware/fdt >"$to/fdt" 2>/dev/null; then
	find proc/device-tree/ \( -name '*-seed' -o -name serial-number -o -name '*mac-address' \) >"$work/secrets"
	while IFS= read -r path; do blank "$path"; done <"$work/secrets"
else
	rm -f "$to/fdt"
fi
[ -n "$kexec_log" ] && keep kexec-d cat "$kexec_log"
[ -n "$serial_log" ] && keep serial cat "$serial_log"
if [ -n "$files" ]; then
	for file in "boot/vmlinuz-$release" "boot/vmlinux-$release" "boot/Image-$release"; do
		[ -r "$file" ] && [ ! -e "$to/kernel" ] && cp "$file" "$to/kernel"
	done
	for file in "var/lib/kdump/initrd.img-$release" "boot/initramfs-${release}kdump.img" "boot/initrd.img-$release"; do
		[ -r "$file" ] && [ ! -e "$to/initrd" ] && cp "$file" "$to/initrd"
	done
fi
tar -cf "$work/tar" -C "$work" kdump-facts && cp "$work/tar" "$out" || exit
[ "$(id -u)" = 0 ] || echo 'not root: some of it is empty'
echo "$out: $(wc -c <"$out") bytes"
