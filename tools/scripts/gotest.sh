#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: gotest.sh MODULE-DIR PACKAGES [GO-TEST-FLAG...]
# Runs the tests of packages (one word, separated by blanks) by gotestsum: a line for each package, what was skipped and
# what failed at the end. RERUN=1 runs a failed test once more; one that passes then is listed in build/report/flaky.
set -euo pipefail

top=$PWD module=$1 packages=$2
shift 2
mkdir -p "$top/build/report"
rerun=()
if [ -n "${RERUN:-}" ]; then
  report=$(mktemp "$top/build/report/rerun.XXXXXX")
  trap 'cat "$report" >>"$top/build/report/flaky"; rm -f "$report"' EXIT
  rerun=(--rerun-fails="$RERUN" --rerun-fails-max-failures=20 --rerun-fails-report="$report")
fi
cd "$module"
# What is fetched is fetched before the tests, so that a mirror that fails is not taken for a test that fails.
# shellcheck disable=SC2086 # a list of packages, none with a blank
"$top/tools/scripts/try.sh" "Go modules of $module" go list -deps -test -f '' $packages >/dev/null
"$top/build/tools/gotestsum" --format pkgname --format-icons text --format-hide-empty-pkg "${rerun[@]}" --packages "$packages" -- "$@"
