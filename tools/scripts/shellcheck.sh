#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# Checks with shellcheck over every shell script of the project, found by its first line.
set -euo pipefail

scripts=$(git grep -lIE --untracked '^#!(/usr)?/bin/(env )?(ba|da)?sh' -- ':!*.go' ':!*.md' ':!*.txtar' ':!*.txt')
if ! command -v shellcheck >/dev/null; then
  if [ -n "${CI:-}" ]; then
    echo 'shellcheck is not installed' >&2
    exit 1
  fi
  echo 'lint: shellcheck is not installed, scripts not checked' >&2
  exit 0
fi
# shellcheck disable=SC2086 # a list of files, none with a blank
shellcheck $scripts
