#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# Runs every fuzz target of the agent's module, one after another, for the given time each.
# A crasher is left by Go below testdata/fuzz of its package: commit it, it is a regression test from then on.
set -euo pipefail

time=${1:-20s}
found=0 failed=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Go makes each input that finds new code smaller, for up to a minute: with large seeds all of a short time would go there.
# At the end of its time Go's fuzzer may call that a failure (golang/go#75804). A target that failed so, and without an input, runs again.
fuzz() { go test -run='^$' -fuzz="^$1\$" -fuzztime="$time" -fuzzminimizetime=100x "$2" 2>&1 | tee "$log"; }
only_late() { grep -qE '^ +context deadline exceeded$' "$log" && ! grep -q 'Failing input written' "$log"; }
while read -r package; do
  # `go test -list` also prints a closing "ok" line per package.
  while read -r target; do
    found=$((found + 1))
    echo "== $target  ($package, $time)"
    fuzz "$target" "$package" || { only_late && fuzz "$target" "$package"; } || failed+=("$target")
  done < <(go test -list='^Fuzz' "$package" | grep '^Fuzz' || true)
done < <(tools/scripts/packages.sh . '^func Fuzz[A-Z_]')

[ "$found" -gt 0 ] || { echo 'fuzz: no fuzz target found' >&2; exit 1; }
[ "${#failed[@]}" -eq 0 ] || { echo "fuzz: $found targets, failed: ${failed[*]}" >&2; exit 1; }
echo "fuzz: $found targets, no failure"
