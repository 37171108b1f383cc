#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: release.sh BUILD-DIR [KEY]
# Writes BUILD-DIR/release: the packages of package.sh, a tarball and a bill of materials for each
# architecture, and SHA256SUMS. With KEY, the file of an SSH key, SHA256SUMS is signed (SHA256SUMS.sig).
# The same sources give the same bytes, in any folder and at any time.
set -euo pipefail

build=$(cd "$1" && pwd -P) key=${2:-}
release=$build/release
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)
fi
if [ -n "$key" ] && [ ! -r "$key" ]; then
  echo "release: $key: no such key" >&2
  exit 2
fi
version=$(cat "$build/package/version")

rm -rf "$release"
mkdir -p "$release"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
find "$build/packages" -type f ! -name SHA256SUMS -exec cp {} "$release/" \;
go -C tools build -trimpath -buildvcs=false -o "$work/sbom" ./sbom
for arch in amd64 arm64; do
  binary=$build/amsagent-linux-$arch
  name=amsagent-$version-linux-$arch
  mkdir -p "$work/$arch/build"
  cp "$binary" "$work/$arch/build/amsagent"
  ln -s "$build/package" "$work/$arch/build/package"
  # Unpacked below / it is what `make install PREFIX=/usr/local` puts there.
  tools/scripts/package-install.sh install "$work/$arch/root" /usr/local "$work/$arch/build"
  tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --mode=u+rwX,go+rX,go-w \
    --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime \
    -C "$work/$arch/root" -cf - usr | gzip -n9 >"$release/$name.tar.gz"
  "$work/sbom" --version "$version" --epoch "$SOURCE_DATE_EPOCH" "$binary" >"$release/$name.cdx.json"
done
(cd "$release" && LC_ALL=C sha256sum -- * >"$work/SHA256SUMS" && mv "$work/SHA256SUMS" SHA256SUMS)
if [ -n "$key" ]; then
  ssh-keygen -q -Y sign -f "$key" -n amsagent "$release/SHA256SUMS"
fi
cat "$release/SHA256SUMS"
