#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: tier.sh gate|real|heavy
# Runs one tier of tests (docs/testing.md). Every step runs even when one before it failed, so that one run shows all.
# The last step compares what ran with test/contract.txt. The last lines say which steps failed and why;
# build/report/TIER.md has the same as a table.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# In braces, so that the shell has read all of it before it begins: the file may change while a tier runs.
{
tier=${1:?usage: tier.sh gate|real|heavy}
exec </dev/null
# Where something is missing, the tests that need it are skipped. What Debian and the Go modules have is required here, and a
# mongod, so that its absence is noticed; a real server is in the other tiers.
export CI=${CI:-true} REQUIRE_JAVA=1 REQUIRE_MONGOD=1 DEPS=require
report=build/report
logs=$report/$tier
rm -rf "$logs" && mkdir -p "$logs"
: >"$report/flaky"
export TEST_JSON=$PWD/$logs/json

# On a full disk tests fail without a word: their logs are there, too.
free=$(df -Pm . /tmp | awk 'NR > 1 && (min == "" || $4 < min) { min = $4 } END { print min }')
[ "$free" -ge 3000 ] || { echo "tier: $free MB are free in this folder or in /tmp: a tier needs 3000" >&2; exit 1; }

names=() seconds=() results=() counts=() failed=0
# step NAME MINUTES COMMAND...
step() {
  local name=$1
  printf '\n=== %s: %s\n' "$name" "${*:3}"
  begin "$@"
  tail --pid="${pids[$name]}" -n +1 -s 0.2 -f "$logs/$name.log" || true
  end "$name"
}

# begin NAME MINUTES COMMAND... starts a step beside the next ones. end NAME waits for it.
declare -A pids began
begin() {
  local log=$logs/$1.log
  # Not a pipe: what a step leaves running would hold it open, and the tier would wait for that.
  : >"$log"
  began[$1]=$SECONDS
  # Where this script is killed, so is the step.
  setpriv --pdeathsig TERM timeout --kill-after=30s "${2}m" "${@:3}" >>"$log" 2>&1 &
  pids[$1]=$!
}
end() {
  local name=$1 result=passed ran=0 skipped=0
  wait "${pids[$name]}" || result="FAILED ($?)"
  # A run of tests ends with `DONE [2 runs, ]341 tests[, 2 skipped][, 1 failure] in 9.1s`, once for each module.
  read -r ran skipped < <(sed -n 's/^DONE \(.*\) in [0-9.]*s$/\1/p' "$logs/$name.log" |
    awk '{ for (i = 2; i <= NF; i++) { if ($i ~ /^test/) ran += $(i-1); if ($i ~ /^skipped/) skipped += $(i-1) } } END { print ran+0, skipped+0 }')
  [ "$result" = passed ] || failed=1
  names+=("$name")
  seconds+=($((SECONDS - began[$name])))
  results+=("$result")
  counts+=("$ran $skipped")
  printf '=== %s: %s after %d s\n' "$name" "$result" "${seconds[-1]}"
}

# Beside another step the programs are built: another build would replace them below the tests.
built=(-o build -o build-sandbox)

case $tier in
gate)
  step deps 10 tools/scripts/deps.sh gate require
  step fetch 10 tools/scripts/real.sh mongod
  step lint 20 make lint
  step tidy 5 make tidy-check
  step test-agent 30 make test-agent
  # The demo waits more than it computes.
  begin demo 10 make "${built[@]}" demo
  step test-sandbox 30 make "${built[@]}" test-sandbox
  printf '\n=== demo\n'
  end demo
  cat "$logs/demo.log"
  step size 5 make "${built[@]}" size
  ;;
real)
  export RERUN=1 REQUIRE_REAL=1 REQUIRE_SYSTEMD=1 GOTEST_FORMAT=standard-verbose E2E_TIMEOUT=48m
  step deps 15 tools/scripts/deps.sh real require
  step fetch 30 make real-fetch
  step stories 50 make real-test
  step demo-real 10 make demo REAL=1
  ;;
heavy)
  # More than the tests take on two cores, and less than their step has, so that Go itself ends what hangs and shows where.
  export RERUN=1 REQUIRE_REAL=1 REQUIRE_SYSTEMD=1 GOTEST_FORMAT=testname E2E_TIMEOUT=60m
  step deps 15 tools/scripts/deps.sh heavy require
  step fetch 15 tools/scripts/real.sh mongod aws prometheus
  step lint-all 30 make lint-all
  step release 25 make release-check
  step demo-embedded 15 make demo-embedded
  for cloud in azure alibaba gcp; do
    begin "demo-$cloud" 5 make "${built[@]}" demo "CLOUD=$cloud"
  done
  step user 30 tools/scripts/other-user.sh
  for cloud in azure alibaba gcp; do
    end "demo-$cloud"
  done
  step race 45 make race
  step booted 80 make e2e 'RUN=^Test(Systemd|Package|SELinux)'
  step crash 80 make e2e CRASH_EVERY=11 'SKIP=^Test(Real|Systemd|Package|SELinux)'
  step faults 20 make faults
  step engines 45 make engines
  step arm64 30 make arm64
  step fuzz 15 make fuzz FUZZTIME=2s
  step bench 20 env BENCH_CLOUD_SECONDS=10 make bench BENCHTIME=1x BENCH_MINUTES=0.25
  step bare 15 make bare
  step surroundings 10 tools/scripts/surroundings.sh sample
  ;;
