#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: lint.sh quick|all
# quick: gofmt, go vet of the three modules, staticcheck over the agent without its tests, the rules of internal/house,
# the scripts and the workflows. all: golangci-lint over everything, tests included. Each check runs, also after one that failed.
set -euo pipefail

top=$PWD failed=0
check() { # check NAME FOLDER COMMAND...
  local name=$1 dir=$2 start=$SECONDS
  shift 2
  (cd "$dir" && "$@") || failed=1
  echo "lint: $name: $((SECONDS - start)) s"
}

case ${1:?usage: lint.sh quick|all} in
quick)
  files=$(git ls-files -z -co --exclude-standard -- '*.go' | xargs -0 gofmt -l 2>/dev/null) || true
  [ -z "$files" ] || { printf 'lint: not formatted (make fmt):\n%s\n' "$files" && failed=1; }
  for module in . sandbox tools; do check "go vet $module" "$module" go vet -tags e2e ./...; done
  # Style (ST) is lint-all's; a test may leave errors and unused helpers.
  check staticcheck . build/tools/staticcheck -tests=false -checks 'SA*,S1*,U1000' ./...
  check rules . go test -count=1 ./internal/house
  check scripts . tools/scripts/shellcheck.sh
  check terraform . tools/scripts/hclfmt.sh
  check workflows . build/tools/actionlint
  ;;
all)
  for module in . sandbox tools; do
    # Two clones may be linted at once.
    check "$module" "$module" "$top/build/tools/golangci-lint" run --allow-parallel-runners --config "$top/.golangci.yml" ./...
  done
  ;;
esac
exit "$failed"
