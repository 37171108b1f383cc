#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: sweep.sh [FOLDER]
# Removes what a run of the tests left behind: all below its folder, and the processes, mounts and loop devices that have
# that folder in their command line, environment or path. Without a folder: of all runs that were killed. A run holds a
# lock on FOLDER/lock for as long as it lives (gotest.sh), so a run of another clone is left alone.
set -euo pipefail

prefix=/tmp/amst.

processes() { # processes FOLDER: their ids, but not those of this script
  local pid text dir=$1
  for pid in /proc/[0-9]*; do
    pid=${pid#/proc/}
    if [ "$pid" = $$ ] || [ "$pid" = "$BASHPID" ]; then continue; fi
    text=$({ tr '\0' '\n' <"/proc/$pid/environ" && tr '\0' '\n' <"/proc/$pid/cmdline" && readlink "/proc/$pid/cwd"; } 2>/dev/null) || continue
    [[ $text != *"$dir/"* ]] || echo "$pid"
  done
}

sweep() { # sweep FOLDER
  local dir=$1 pids mounts loop
  # A container ends in order, with its mounts, when its manager is asked to; hence TERM first.
  for signal in TERM KILL; do
    pids=$(processes "$dir")
    [ -n "$pids" ] || break
    # shellcheck disable=SC2086 # a list of numbers
    kill -s $signal $pids 2>/dev/null || true
    for _ in $(seq 50); do
      [ -n "$(processes "$dir")" ] || break
      sleep 0.1
    done
  done
  for loop in $({ losetup -l -n -O NAME,BACK-FILE 2>/dev/null || true; } | awk -v dir="$dir/" 'index($2, dir) == 1 { print $1 }'); do
    losetup -d "$loop" || true
  done
  mounts=$(awk -v dir="$dir/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
  [ -z "$mounts" ] || xargs -r -d '\n' umount -l <<<"$mounts" || true
  rm -rf "$dir" 2>/dev/null || { chattr -R -i "$dir" 2>/dev/null && rm -rf "$dir"; } || echo "sweep: $dir could not be removed whole" >&2
}

if [ $# -gt 0 ]; then
  sweep "$1"
  exit
fi
for dir in "$prefix"*; do
  [ -O "$dir" ] || continue
  # One that has just been made has no lock yet.
  [ -e "$dir/lock" ] || [ -n "$(find "$dir" -maxdepth 0 -mmin +1)" ] || continue
  # The lock is kept meanwhile, or the sweep of another clone would end the commands of this one that name the folder.
  (
    exec 8>>"$dir/lock" && flock -n 8 || exit 0
    echo "sweep: removing what a killed run left behind: $dir" >&2
    sweep "$dir"
  )
done
