#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: demo.sh CLOUD [REAL]
# Runs the demo, which needs a MongoDB: the one that MONGO=host:port names, else a mongod (sandbox/realmongo/mongod.sh), else
# the embedded database, which is compiled only then. EMBEDDED=1 takes the embedded one in any case.
set -euo pipefail

args=(--cloud "$1" --agent build/amsagent)
if [ -n "${2:-}" ]; then
  args+=(--real)
elif [ "${EMBEDDED:-}" = 1 ] || { [ -z "${MONGO:-}" ] && ! sandbox/realmongo/mongod.sh >/dev/null; }; then
  echo 'demo: compiling an embedded database in place of a mongod (a minute or two, once)'
  (cd sandbox/embedded && "${GO:-go}" build -buildvcs=false -o ../../build/embedded .)
  unset MONGO
  args+=(--embedded build/embedded)
fi
exec build/sandbox demo "${args[@]}"
