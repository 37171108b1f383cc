#!/bin/bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# Makes of an unpacked release in ROOT/usr/local/antmedia what the vendor's installer leaves: install.sh ROOT BEANS-JAR
set -euo pipefail
root=$1 jar=$2
ams=$root/usr/local/antmedia

# The machine that the root was copied from may have such a user.
grep -q '^antmedia:' "$root/etc/group" || echo 'antmedia:x:64250:' >>"$root/etc/group"
gid=$(awk -F: '$1 == "antmedia" { print $3 }' "$root/etc/group")
grep -q '^antmedia:' "$root/etc/passwd" || echo "antmedia:x:64250:$gid::/usr/local/antmedia:/bin/false" >>"$root/etc/passwd"
owner=$(awk -F: '$1 == "antmedia" { print $3 ":" $4 }' "$root/etc/passwd")
mkdir -p "$root/var/log/antmedia"
ln -sfn /var/log/antmedia "$ams/log"
cp "$jar" "$ams/lib/amsagent-test-beans-not-enterprise.jar"
chown -R "$owner" "$ams" "$root/var/log/antmedia"

# No analytics; and no publisher is refused because the test machine is busy: processors are measured once an hour.
sed -i -e 's/^server.heartbeatEnabled=.*/server.heartbeatEnabled=false/' \
  -e 's/^server.cpu_limit=.*/server.cpu_limit=100/' -e 's/^server.memory_limit_percentage=.*/server.memory_limit_percentage=100/' \
  -e 's/^server.min_free_ram=.*/server.min_free_ram=0/' \
  -e 's/^server.cpu_measurement_period_ms=.*/server.cpu_measurement_period_ms=3600000/' \
  "$ams/conf/red5.properties"
