#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# The tests of the packages that edit, join and read metadata, built for arm64 and run under QEMU's user-mode emulator:
# the other processor, and a kernel interface that lacks system calls (openat2, sock_diag).
set -euo pipefail

emulator=qemu-aarch64-static
command -v "$emulator" >/dev/null || {
  echo "arm64: not run: there is no $emulator (Debian's qemu-user-static)" >&2
  [ "${DEPS:-}" != require ] || exit 1
  exit 0
}
# A test that cannot run under an emulator asks for this and is skipped (internal/emulator).
export AMSAGENT_TEST_EMULATOR=$emulator
GOOS=linux GOARCH=arm64 CGO_ENABLED=0 exec tools/scripts/gotest.sh . \
  './conf ./files ./ams ./bootstrap/... ./metadata/... ./internal/...' -exec "$emulator" -timeout 20m
