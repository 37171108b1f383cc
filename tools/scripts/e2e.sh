#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# The heavy end-to-end tests, those behind the build tag `e2e`, in both modules. They use the binary that `make build` made.
set -euo pipefail

AMSAGENT_E2E_BINARY=$PWD/build/amsagent
export AMSAGENT_E2E_BINARY
run() { # run MODULE-DIR
  local dirs
  dirs=$(cd "$1" && git grep --untracked -lE '^//go:build .*\be2e\b' -- '*_test.go' ':!sandbox' ':!tools' | xargs -r -n1 dirname | sort -u | sed 's#^#./#')
  [ -n "$dirs" ] || return 0
  # shellcheck disable=SC2086 # a list of folders, none with a blank
  (cd "$1" && go test -tags e2e -count=1 -timeout 30m $dirs)
}
run .
[ ! -d sandbox ] || run sandbox
