#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: gotest.sh MODULE-DIR PACKAGES [GO-TEST-FLAG...]
# Runs the tests of packages (one word, separated by blanks): a line for each package, what was skipped and what failed
# at the end (tools/contract). RERUN=1 runs a failed test again, by gotestsum; one that passes then is listed in
# build/report/flaky. TEST_JSON=FOLDER keeps the events of the run there.
set -euo pipefail

# In braces, so that the shell has read all of it before it begins: the file may change while tests run.
{
top=$PWD module=$1 packages=$2
shift 2
mkdir -p "$top/build/report"

# All that the tests make is below one short folder (the path of a Unix socket has 107 bytes), so that what is left of a
# run that was killed can be found by the next one. It is the same in each run of a clone, or Go would not find the
# results that it keeps. A second run of the same clone at the same time gets another one.
tools/scripts/sweep.sh
run=/tmp/amst.$(cksum <<<"$top" | cut -d' ' -f1)
held() { exec 9>"$run/lock" && flock -n 9 && [ "$run/lock" -ef /proc/self/fd/9 ]; }
{ mkdir -p "$run" && [ -O "$run" ] && held; } 2>/dev/null || { run=$(mktemp -d /tmp/amst.XXXXXX) && held; }
report=$run/rerun
trap '[ ! -e "$report" ] || cat "$report" >>"$top/build/report/flaky"; "$top/tools/scripts/sweep.sh" "$run" || true' EXIT

events=${TEST_JSON:-$run}/$(date +%s%N).json
mkdir -p "${events%/*}"
# The programs that tests start: `make` builds them before.
for name in amsagent sandbox; do
  [ -x "build/$name" ] || { echo "gotest: there is no build/$name: make build build-sandbox" >&2 && exit 1; }
done
export AMSAGENT_E2E_BINARY=$top/build/amsagent AMSAGENT_SANDBOX_BINARY=$top/build/sandbox
cd "$module"
# What is fetched is fetched before the tests, so that a mirror that fails is not taken for a test that fails.
# shellcheck disable=SC2086 # a list of packages, none with a blank
"$top/tools/scripts/try.sh" "Go modules of $module" go list -deps -test -f '' $packages >/dev/null
mkdir -p "$run/t"
chmod 755 "$run" "$run/t" # some tests run programs as another user
export TMPDIR=$run/t
if [ -z "${RERUN:-}" ]; then
  # shellcheck disable=SC2086 # a list of packages, none with a blank
  go test -json -vet=off "$@" $packages 9>&- | "$top/build/tools/contract" print "$events"
  exit
fi
# RERUN times a failed test is run again, but none after a data race, which is no chance.
"$top/build/tools/gotestsum" --format "${GOTEST_FORMAT:-pkgname}" --format-icons text --format-hide-empty-pkg --jsonfile "$events" \
  --rerun-fails="$RERUN" --rerun-fails-run-root-test --rerun-fails-abort-on-data-race --rerun-fails-max-failures=20 --rerun-fails-report="$report" \
  --packages "$packages" -- -vet=off "$@" 9>&-
exit
}
