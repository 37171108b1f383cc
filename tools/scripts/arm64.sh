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
# Not under an emulator: tests that start their own program again, strace, and a network without sock_diag.
skip="^(TestCrash|TestCheckNetwork|TestCountConnectionsFromElsewhere|TestDetectInNamespaces|TestRulesFindFaults)$|^TestServer$/^AGENT-NOT-COUNTED$/^another_server's_port$"
# What reads the source alone is the same on any processor.
packages=$(go list ./conf ./files ./ams ./bootstrap/... ./metadata/... ./internal/... | grep -v /internal/house | paste -sd' ')
GOOS=linux GOARCH=arm64 CGO_ENABLED=0 exec tools/scripts/gotest.sh . "$packages" -exec "$emulator" -skip "$skip" -timeout 20m
