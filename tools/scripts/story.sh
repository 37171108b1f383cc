#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: [WORLD=standin|real|booted] story.sh NAME [-testwork]
# Plays one story, with all that its commands print. -testwork keeps the folders of its machines.
set -euo pipefail

name=$1
shift
export AMSAGENT_E2E_BINARY=$PWD/build/amsagent AMSAGENT_SANDBOX_BINARY=$PWD/build/sandbox
case ${WORLD:-standin} in
  real) cd sandbox && REQUIRE_REAL=1 exec go test -tags e2e ./e2e -count=1 -v -run "^TestRealScripts\$/^$name\$" "$@" ;;
  booted) cd sandbox && REQUIRE_SYSTEMD=1 exec go test -tags e2e ./e2e -count=1 -v -run "^TestSystemdScripts\$/^$name\$" "$@" ;;
esac
if [ -n "$name" ] && [ -f "testdata/script/$name.txtar" ]; then
  cd sandbox && exec go test ./e2e -count=1 -v -run "^TestScripts\$/^$name\$" "$@"
fi
if [ -n "$name" ] && [ -f "cmd/amsagent/cli/testdata/script/$name.txtar" ]; then
  exec go test ./cmd/amsagent/cli -count=1 -v -run "^TestScripts?\$/^$name\$" "$@"
fi
{
  echo "story: there is no story '$name'; there are:"
  printf '%s\n' testdata/script/*.txtar cmd/amsagent/cli/testdata/script/*.txtar | sed 's|.*/||; s|\.txtar||' | sort -u | column -c 80
} >&2
exit 2
