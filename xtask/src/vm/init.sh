#!/opt/faultline/busybox sh
# PID 1 of a guest: mounts what tests need, loads modules, runs the command, reports its status, powers off.
#
# Commands here are busybox applets, by name: its shell runs those before any program of the same name in the search
# path, which is why what users write (and `ip` and `tc` in it) is run by bash.
#
# It runs twice. The first time in the kernel's initramfs, where it swaps in the host's root file system if the
# run wants it; the second time, in the root that stays, it does everything else. /opt/faultline is there in both.

home=/opt/faultline
busybox=$home/busybox
. $home/config

say() {
	echo "guest: $*" >/dev/console
}

# Modules are listed with their dependencies first, one "NAME PARAMETERS" to a line.
load_modules() {
	while read -r name parameters; do
		[ -n "$name" ] || continue
		# shellcheck disable=SC2086 # several parameters are several words
		$busybox insmod "$home/modules/$name.ko" $parameters || echo "guest: module $name did not load"
	done <"$home/modules/$1"
}

# The host's files below, read-only; a tmpfs above takes every write. PID 1 itself must do the chroot: the kernel's
# own helpers (modprobe) share its root. The move keeps "/" a mount point, so that namespaces work as usual.
enter_host_root() {
	load_modules host-root
	$busybox mkdir -p /host /writes /merged
	$busybox mount -t virtiofs -o ro host /host || return 1
	$busybox mount -t tmpfs -o size=75% writes /writes || return 1
	$busybox mkdir /writes/upper /writes/work
	$busybox mount -t overlay -o lowerdir=/host,upperdir=/writes/upper,workdir=/writes/work root /merged || return 1
	$busybox mkdir -p /merged$home
	$busybox mount --bind $home /merged$home || return 1
	cd /merged || return 1
	$busybox mount --move . / || return 1
	exec $busybox chroot . $home/init second
}

# mount_at TYPE FOLDER [OPTIONS]: a file system this kernel lacks is simply not there for the tests.
mount_at() {
	[ -d "$2" ] || $busybox mkdir -p "$2" 2>/dev/null
	$busybox mount -t "$1" ${3:+-o "$3"} "$1" "$2" 2>/dev/null
}

mount_all() {
	mount_at proc /proc
	mount_at sysfs /sys
	mount_at devtmpfs /dev
	mount_at devpts /dev/pts
	mount_at tmpfs /dev/shm mode=1777
	mount_at tmpfs /run mode=755
	mount_at tmpfs /tmp mode=1777
	mount_at cgroup2 /sys/fs/cgroup
	mount_at bpf /sys/fs/bpf
	mount_at securityfs /sys/kernel/security
	mount_at debugfs /sys/kernel/debug
	mount_at tracefs /sys/kernel/tracing
}

# What a distribution's init would have done before a service starts.
prepare() {
	for controller in cpu io memory pids cpuset; do
		echo +$controller >/sys/fs/cgroup/cgroup.subtree_control
	done 2>/dev/null
	$busybox mkdir -p /dev/net
	[ -e /dev/net/tun ] || $busybox mknod /dev/net/tun c 10 200
	[ -e /dev/fd ] || $busybox ln -s /proc/self/fd /dev/fd
	load_modules network
	load_modules block
	$busybox ip link set lo up
	$busybox hostname guest
}

# A guest that hangs is killed from outside, which leaves no trace of why. So shortly before that, say what every
# process is doing; sysrq adds the processors (l) and the blocked tasks (w) on kernels that have it.
watch_deadline() {
	read -r uptime _ </proc/uptime
	$busybox sleep $((DEADLINE > ${uptime%.*} + 6 ? DEADLINE - ${uptime%.*} - 5 : 1))
	say "the deadline is near, this is still running:"
	for process in /proc/[0-9]*; do
		words=$($busybox tr '\0' ' ' <"$process/cmdline")
		case $words in "" | *$home/init*) continue ;; esac
		echo "${process#/proc/} $($busybox grep State "$process/status") $words"
		$busybox cat "$process/stack"
	done 2>/dev/null
	for key in l w; do echo $key; done 2>/dev/null >/proc/sysrq-trigger
}

run_command() {
	# Quiet while booting; from here on the console is the kernel log of the tests.
	$busybox dmesg -n 7
	[ "$DEADLINE" = 0 ] || watch_deadline &
	FAULTLINE_RESULTS=$results $busybox setsid bash $home/command </dev/null 3>&-
}

run_shell() {
	say "Linux $($busybox uname -r); 'exit' powers off"
	PS1="guest $KERNEL:\\w # " $busybox setsid $busybox cttyhack bash --norc 3>&-
}

# The status goes to both ports. Setting a terminal's mode waits until what was written to it has left.
finish() {
	echo "@guest exit $1" >$results
	$busybox stty -F $results raw
	$busybox dmesg -n 1
	echo "@guest exit $1" >/dev/console
	$busybox stty -F /dev/console sane
	$busybox poweroff -f
}

results=/dev/ttyS1
export PATH=$home/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=${TERM:-linux} LANG=C.UTF-8 FAULTLINE_KERNEL=$KERNEL

if [ "$1" != second ]; then
	[ "$HOST_ROOT" = 1 ] || exec $home/init second
	enter_host_root
	$busybox mount -t devtmpfs devtmpfs /dev
	say "the host's root file system could not be mounted"
	finish 125
fi
cd /
mount_all
exec </dev/console >/dev/console 2>&1
# Kept open: each first open of a serial port sets up its interrupt anew, which costs 30 ms on 6.1.
exec 3>$results
$busybox stty -F $results raw -echo
prepare
echo "@guest up" >&3
if [ "$SHELL_WANTED" = 1 ]; then run_shell; else run_command; fi
finish $?
