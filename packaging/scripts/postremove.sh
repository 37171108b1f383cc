#!/bin/sh
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# After the files are gone, for dpkg, which says remove, purge, upgrade, failed-upgrade, abort-install, abort-upgrade or
# disappear, and for rpm, which says how many versions are left: 0 is the end, 1 an upgrade.
#
# A purge, and an erase, which is all that rpm has, leave nothing of the agent: its settings, the connection string and the
# state go. One thing they do not do: on a machine that is still a node they keep what alone can give its files back byte
# for byte, and say so.
set -eu

root=${DPKG_ROOT:-}
units="amsagent.service amsagent-node.service amsagent-balance.service amsagent-web.service"

say() { echo "amsagent: $*" >&2; }

reload() {
	if [ -z "$root" ] && [ -d /run/systemd/system ]; then systemctl --system daemon-reload || true; fi
}

# node: this machine joined, or began to, and has not left.
node() {
	for file in state.json undo.json journal; do
		if [ -e "$root/var/lib/amsagent/$file" ]; then return 0; fi
	done
	return 1
}

wipe() {
	# What enabled the units, and what the operator added to them.
	if [ -n "${DPKG_MAINTSCRIPT_PACKAGE:-}" ] && command -v deb-systemd-helper >/dev/null 2>&1; then
		for unit in $units; do deb-systemd-helper purge "$unit" >/dev/null || true; done
	fi
	for unit in $units; do
		rm -f "$root"/etc/systemd/system/*.wants/"$unit" "$root"/etc/systemd/system/*.requires/"$unit"
		rm -rf "$root/etc/systemd/system/$unit.d"
	done
	if [ -z "$root" ]; then rm -rf /run/amsagent; fi
	if node; then
		say "this machine is still a node of its cluster: /var/lib/amsagent and /etc/amsagent are kept, because only they can"
		say "give its files back. To finish: install amsagent again, run amsagent leave, and remove it once more."
		return
	fi
	rm -rf "$root/etc/amsagent" "$root/var/lib/amsagent"
}

case ${1:-} in
purge | 0)
	wipe
	reload
	;;
remove | disappear)
	reload
	;;
upgrade | failed-upgrade | abort-install | abort-upgrade | [1-9]*) ;;
*)
	say "postremove: nothing is known of $*"
	;;
esac
exit 0
