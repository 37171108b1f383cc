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
  dirs=$(tools/scripts/packages.sh "$1" '^//go:build .*\be2e\b')
  if [ -z "$dirs" ]; then
    echo "e2e: no test with the tag e2e in module $1"
    return 0
  fi
  # shellcheck disable=SC2086 # a list of folders, none with a blank
  (cd "$1" && go test -tags e2e -count=1 ${E2E_FLAGS:-} -timeout "${E2E_TIMEOUT:-30m}" -run "${E2E_RUN:-.}" $dirs)
}
run .
[ ! -d sandbox ] || run sandbox
