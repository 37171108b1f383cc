#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# The second engine: runs a command, as root, with servers that speak MongoDB's protocol and have none of its code.
# FerretDB 2 before DocumentDB in PostgreSQL; each listens on a Unix socket, MONGO names them all, and they end
# with the command. usage: documentdb.sh COMMAND...
#
# DocumentDB is in Debian from release 14 on, so it runs in a tree of its own, made once (1 GB) below
# ${XDG_CACHE_HOME:-$HOME/.cache}/amsagent/real. What cannot be had is named, and the command is skipped; with
# REQUIRE_REAL=1, as in `make heavy`, that is a failure.
set -euo pipefail

suite=forky
# This machine's own mirror, where DEBIAN_MIRROR names none.
# shellcheck disable=SC2016 # apt's own form
mirror=${DEBIAN_MIRROR:-$({ apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null || true; } | sed -n '/\/debian$/{p;q}')}
ferretdb=v2.7.0
# Some tests want two servers at once, beside one that a waiting test holds.
servers=4

try=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/try.sh
cache=${XDG_CACHE_HOME:-$HOME/.cache}/amsagent/real
tree=$cache/documentdb-$suite
program=$cache/ferretdb-$ferretdb/ferretdb
bin=/usr/lib/postgresql/18/bin

give_up() {
  echo "documentdb: not here, so skipped: $1" >&2
  [ "${REQUIRE_REAL:-}" != 1 ]
  exit
}

fetch() {
  [ "$(id -u)" = 0 ] || { echo "documentdb: only root makes the tree" >&2 && return 1; }
  if [ ! -x "$program" ]; then
    echo "documentdb: building FerretDB $ferretdb"
    GOBIN=$(dirname "$program") CGO_ENABLED=0 "$try" "FerretDB $ferretdb" go install "github.com/FerretDB/FerretDB/v2/cmd/ferretdb@$ferretdb" || return 1
  fi
  [ ! -d "$tree" ] || return 0
  command -v debootstrap >/dev/null || { echo "documentdb: there is no debootstrap" >&2 && return 1; }
  echo "documentdb: making a tree of Debian $suite with DocumentDB"
  rm -rf "$tree.part"
  if ! make_tree >"$tree.log" 2>&1; then
    tail -n 5 "$tree.log" >&2
    return 1
  fi
  mv "$tree.part" "$tree"
}

make_tree() {
  [ "$mirror" ] || { echo "apt knows no mirror: set DEBIAN_MIRROR" && return 1; }
  # The script is named, since an older debootstrap does not know the release.
  # shellcheck disable=SC2016 # for the shell that is started
  "$try" "Debian $suite" bash -c 'rm -rf "$2" && debootstrap --variant=minbase "$1" "$2" "$3" sid' debootstrap "$suite" "$tree.part" "$mirror" &&
    mount --rbind /dev "$tree.part/dev" &&
    mount -t proc proc "$tree.part/proc" &&
    TMPDIR=/tmp DEBIAN_FRONTEND=noninteractive "$try" DocumentDB chroot "$tree.part" apt-get install -y --no-install-recommends postgresql-18-documentdb &&
    chroot "$tree.part" apt-get clean
}

as_postgres() { chroot "$tree" setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }

database() { # database NUMBER
  local data=/var/tmp/documentdb/$1
  as_postgres "$bin/initdb" -N -D "$data" -A trust --locale=C.UTF-8 >/dev/null
  cat >>"$tree$data/postgresql.conf" <<CONF
shared_preload_libraries = 'pg_cron,pg_documentdb_core,pg_documentdb'
cron.database_name = 'postgres'
port = $((5432 + $1))
listen_addresses = '127.0.0.1'
unix_socket_directories = '$data'
fsync = off
CONF
  as_postgres "$bin/pg_ctl" -w -s -D "$data" -l "$data/log" start
  as_postgres psql -q -h 127.0.0.1 -p $((5432 + $1)) -d postgres -c 'SET client_min_messages = error; CREATE EXTENSION documentdb CASCADE'
}

serve() { # serve COMMAND...
  local run names=() i left
  run=$(mktemp -d)
  ip link set lo up
  mount -t proc proc "$tree/proc"
  mount --rbind /dev "$tree/dev"
  mount -t tmpfs tmpfs "$tree/dev/shm" # shared memory of a server that is killed goes with it
  mount -t tmpfs tmpfs "$tree/var/tmp"
  install -d -o "$(as_postgres id -u)" "$tree/var/tmp/documentdb"
  for ((i = 0; i < servers; i++)); do
    database "$i"
    mkdir "$run/$i"
    "$program" --postgresql-url="postgres://postgres@127.0.0.1:$((5432 + i))/postgres" --listen-addr='' --listen-unix="$run/$i/s" \
      --no-auth --telemetry=disable --debug-addr='' --log-level=WARN --state-dir="$run/$i" >"$run/$i/log" 2>&1 &
    names+=("unix:$run/$i/s")
  done
  for ((i = 0; i < servers; i++)); do
    for ((left = 300; left > 0; left--)); do
      [ ! -S "$run/$i/s" ] || break
      sleep 0.1
    done
    [ "$left" -gt 0 ] || { cat "$run/$i/log" >&2 && return 1; }
  done
  local result=0
  MONGO=$(IFS=, && echo "${names[*]}") nsenter --net=/proc/self/fd/8 "$@" || result=$?
  rm -rf "$run"
  return "$result"
}

case ${1:?usage: documentdb.sh COMMAND...} in
--fetch) fetch ;;
--serve) shift && serve "$@" ;;
*)
  mkdir -p "$cache"
  exec 9>"$cache/lock"
  flock 9
  # Namespaces: what is mounted and what runs is gone at the end, however it comes. DocumentDB calls itself by a port, so
  # the servers have a network of their own; the command keeps this one.
  unshare --mount --pid --fork --kill-child --mount-proc "$0" --fetch || give_up "DocumentDB and FerretDB $ferretdb"
  flock -u 9
  exec 8</proc/self/ns/net
  exec unshare --mount --net --pid --fork --kill-child --mount-proc "$0" --serve "$@"
  ;;
esac
