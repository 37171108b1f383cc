#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# The templates for OpenTofu and Terraform have the form of HCL's own formatter.
set -euo pipefail

failed=0
while IFS= read -r file; do
  build/tools/hclfmt -require-no-change "$file" >/dev/null || { echo "$file: another form than that of hclfmt" >&2 && failed=1; }
done < <(find packaging -name '*.tf')
exit "$failed"
