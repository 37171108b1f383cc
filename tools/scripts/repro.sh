#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: repro.sh VERSION
# Builds the agent twice, in two folders and each time with an empty cache, and compares the bytes.
set -euo pipefail

version=$1
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT

for n in one two; do
  mkdir -p "$work/$n/some/folder-$n"
  git ls-files -z -co --exclude-standard -- . ':!sandbox' ':!tools' |
    tar -c --null -T - --ignore-failed-read | tar -x -C "$work/$n/some/folder-$n"
  (cd "$work/$n/some/folder-$n" &&
    GOCACHE="$work/$n/cache" make -s build VERSION="$version" && mv build/amsagent "$work/$n/amsagent")
done
if ! cmp "$work/one/amsagent" "$work/two/amsagent"; then
  echo 'repro: the two builds differ' >&2
  exit 1
fi
sha256sum <"$work/one/amsagent" | sed 's/ .*/  both builds/'
