#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# Runs the benchmarks of both modules. Figures of one machine mean little on another, so what we promise is stated as a
# ratio of two measurements of the same run (benchmarks named …Ratio, which report it in a unit of their own).
set -euo pipefail

benchtime=${1:-1s}
# What the daemon takes is measured on the binary as it is linked for machines, for BENCH_MINUTES; see sandbox/bench.
AMSAGENT_BENCH_BINARY=$PWD/build/amsagent
export AMSAGENT_BENCH_BINARY BENCH_MINUTES="${BENCH_MINUTES:-10}"
run() { # run MODULE-DIR
  local dirs
  dirs=$(tools/scripts/packages.sh "$1" '^func Benchmark[A-Z_]')
  [ -n "$dirs" ] || return 0
  # shellcheck disable=SC2086 # a list of folders, none with a blank
  (cd "$1" && go test -run='^$' -bench=. -benchmem -benchtime="$benchtime" -timeout 2h $dirs | grep -vE '^(PASS|goos:|goarch:|\?)')
}
run .
[ ! -d sandbox ] || run sandbox
