#!/bin/sh
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# After the files are there, for dpkg, which says configure, abort-upgrade, abort-remove or abort-deconfigure, and for rpm,
# which says how many versions are installed now: 1 is a first installation, 2 an upgrade.
#
# A first installation enables the units and starts nothing: a daemon that is told where MongoDB is joins by itself, and
# an image may be built on a machine whose tags say so. The next boot or `amsagent join` starts it. An upgrade prints what is
# wrong with the settings, and restarts a daemon that runs or has failed, which changes nothing in the cluster.
# amsagent-node.service is never restarted: it has nothing to do between the start and the end of the machine.
#
# Nothing here fails: a service that does not start is no reason to leave a package half configured.
set -eu

root=${DPKG_ROOT:-}
units="amsagent.service amsagent-node.service"

say() { echo "amsagent: $*" >&2; }

# live: this is a machine that systemd runs, and not an image that somebody makes.
live() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

# invoke ACTION UNIT... On Debian policy-rc.d may forbid it.
invoke() {
	if command -v deb-systemd-invoke >/dev/null 2>&1; then
		deb-systemd-invoke "$@" >/dev/null || say "could not $*; see: systemctl status $2"
	else
		systemctl --quiet "$@" || say "could not $*; see: systemctl status $2"
	fi
}

# check prints what the new version finds wrong with config.yaml. A node's daemon starts all the same.
check() {
	if [ -z "$root" ]; then
		/usr/bin/amsagent config --offline >/dev/null ||
			say "the settings are wrong; a node's daemon leaves an unknown key out, or uses the last good file: amsagent status"
	fi
}

# restart restarts what runs, and starts a daemon that gave up, for example on settings that are right by now. It does not start
# what an operator stopped or disabled. The units for balancers and for the page are off until an operator enables them.
restart() {
	if ! live; then return; fi
	daemon=try-restart
	if systemctl --quiet is-failed amsagent.service && systemctl --quiet is-enabled amsagent.service; then
		systemctl reset-failed amsagent.service || true
		daemon=start
	fi
	invoke "$daemon" amsagent.service
	invoke try-restart amsagent-balance.service
	invoke try-restart amsagent-web.service
}

reload() {
	if live; then systemctl --system daemon-reload || true; fi
}

# enable_units goes by the presets of the operator, which can say no. It needs no systemd that runs.
enable_units() {
	if command -v systemctl >/dev/null 2>&1; then
		# shellcheck disable=SC2086 # a list of words
		systemctl --root="$root/" --quiet preset $units || say "could not enable the units: systemctl enable $units"
	elif [ -n "${DPKG_MAINTSCRIPT_PACKAGE:-}" ] && command -v deb-systemd-helper >/dev/null 2>&1; then
		for unit in $units; do deb-systemd-helper enable "$unit" >/dev/null || true; done
	fi
}

# resume starts both units of a node that lost them: the package was removed and is back, or could not be removed. preremove
# leaves the mark. On an upgrade there is none: who stopped the daemon before does not want it started.
resume() {
	if live && [ -e /var/lib/amsagent/resume ]; then
		rm -f /var/lib/amsagent/resume
		# shellcheck disable=SC2086 # a list of words
		invoke start $units
	fi
}

# welcome says what comes next, but for a node that gets its agent back.
welcome() {
	[ -e "$root/var/lib/amsagent/state.json" ] || echo "amsagent: next: amsagent doctor, and: amsagent join --mongo ADDRESS"
}

case ${1:-} in
configure)
	reload
	if [ -z "${2:-}" ]; then
		enable_units
		reload
		welcome
	else
		check
		restart
	fi
	resume
	;;
abort-remove)
	reload
	resume
	;;
abort-upgrade | abort-deconfigure)
	reload
	;;
1)
	reload
	enable_units
	reload
	welcome
	resume
	;;
[2-9] | [1-9][0-9]*)
	reload
	check
	restart
	;;
*)
	say "postinstall: nothing is known of $*"
	;;
esac
exit 0
