#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# A real systemd to test against: a Debian tree booted by systemd-nspawn.
#
#   boot.sh [--share DIR] [--cache DIR] [--] CMD [ARG...]   boot, run CMD inside, power off; CMD's exit status
#   boot.sh --make [--cache DIR]                            only make the tree, print where it is
#
# or, for a test of several steps, sourced:
#
#   . sandbox/nspawn/boot.sh
#   trap 'poweroff' EXIT
#   root=$(root_make "")            # "" = the default cache
#   boot "$root" --bind=DIR:/share  # more options of systemd-nspawn, if any
#   run systemctl status antmedia
#   poweroff
#
# What happens inside lives on a tmpfs over the tree: every boot starts from the same bytes, and poweroff leaves
# nothing behind but the cached tree. Needs root. A boot takes a second, the first root_make about a minute.

# The distribution of the tree. It is in the cache's name, so that changing one of these makes a new tree.
: "${NSPAWN_SUITE:=bookworm}"
# Where its packages come from; empty: debootstrap's own default.
: "${NSPAWN_MIRROR:=}"
NSPAWN_HOSTNAME=ams-node
NSPAWN_TRY=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../tools/scripts" && pwd)/try.sh
# libcurl4 is what the mongod of a test needs.
: "${NSPAWN_PACKAGES:=systemd,systemd-sysv,dbus,udev,iproute2,libpam-systemd,procps,kmod,libcurl4}"

# Limits in seconds. They are only met where something is wrong: a boot is normally up in one second.
: "${NSPAWN_BOOT_LIMIT:=60}"
: "${NSPAWN_POWEROFF_LIMIT:=120}"

NSPAWN_PID=""     # systemd-nspawn itself
NSPAWN_LEADER=""  # process 1 of the container, as this machine numbers it
NSPAWN_STATE=""   # a scratch directory: pid file and console
NSPAWN_CGROUPS=() # the machine's control group, one folder per hierarchy

nspawn_say() { printf 'nspawn: %s\n' "$*" >&2; }

