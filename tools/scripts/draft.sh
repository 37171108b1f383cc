#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: draft.sh TAG BUILD-DIR
# Makes a draft of the release TAG on GitHub, with the files of BUILD-DIR/release. A person signs and publishes it
# (docs/releases.md). Needs gh with GH_TOKEN.
set -euo pipefail

tag=$1 version=${1#v}
cd "$2/release"
sha256sum --quiet --strict -c SHA256SUMS
[ -f "amsagent_$version-1_amd64.deb" ] || {
  echo "draft: the files in $2/release are not those of $tag" >&2
  exit 1
}
page=https://github.com/amsagent/amsagent/blob/$tag
gh release create "$tag" --draft --verify-tag --title "amsagent $version" \
  --notes "[Changes]($page/CHANGELOG.md). How to verify these files: [docs/releases.md]($page/docs/releases.md#verifying-one)." -- *
