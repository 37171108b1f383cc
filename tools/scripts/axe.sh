#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# Fetches axe-core, which checks the pages of `amsagent web` in TestWeb/axe, by npm into build/axe. Without npm that test is skipped.
set -euo pipefail

version=4.14.1
to=build/axe
if [ -e "$to/$version" ]; then exit 0; fi
if ! command -v npm >/dev/null; then
  echo "axe: npm is not here, so TestWeb/axe is skipped" >&2
  exit 0
fi
rm -rf "$to" && mkdir -p "$to"
# With REQUIRE_REAL=1, as in the tiers, a fetch that fails is a failure.
tools/scripts/try.sh axe-core npm install --silent --no-save --no-audit --no-fund --ignore-scripts --prefix "$to" --cache "$to/cache" "axe-core@$version" || {
  [ "${REQUIRE_REAL:-}" != 1 ]
  exit
}
rm -rf "$to/cache"
touch "$to/$version"
