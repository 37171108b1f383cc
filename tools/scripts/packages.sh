#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: packages.sh MODULE-DIR EXTENDED-REGEXP
# The packages of a module, as ./DIR, with a test file that has a line like this. Works without git, in a tarball too.
set -euo pipefail

cd "$1"
skip=()
# The root module does not hold the modules below it.
[ "$1" != . ] || skip=(--exclude-dir=sandbox --exclude-dir=tools)
{ grep -rlE "$2" --include='*_test.go' --exclude-dir=build --exclude-dir=testdata "${skip[@]}" . || true; } | xargs -r -n1 dirname | sort -u
