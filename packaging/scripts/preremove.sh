#!/bin/sh
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# Before the files go, for dpkg, which says remove, upgrade, deconfigure or failed-upgrade, and for rpm, which says how many
# versions will be left: 0 is the end, 1 an upgrade.
#
# Removing stops the daemon and says no word to the cluster: Ant Media Server serves on as the node that it is, with nobody
# who sends heartbeats for it or drains it. To leave would restart the server and cut who is on it, which nobody asked for. It is said
# here, while `amsagent leave` can still be run.
set -eu

root=${DPKG_ROOT:-}

say() { echo "amsagent: $*" >&2; }
live() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

# node: this machine joined, or began to, and has not left.
node() {
	for file in state.json undo.json journal; do
		if [ -e "$root/var/lib/amsagent/$file" ]; then return 0; fi
	done
	return 1
}

stop() {
	if live; then
		if node && systemctl --quiet is-active amsagent.service; then : >/var/lib/amsagent/resume; fi
		for unit in amsagent.service amsagent-node.service amsagent-balance.service amsagent-web.service; do
			if command -v deb-systemd-invoke >/dev/null 2>&1; then
				deb-systemd-invoke stop "$unit" >/dev/null || say "could not stop $unit"
			else
				systemctl --quiet stop "$unit" || say "could not stop $unit"
			fi
		done
	fi
	if node; then
		say "this machine stays a node of its cluster: Ant Media Server serves on, and nobody drains it any more."
		say "To take it out as well, install amsagent again and run: amsagent leave"
	fi
}

case ${1:-} in
remove)
	# Debian keeps the links that enable the units until the package is purged.
	stop
	;;
0)
	stop
	if command -v systemctl >/dev/null 2>&1; then
		systemctl --no-reload --quiet disable amsagent.service amsagent-node.service amsagent-balance.service amsagent-web.service || true
	fi
	;;
upgrade | deconfigure | failed-upgrade | [1-9]*) ;;
*)
	say "preremove: nothing is known of $*"
	;;
esac
exit 0
