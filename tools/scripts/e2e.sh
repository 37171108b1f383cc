#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# The heavy tests with real components: those in files with the build tag `e2e`, in both modules. They use the binary that
# `make build` made. RUN and SKIP choose among them by regular expressions.
set -euo pipefail

run() { # run MODULE-DIR
  local dirs files names
  dirs=$(tools/scripts/packages.sh "$1" '^//go:build .*\be2e\b' | paste -sd' ')
  [ -n "$dirs" ] || return 0
  # The other tests of these packages are of another tier.
  files=$(cd "$1" && grep -rlE '^//go:build .*\be2e\b' --include='*_test.go' --exclude-dir=build .)
  names=$(cd "$1" && xargs sed -n 's/^func \(Test[A-Z0-9][A-Za-z0-9_]*\)(.*/\1/p' <<<"$files" |
    { grep -E "${RUN:-.}" || true; } | { grep -vE "${SKIP:-^$}" || true; } | paste -sd'|')
  [ -n "$names" ] || { echo "e2e: no test matches" >&2 && return 1; }
  # shellcheck disable=SC2086 # flags
  tools/scripts/gotest.sh "$1" "$dirs" -tags e2e -count=1 ${E2E_FLAGS:-} -timeout "${E2E_TIMEOUT:-55m}" -run "^($names)\$"
}
run .
run sandbox
