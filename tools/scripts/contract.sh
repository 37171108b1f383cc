#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: contract.sh TIER FOLDER
# Compares the events of a tier's tests in FOLDER with the names of that tier in test/contract.txt.
set -euo pipefail

shopt -s nullglob
events=("$2"/*.json)
[ ${#events[@]} -gt 0 ] || { echo "contract: no test ran" >&2 && exit 1; }
top=$PWD
cd tools && go run ./contract "$1" "$top/test/contract.txt" "${events[@]}"