*)
  echo "tier: there is no tier '$tier'" >&2
  exit 2
  ;;
esac
step contract 5 make contract "TIER=$tier" "TEST_JSON=$TEST_JSON"

# The names of what failed with the last lines of each: of a test where its log names one, else of the step.
tail_of() { # tail_of LOG
  awk '
    function flush(  i) {
      if (head == "") return
      print head
      for (i = 1; i <= n; i++) if (i <= 10 || i > n - 40) print line[i]; else if (i == 11) print "    [...]"
      head = ""; found = 1
    }
    /^=== FAIL: / { flush(); head = $0; n = 0; next }
    /^(=== |DONE )/ { flush(); next }
    head != "" { line[++n] = $0 }
    END { flush(); exit !found }' "$1" || tail -n 40 "$1"
}

table() {
  printf '| step | s | result | tests | skipped |\n|---|---|---|---|---|\n'
  local i
  for i in "${!names[@]}"; do
    printf '| %s | %d | %s | %s | %s |\n' "${names[i]}" "${seconds[i]}" "${results[i]}" "${counts[i]% *}" "${counts[i]#* }"
  done
  printf '| total | %d | %s | | |\n' "$SECONDS" "$([ "$failed" = 0 ] && echo passed || echo FAILED)"
}

# `--- PASS: TestRealJoin/2.17.1 (41.22s)`: the stories on a real server or a real MongoDB, with the step; and `x_test.go:12: figure: 41 ms`.
stories() {
  local i rows=
  for i in "${names[@]}"; do
    rows+=$(sed -nE "s/^--- (PASS|FAIL|SKIP): (TestReal[A-Za-z0-9]*(\/[A-Za-z0-9.]+)?) \(([0-9]+)[0-9.]*s\).*/| \2 | $i | \1 | \4 |/p" "$logs/$i.log")$'\n'
  done
  rows=$(sed '/^$/d' <<<"$rows")
  [ -n "$rows" ] || return 0
  printf '\n| story | step | result | s |\n|---|---|---|---|\n%s\n\n' "$rows"
  cat "$logs"/*.log | sed -nE 's/^ +([A-Za-z0-9_]*_test\.go):[0-9]+: figure: (.*)/- \1: \2/p'
}

# `=== SKIP: PACKAGE TEST (0.00s)` and the lines that say why.
skips() {
  cat "$logs"/*.log | awk '
    function flush() { if (name != "") print "- " name ": " (why == "" ? "no reason" : why); name = "" }
    /^=== SKIP: / { flush(); name = $3 " " $4; why = ""; next }
    /^=== RUN / { next }
    name != "" && why == "" && /^ / { why = $0; sub(/^ *[^ ]*\.go:[0-9]+: /, "", why); sub(/^ */, "", why); next }
    /^$/ || /^[^ ]/ { flush() }
    END { flush() }' | LC_ALL=C sort -u
}

# `pkg.TestX: 2 runs, 1 failures`: passed when run again.
flaky=$(grep -E ': ([0-9]+) runs, [0-9]+ failures$' "$report/flaky" | awk '{ if ($2 > $4) print "- " $0 }' || true)
{
  printf '# %s\n\n' "$tier"
  printf 'Commit %s, %s cores, %s MB of memory, Linux %s, %s, ended %s.\n\n' "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" \
    "$(nproc)" "$(awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo)" "$(uname -r)" "$(go version | cut -d' ' -f3)" "$(date -u +%Y-%m-%dT%H:%MZ)"
  table
  stories
  [ -z "$flaky" ] || printf '\nFlaky, each a defect: failed once, passed when run again.\n\n%s\n' "$flaky"
  skipped=$(skips)
  [ -z "$skipped" ] || printf '\nSkipped.\n\n%s\n' "$skipped"
} >"$report/$tier.md"

printf '\n=== summary\n'
cat "$report/$tier.md"
for i in "${!names[@]}"; do
  [ "${results[i]}" != passed ] || continue
  printf '\n=== why %s failed\n' "${names[i]}"
  tail_of "$logs/${names[i]}.log"
done
exit "$failed"
}
