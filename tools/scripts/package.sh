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
VERSION=$(go run -trimpath ./packaging/pkgdata --out "$stage/data" --describe "$version" --epoch "$SOURCE_DATE_EPOCH")
export VERSION
cp CHANGELOG.md "$stage/data/"
[ "$what" = all ] || exit 0

ln -sfn "$top/packaging" "$stage/packaging"
cp LICENSE "$stage/LICENSE"
rm -rf "$build/packages"
mkdir -p "$build/packages"
# By these names rpm and Debian call the machines.
for arch in ${PACKAGE_ARCHES:-amd64:x86_64 arm64:aarch64}; do
  export ARCH=${arch%:*}
  cp "$build/amsagent-linux-$ARCH" "$stage/amsagent-$ARCH"
  pack() { (cd "$stage" && "$build/tools/nfpm" package --config "$1" --packager "${2##*.}" --target "$build/packages/$2" >&2); }
  # What only one of the two formats understands. The first line of the description is Debian's summary; rpm has its own.
  sed '/^license:/d' nfpm.yaml >"$stage/deb.yaml"
  sed -e 's|^license:|changelog: data/changelog.yaml\n&|' -e '/^description:/{n;d}' nfpm.yaml >"$stage/rpm.yaml"
  pack deb.yaml "amsagent_${VERSION}-1_$ARCH.deb"
  pack rpm.yaml "amsagent-$VERSION-1.${arch#*:}.rpm"
done
(cd "$build/packages" && sha256sum -- * | tee SHA256SUMS.new && mv SHA256SUMS.new SHA256SUMS)
