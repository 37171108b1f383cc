#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: size.sh MAX-BYTES FILE...
# Every file must be at most that large and need no interpreter, i.e. be static.
set -euo pipefail

max=$1
shift
failed=0
for file; do
  size=$(stat -c %s "$file")
  verdict=ok
  [ "$size" -le "$max" ] || verdict="TOO LARGE (at most $max)"
  # A dynamic executable names its loader; ours must not, or it would not start on another distribution.
  if grep -aqE '/ld-linux[-a-z0-9]*\.so|/ld-musl' <(head -c 4096 "$file"); then verdict="NOT STATIC"; fi
  printf '%-32s %10d bytes  %s\n' "$file" "$size" "$verdict"
  [ "$verdict" = ok ] || failed=1
done
exit "$failed"
