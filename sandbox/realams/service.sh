#!/bin/sh
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# The service command of a test node: start|stop|restart|status, by the command line of the server's own unit. Before each
# start it runs antmedia-before-start beside it, where a test has made one.
set -u
ams=/usr/local/antmedia pidfile=/run/antmedia.pid asked=/run/antmedia.asked
# shellcheck source=/dev/null
. /usr/local/sbin/antmedia-service.env

# pid is of the server; empty without one.
pid=
{ read -r pid <"$pidfile"; } 2>/dev/null
alive() { [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; }

start() {
  alive && return 0
  [ ! -x /usr/local/sbin/antmedia-before-start ] || /usr/local/sbin/antmedia-before-start
  # The heap is capped: tests run several servers on one machine. So is the compiler: of a server that runs for a minute
  # it takes half of all processor time.
  export ANTMEDIA_HOME=$ams JAVA_HOME HOME=$ams JVM_MEMORY_OPTIONS='-Xms64m -Xmx384m -XX:TieredStopAtLevel=1'
  cd "$ams" || return 1
  line=$(sed -n 's/^ExecStart=//p' antmedia.service | sed 's/%%/%/g')
  # shellcheck disable=SC2046 # systemd splits it, too
  setsid setpriv --reuid=antmedia --regid=antmedia --clear-groups $(eval "echo $line") </dev/null >/dev/null 2>>log/antmedia-error.log &
  echo $! >"$pidfile"
}

stop() {
  alive || { rm -f "$pidfile"; return 0; }
  kill "$pid"
  # As TimeoutStopSec of the agent's drop-in: a minute and more.
  i=0
  while [ "$i" -lt 900 ]; do
    kill -0 "$pid" 2>/dev/null || { rm -f "$pidfile"; return 0; }
    sleep 0.1
    i=$((i + 1))
  done
  kill -9 "$pid"
  rm -f "$pidfile"
}

case ${1:-} in
start) echo start >>"$asked"; start ;;
stop) echo stop >>"$asked"; stop ;;
restart) echo restart >>"$asked"; stop && pid= && start ;;
status)
  if alive; then echo "active $pid"; else echo inactive; exit 3; fi
  ;;
*) echo "usage: $0 start|stop|restart|status" >&2; exit 2 ;;
esac
