#!/bin/bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# The service command of a test node: start|stop|restart|status, by the command line of the server's own unit. Before each
# start it runs antmedia-before-start beside it, where a test has made one.
set -uo pipefail
ams=/usr/local/antmedia pidfile=/run/antmedia.pid asked=/run/antmedia.asked
# shellcheck source=/dev/null
. /usr/local/sbin/antmedia-service.env

pid() { cat "$pidfile" 2>/dev/null; }
alive() { local p; p=$(pid) && [ -n "$p" ] && kill -0 "$p" 2>/dev/null; }

start() {
  alive && return 0
  [ ! -x /usr/local/sbin/antmedia-before-start ] || /usr/local/sbin/antmedia-before-start
  # The heap is capped: tests run several servers on one machine. So is the compiler: of a server that runs for a minute
  # it takes half of all processor time.
  export ANTMEDIA_HOME=$ams JAVA_HOME HOME=$ams JVM_MEMORY_OPTIONS='-Xms64m -Xmx384m -XX:TieredStopAtLevel=1'
  cd "$ams" || return 1
  local line
  line=$(sed -n 's/^ExecStart=//p' antmedia.service | sed 's/%%/%/g')
  # shellcheck disable=SC2046 # systemd splits it, too
  setsid setpriv --reuid=antmedia --regid=antmedia --clear-groups $(eval "echo $line") </dev/null >/dev/null 2>>log/antmedia-error.log &
  echo $! >"$pidfile"
}

stop() {
  local p i
  p=$(pid)
  alive || { rm -f "$pidfile"; return 0; }
  kill "$p"
  # As TimeoutStopSec of the agent's drop-in: a minute and more.
  for ((i = 0; i < 900; i++)); do
    kill -0 "$p" 2>/dev/null || { rm -f "$pidfile"; return 0; }
    sleep 0.1
  done
  kill -9 "$p"
  rm -f "$pidfile"
}

case ${1:-} in
start) echo start >>"$asked"; start ;;
stop) echo stop >>"$asked"; stop ;;
restart) echo restart >>"$asked"; stop && start ;;
status)
  if alive; then echo "active $(pid)"; else echo inactive; exit 3; fi
  ;;
*) echo "usage: $0 start|stop|restart|status" >&2; exit 2 ;;
esac
