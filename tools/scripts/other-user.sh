#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# The README's two commands as a user who is not root, in a clone and a home of his own. Needs root, to become that user,
# and a Go that everybody may run.
set -euo pipefail

unset RERUN TEST_JSON REQUIRE_REAL REQUIRE_SYSTEMD REQUIRE_JAVA REQUIRE_MONGOD CI # of the tier that this may run in
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git clone -q --no-hardlinks . "$work/project"
[ ! -d ../shared ] || ln -s "$(cd ../shared && pwd)" "$work/shared"
mkdir "$work/home"
chown -R 65534:65534 "$work"
# What Go is told in root's home is told here by variables.
as=(env -u XDG_CACHE_HOME "HOME=$work/home" GOENV=off "GOPROXY=$(go env GOPROXY)" "GOSUMDB=$(go env GOSUMDB)" GOPATH= GOCACHE= GOMODCACHE=
  setpriv --reuid=65534 --regid=65534 --clear-groups --pdeathsig TERM)
cd "$work/project"
failed=0
for target in test demo; do
  "${as[@]}" make "$target" || failed=1
done
exit "$failed"
