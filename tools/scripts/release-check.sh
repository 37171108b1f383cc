#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: release-check.sh VERSION BUILD-DIR
# Builds the release again, in another folder with an empty Go cache, and compares the two.
# Then verifies the signature as in docs/releases.md, and that it fails after one byte was changed.
set -euo pipefail

version=$1 build=$(cd "$2" && pwd -P)
release=$build/release
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work/elsewhere"
git ls-files -z -co --exclude-standard -- . ':!sandbox' | tar -c --null -T - --ignore-failed-read | tar -x -C "$work/elsewhere"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
mkdir -p "$work/elsewhere/build/tools"
cp "$build/tools/nfpm" "$work/elsewhere/build/tools/"
ssh-keygen -q -t ed25519 -N '' -C 'release check' -f "$work/key"
GOCACHE=$work/cache make -s -C "$work/elsewhere" release VERSION="$version" SIGN_KEY="$work/key" >/dev/null
cmp "$release/SHA256SUMS" "$work/elsewhere/build/release/SHA256SUMS" || {
  echo 'release-check: two releases of the same sources differ' >&2
  exit 1
}

cd "$work/elsewhere/build/release"
sha256sum --quiet --strict -c SHA256SUMS
printf 'releases@amsagent %s\n' "$(cut -d' ' -f1,2 "$work/key.pub")" >"$work/allowed_signers"
verify() { ssh-keygen -Y verify -f "$work/allowed_signers" -I releases@amsagent -n amsagent -s SHA256SUMS.sig <SHA256SUMS; }
verify
printf '\n' >>SHA256SUMS
if verify >/dev/null 2>&1; then
  echo 'release-check: the signature holds for a changed SHA256SUMS' >&2
  exit 1
fi
for arch in amd64 arm64; do
  tar -tzf amsagent-*-linux-$arch.tar.gz usr/local/bin/amsagent >/dev/null
  grep -q '"purl": "pkg:golang/go.mongodb.org/mongo-driver/v2@' amsagent-*-linux-$arch.cdx.json
done
echo "release-check: $(grep -c . "$release/SHA256SUMS") files, the same bytes twice; the signature holds, and for no other bytes"
