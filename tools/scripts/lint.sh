#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: lint.sh PATH-OF-GOLANGCI-LINT
# Lints the three modules and the shell scripts, all of them also when one has something to complain about.
set -euo pipefail

linter=$1
config=$PWD/.golangci.yml
failed=0
for module in . sandbox tools; do
  echo "lint: module $module"
  # Two clones may be linted at once.
  (cd "$module" && "$linter" run --allow-parallel-runners --config "$config" ./...) || failed=1
done
echo 'lint: scripts'
tools/scripts/shellcheck.sh || failed=1
exit "$failed"
