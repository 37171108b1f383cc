#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: contract.sh TIER FOLDER
# Compares the events of a tier's tests in FOLDER with the tests of that tier in test/contract.txt. The tests of the tier
# `corpus` run in the gate where a corpus is beside the project, and are due then.
set -euo pipefail

shopt -s nullglob
events=("$2"/*.json)
[ ${#events[@]} -gt 0 ] || { echo "contract: no test ran" >&2 && exit 1; }
tiers=$1
if [ "$1" = gate ] && [ -d ../shared/corpus ]; then tiers+=,corpus; fi
exec build/tools/contract check "$tiers" test/contract.txt "${events[@]}"
