#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: try.sh WHAT COMMAND...
# Runs a command that fetches something, three times at most, with a pause in between. A mirror that fails once is no failure.
set -euo pipefail

what=$1
shift
for pause in 5 20 0; do
  result=0
  "$@" </dev/null || result=$?
  [ "$result" != 0 ] || exit 0
  [ "$pause" != 0 ] || break
  echo "fetch: $what: failed ($result), trying again in $pause s" >&2
  sleep "$pause"
done
echo "fetch: $what: failed three times" >&2
exit "$result"
