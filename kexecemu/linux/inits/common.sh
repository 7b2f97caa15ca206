# What both inits do first. Read by them, never run.
#
# Every line of theirs on the console begins with a name, "first" or "kdump", and is meant for people as well as for
# programs. Processes are few: starting one costs an emulated machine more than what most of them do.

# What the command line says of kexecemu.NAME, else what is given.
parameter() {
	value=$2
	for word in $cmdline; do
		case $word in
		"kexecemu.$1="*) value=${word#*=} ;;
		esac
	done
	echo "$value"
}

# A line on the console.
say() {
	echo "$name: $*"
}

# The kernel is told to stop: nothing below init has anything to lose.
power_off() {
	say "$*"
	sync
	poweroff -f
	# An init that ends is a panic, and the power may take a moment to go.
	while :; do sleep 1; done
}

# Drivers of the disk, in the order in which they depend on each other; those that are built in are not there.
load_modules() {
	for module in /modules/*.ko; do
		[ -e "$module" ] || continue
		insmod "$module" || say "cannot load $module"
	done
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
# Without a driver for the console the kernel's log may get through, by an early one.
silent=
consoles=
[ -e /sys/class/tty/console/active ] && read -r consoles </sys/class/tty/console/active
if [ "${consoles:-tty0}" = tty0 ]; then
	silent=yes
	echo on >/proc/sys/kernel/printk_devkmsg
	exec >/dev/kmsg 2>&1
fi
read -r cmdline </proc/cmdline
read -r release </proc/sys/kernel/osrelease
say "Linux $release is up"
