#!/bin/sh
# The init of a first kernel: loads a crash kernel by kexec-tools, and crashes.
#
# /kexec.conf has the words after "kexec", one in a line.
#
# kexecemu.wait=1         waits for a line on the console between load and crash, so that something can be done there;
#                         one that says "store" is done here
# kexecemu.crash=0        powers off instead
# kexecemu.records=WHERE  what a load leaves to be looked at: "console" shows it, "disk" writes it there as a tar
# kexecemu.disk=DEVICE    which disk, /dev/vda unless told
# kexecemu.kallsyms=real  leaves kexec the kernel's own /proc/kallsyms

name=first
. /common.sh

# Without KALLSYMS_ALL, as in Debian's 6.1 cloud kernels, /proc/kallsyms has no _text. kexec-tools reckons the linear
# map's address from it; lacking it, it writes an elfcorehdr of nonsense without a word, and the dump is lost. Besides,
# kexec reads the whole file for each symbol, and it takes the kernel 600 million instructions to print it once. So
# kexec is shown a file with the three that it asks for. _text is where the Image begins, on 2 MiB both in virtual and
# in physical addresses, with _stext right after its head; "Kernel code" begins with one of them (with _text in later
# kernels) and ends where __init_begin is.
short_kallsyms() {
	image=0x1fffff
	stext=$(grep -m 1 ' _stext$' /proc/kallsyms)
	stext=$((0x${stext%% *}))
	set -- $(grep -m 1 ' : Kernel code$' /proc/iomem)
	size=$((0x${1#*-} + 1 - (0x${1%-*} & ~image)))
	text=$((stext & ~image))
	printf '%x T _text\n%x T _stext\n%x T __init_begin\n' $text $stext $((text + size)) >/tmp/kallsyms
	mount --bind /tmp/kallsyms /proc/kallsyms
}
[ "$(parameter kallsyms short)" = real ] || short_kallsyms

leave_records() {
	records=$(parameter records none)
	[ "$records" != none ] || return
	cd /tmp/records
	cat /proc/iomem >iomem.txt
	cat /sys/firmware/fdt >fdt.dtb
	cat /sys/kernel/vmcoreinfo >vmcoreinfo-address.txt
	# The note in the head of /proc/kcore is the same that a dump will have; nothing else shows it to user space.
	# It ends at its first zero; what else lies in the head, and what of memory, may look like a line of it.
	head -c 32768 /proc/kcore | tr '\0' '\n' | grep -a -A 400 '^OSRELEASE=' |
		while read -r line && [ -n "$line" ]; do echo "$line"; done >vmcoreinfo.txt
	dmesg >dmesg.txt
	case $records in
	disk)
		load_modules
		disk=$(parameter disk /dev/vda)
		tar -cf "$disk" *
		status=$?
		sync
		say "records to $disk, status $status"
		;;
	console)
		for file in *; do
			say "record $file"
			case $file in
			*.dtb) gzip -c "$file" | base64 ;; # QEMU's has a megabyte of zeros at its end
			*) cat "$file" ;;
			esac
			say "end of $file"
		done
		;;
	esac
	cd /
}

# The kernel gives init the words of its command line that it does not know itself.
set --
while read -r word; do
	set -- "$@" "$word"
done </kexec.conf
mkdir -p /tmp/records
kexec "$@" >/tmp/records/kexec.txt 2>&1
status=$?
# What it says is long with -d, and of interest at once only when it went wrong.
if [ $status != 0 ]; then
	cat /tmp/records/kexec.txt
	read -r size </sys/kernel/kexec_crash_size
	say "kexec_crash_size $size"
	leave_records
	power_off "end: kexec failed with status $status"
fi

grep -i -E 'crash|System RAM' /proc/iomem | while read -r line; do
	say "iomem $line"
done
read -r size </sys/kernel/kexec_crash_size
read -r loaded </sys/kernel/kexec_crash_loaded
say "kexec_crash_size $size, kexec_crash_loaded $loaded"

leave_records

[ "$loaded" = 1 ] || power_off "end: no crash kernel is loaded"
say "crash kernel loaded"
if [ "$(parameter wait 0)" = 1 ]; then
	say "waiting for a line"
	read -r line
	# "store ADDRESS BYTES", as for printf: a store of this CPU's by the linear map, before the crash or as the crash.
	while [ "${line%% *}" = store ]; do
		echo 1 >/proc/sys/kernel/panic_on_oops
		set -- $line
		say "store at $2"
		printf "$3" | dd of=/dev/mem bs=1 seek=$(($2)) conv=notrunc 2>/dev/null
		read -r line
	done
fi
[ "$(parameter crash 1)" = 0 ] && power_off "end: loaded, no crash wanted"
say "crash"
echo c >/proc/sysrq-trigger
