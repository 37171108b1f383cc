#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: package.sh data|all VERSION BUILD-DIR
# Makes what the packages hold beside the program (`data`), and the packages of all formats and machines (`all`), into
# BUILD-DIR/packages. VERSION is what git describe says. The same sources give the same bytes, in any folder and at any
# time: every date in them is SOURCE_DATE_EPOCH, by default that of the last commit.
set -euo pipefail

what=$1 version=$2 build=$3
mkdir -p "$build"
build=$(cd "$build" && pwd -P)
top=$PWD
stage=$build/package

if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
  # In a tarball every file has the time of its commit.
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)
fi
export SOURCE_DATE_EPOCH

rm -rf "$stage/data"
mkdir -p "$stage"
go run -trimpath ./packaging/pkgdata "$stage/data"
cp CHANGELOG.md "$stage/data/"
[ "$what" = all ] || exit 0

# As semver has it, which nfpm reads. Commits after a tag are newer than it, and what has no tag is older than any.
case $version in
v[0-9]*) VERSION=$(sed -E 's/^v//; s/-([0-9]+)-(g[0-9a-f]+)/+\1.\2/; /\+/s/-dirty$/.dirty/; s/-dirty$/+dirty/' <<<"$version") ;;
*) VERSION=0.0.0-$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).g${version//[^0-9A-Za-z]/.} ;;
esac
export VERSION
version=${VERSION/-/\~} # as dpkg and rpm have it
echo "$version" >"$stage/version"
cat >"$stage/data/changelog.yaml" <<EOF
- semver: "$version-1"
  date: $(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
  packager: The amsagent Authors <amsagent@users.noreply.github.com>
  deb: {urgency: medium, distributions: [stable]}
  changes:
    - note: https://github.com/amsagent/amsagent/blob/main/CHANGELOG.md
EOF

ln -sfn "$top/packaging" "$stage/packaging"
cp LICENSE "$stage/LICENSE"
rm -rf "$build/packages"
mkdir -p "$build/packages"
for ARCH in ${PACKAGE_ARCHES:-amd64 arm64}; do
  export ARCH
  cp "$build/amsagent-linux-$ARCH" "$stage/amsagent-$ARCH"
  pack() { (cd "$stage" && "$build/tools/nfpm" package --config "$1.yaml" --packager "$1" --target "$build/packages/" >&2); }
  # What only one of the two formats understands. The first line of the description is Debian's summary; rpm has its own.
  sed '/^license:/d' nfpm.yaml >"$stage/deb.yaml"
  sed '/^description:/{n;d}' nfpm.yaml >"$stage/rpm.yaml"
  pack deb
  pack rpm
done
(cd "$build/packages" && sha256sum -- * | tee SHA256SUMS.new && mv SHA256SUMS.new SHA256SUMS)
