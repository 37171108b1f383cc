#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# The heavy tests that do not depend on chance, in two halves side by side: those in booted machines wait for their boots
# most of the time. `make e2e` runs all, one after the other.
set -euo pipefail

log=$(mktemp)
trap 'rm -f "$log"' EXIT
E2E_RUN='TestSystemd|TestPackage' tools/scripts/e2e.sh >"$log" 2>&1 &
booted=$!
result=0
E2E_RUN='TestCrashKill|TestCrashFail|TestSoak|TestDrain100|TestMetadataMock|TestCloud' tools/scripts/e2e.sh || result=$?
wait "$booted" || result=$?
echo "e2e: in booted machines:"
cat "$log"
exit "$result"