# nspawn_tools installs what the host lacks, from its own distribution.
nspawn_tools() {
	local missing=()
	command -v debootstrap >/dev/null || missing+=(debootstrap debian-archive-keyring)
	command -v systemd-nspawn >/dev/null || missing+=(systemd-container)
	command -v nsenter >/dev/null || missing+=(util-linux)
	[ ${#missing[@]} -eq 0 ] && return 0
	nspawn_say "installing ${missing[*]}"
	DEBIAN_FRONTEND=noninteractive "$NSPAWN_TRY" "${missing[*]}" bash -c 'apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"' apt "${missing[@]}" >&2
}

# root_make CACHE_DIR makes the tree once and prints its path. CACHE_DIR may be empty: the user's cache.
# It is built beside its final name and renamed, so an interrupted run is never taken for a tree.
root_make() {
	local cache=${1:-}
	[ -n "$cache" ] || cache=${XDG_CACHE_HOME:-${HOME:?HOME is not set and no cache directory was given}/.cache}/amsagent
	if [ "$(id -u)" != 0 ]; then
		nspawn_say "needs root"
		return 1
	fi
	mkdir -p "$cache" || return 1
	cache=$(cd "$cache" && pwd -P) || return 1
	local want root
	want=$(printf '%s %s %s' "$NSPAWN_SUITE" "$NSPAWN_PACKAGES" "$NSPAWN_HOSTNAME" | sha256sum | cut -c1-12)
	root=$cache/nspawn-$NSPAWN_SUITE-$want
	nspawn_tools || return 1
	(
		# Two callers make one tree: the second waits and finds it.
		flock 9 || exit 1
		[ -d "$root" ] && exit 0
		part=$root.part
		# What a killed debootstrap leaves mounted would be emptied, or in the way.
		for mounted in "$part/proc" "$part/sys"; do
			mountpoint -q "$mounted" && { umount -R "$mounted" || exit 1; }
		done
		rm -rf --one-file-system "$part"
		nspawn_say "making $root (about a minute, once)"
		# shellcheck disable=SC2016 # for the shell that is started
		if ! "$NSPAWN_TRY" "Debian $NSPAWN_SUITE" bash -c 'rm -rf --one-file-system "$1" && debootstrap --variant=minbase --include="$2" "$3" "$1" $4' \
			debootstrap "$part" "$NSPAWN_PACKAGES" "$NSPAWN_SUITE" "$NSPAWN_MIRROR" >"$part.log" 2>&1 9>&-; then
			nspawn_say "debootstrap failed; the end of $part.log:"
			tail -n 20 "$part.log" >&2
			exit 1
		fi
		rm -rf "$part"/var/cache/apt/archives/*.deb "$part"/var/lib/apt/lists/*
		# Every container gets an id of its own at boot. D-Bus keeps a second copy, from which systemd would take the old one.
		: >"$part/etc/machine-id"
		rm -f "$part/var/lib/dbus/machine-id"
		# debootstrap copies this machine's name and gives no hosts file. A fixed name, which nothing resolves, is the
		# same everywhere; a test that wants it resolvable adds its line.
		printf '%s\n' "$NSPAWN_HOSTNAME" >"$part/etc/hostname"
		printf '127.0.0.1\tlocalhost\n::1\tlocalhost\n' >"$part/etc/hosts"
		rm -f "$part.log"
		mv "$part" "$root"
	) 9>"$root.lock" || return 1
	printf '%s\n' "$root"
}

# root_with PACKAGE... makes once, beside the tree of root_make in the user's cache, one that has more packages, and
# prints its path. Nothing of them is started: there is no systemd in it yet.
root_with() {
	local base want root
	base=$(root_make "") || return 1
	want=$(printf '%s ' "$@" | sha256sum | cut -c1-12)
	root=$base-$want
	(
		flock 9 || exit 1
		[ -d "$root" ] && exit 0
		part=$root.part
		rm -rf --one-file-system "$part"
		nspawn_say "making $root (half a minute, once)"
		# The mirror's name is resolved as on this machine. The caller's folder for temporary files is not in the tree.
		if ! { cp -a "$base" "$part" && cp -L /etc/resolv.conf "$part/etc/resolv.conf" &&
			TMPDIR=/tmp DEBIAN_FRONTEND=noninteractive "$NSPAWN_TRY" "$*" chroot "$part" \
				sh -c 'apt-get -qq update && apt-get -qq install -y --no-install-recommends "$@"' apt "$@"; } </dev/null >"$part.log" 2>&1 9>&-; then
			nspawn_say "installing $* failed; the end of $part.log:"
			tail -n 20 "$part.log" >&2
			exit 1
		fi
		rm -rf "$part"/var/cache/apt/*.bin "$part"/var/cache/apt/archives/*.deb "$part"/var/lib/apt/lists/*
		: >"$part/etc/machine-id"
		rm -f "$part/var/lib/dbus/machine-id"
		cp -a "$base/etc/resolv.conf" "$part/etc/resolv.conf"
		rm -f "$part.log"
		mv "$part" "$root"
	) 9>"$root.lock" || return 1
	printf '%s\n' "$root"
}

# nspawn_cgroups makes a control group for the machine. nspawn --keep-unit puts a machine into "payload" below the group it is started
# in. Two machines that were started in one group would share it, with one folder per unit: when one systemd removes a stopped
# unit's, the other fails to start a process in it (219/CGROUP).
nspawn_cgroups() {
	local unified=/sys/fs/cgroup group
	NSPAWN_CGROUPS=()
	# Beside cgroup v1 there are two hierarchies by which a systemd may name its groups.
	if [ -d /sys/fs/cgroup/systemd ]; then
		NSPAWN_CGROUPS+=("/sys/fs/cgroup/systemd$(sed -n 's/^[0-9]*:name=systemd://p' /proc/self/cgroup)")
		unified=/sys/fs/cgroup/unified
	fi
	if [ -d "$unified" ]; then NSPAWN_CGROUPS+=("$unified$(sed -n 's/^0:://p' /proc/self/cgroup)"); fi
	NSPAWN_CGROUPS=("${NSPAWN_CGROUPS[@]/%//nspawn-$(basename "$NSPAWN_STATE")}")
	for group in "${NSPAWN_CGROUPS[@]}"; do mkdir "$group" || return 1; done
}

# boot ROOT [OPTION...] boots ROOT and returns once systemd inside says running or degraded.
boot() {
	local root=$1 state tries child
	shift
	if [ -n "$NSPAWN_PID" ]; then
		nspawn_say "already booted (process $NSPAWN_PID); power it off first"
		return 1
	fi
	NSPAWN_STATE=$(mktemp -d) || return 1
	local keep=()
	# On a machine that itself runs systemd nspawn makes a scope of its own; elsewhere there is none to make.
	if ! [ -d /run/systemd/system ]; then
		keep=(--keep-unit)
		nspawn_cgroups || return 1
	fi
	# setsid: a Ctrl-C meant for the caller must not reach nspawn; poweroff ends it in order.
	# The inner shell notes the pid, enters the group and becomes nspawn: $! would be setsid's where job control is on.
	# shellcheck disable=SC2016
	SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 setsid sh -c 'echo $$ >"$1/pid.new" && mv "$1/pid.new" "$1/pid"
shift
while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit; shift; done
shift
exec "$@"' \
		sh "$NSPAWN_STATE" "${NSPAWN_CGROUPS[@]}" -- \
		systemd-nspawn -q -D "$root" -b --register=no "${keep[@]}" --console=pipe --volatile=overlay "$@" \
		</dev/null >"$NSPAWN_STATE/console" 2>&1 &
	for ((tries = 0; tries < NSPAWN_BOOT_LIMIT * 5; tries++)); do
		if [ -z "$NSPAWN_PID" ] && [ -s "$NSPAWN_STATE/pid" ]; then NSPAWN_PID=$(cat "$NSPAWN_STATE/pid"); fi
		if [ -n "$NSPAWN_PID" ]; then
			if ! nspawn_alive; then
				nspawn_say "systemd-nspawn ended before the boot was done:"
				tail -n 20 "$NSPAWN_STATE/console" >&2
				nspawn_forget
				return 1
			fi
			# While it sets up, nspawn has a helper as its child too; only process 1 of another namespace answers.
			# shellcheck disable=SC2013 # words are meant: the pids are on one line
			for child in $(cat "/proc/$NSPAWN_PID/task/$NSPAWN_PID/children" 2>/dev/null); do
				[ "$(readlink "/proc/$child/ns/pid")" != "$(readlink /proc/self/ns/pid)" ] || continue
				state=$(nsenter -t "$child" -a systemctl is-system-running 2>/dev/null </dev/null)
				case $state in
				running | degraded)
					NSPAWN_LEADER=$child
					[ "$state" = running ] || nspawn_say "booted, but degraded: $(run systemctl --failed --no-legend --plain | tr '\n' ';')"
					return 0
					;;
				esac
			done
		fi
		sleep 0.2
	done
	nspawn_say "not up after $NSPAWN_BOOT_LIMIT s; the console says:"
	tail -n 20 "$NSPAWN_STATE/console" >&2
	poweroff
	return 1
}

# run CMD [ARG...] runs a command inside and gives its exit status. Standard input is the caller's.
run() {
	if [ -z "$NSPAWN_LEADER" ]; then
		nspawn_say "nothing is booted"
		return 1
	fi
	# A login's environment, not the caller's: what is tested must not see variables of the machine around it.
	nsenter -t "$NSPAWN_LEADER" -a env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"
}

# poweroff shuts the container down in order and waits for it. It is never killed hard: that would leave its
# processes and mounts on this machine. Where it does not end, it says so and leaves it to a person.
poweroff() {
	local tries asked=""
	[ -n "$NSPAWN_STATE" ] || return 0
	[ -n "$NSPAWN_PID" ] || NSPAWN_PID=$(cat "$NSPAWN_STATE/pid" 2>/dev/null)
	if [ -n "$NSPAWN_PID" ]; then
		for ((tries = 0; tries < NSPAWN_POWEROFF_LIMIT * 5; tries++)); do
			nspawn_alive || break
			if [ -z "$asked" ]; then
				asked=yes
				# SIGTERM is nspawn's own order for an orderly shutdown, for a container that does not answer.
				{ [ -n "$NSPAWN_LEADER" ] && run systemctl poweroff </dev/null 2>/dev/null; } || kill -TERM "$NSPAWN_PID" 2>/dev/null
			elif [ "$tries" = $((NSPAWN_POWEROFF_LIMIT * 5 / 2)) ]; then
				kill -TERM "$NSPAWN_PID" 2>/dev/null
			fi
			sleep 0.2
		done
		if nspawn_alive; then
			nspawn_say "process $NSPAWN_PID is still there after $NSPAWN_POWEROFF_LIMIT s; its console: $NSPAWN_STATE/console"
			return 1
		fi
		wait "$NSPAWN_PID" 2>/dev/null
	fi
	nspawn_forget
}

# nspawn_alive: a zombie is not alive; without job control its parent reaps it only later.
nspawn_alive() {
	local state
	state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$NSPAWN_PID/status" 2>/dev/null)
	[ -n "$state" ] && [ "$state" != Z ]
}

nspawn_forget() {
	local group
	for group in "${NSPAWN_CGROUPS[@]}"; do
		if [ -d "$group" ]; then find "$group" -depth -type d -exec rmdir {} +; fi
	done
	rm -rf "$NSPAWN_STATE"
	NSPAWN_PID="" NSPAWN_LEADER="" NSPAWN_STATE="" NSPAWN_CGROUPS=()
}

nspawn_main() {
	local cache="" make="" bind=() root status
	while [ $# -gt 0 ]; do
		case $1 in
		--make) make=yes ;;
		--cache)
			cache=${2:?--cache needs a directory}
			shift
			;;
		--share)
			bind=("--bind=$(cd "${2:?--share needs a directory}" && pwd -P):/share") || return 2
			shift
			;;
		-h | --help)
			sed -n '/^# A real systemd/,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
			return 0
			;;
		--)
			shift
			break
			;;
		-*)
			nspawn_say "unknown option $1"
			return 2
			;;
		*) break ;;
		esac
		shift
	done
	root=$(root_make "$cache") || return 1
	if [ -n "$make" ]; then
		printf '%s\n' "$root"
		return 0
	fi
	if [ $# -eq 0 ]; then
		nspawn_say "no command given"
		return 2
	fi
	trap 'poweroff' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	boot "$root" "${bind[@]}" || return 1
	run "$@"
	status=$?
	poweroff || return 1
	trap - EXIT
	return $status
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
	set -u
	nspawn_main "$@"
	exit
fi
