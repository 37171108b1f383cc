#!/bin/bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# Makes a namespace a machine with Ant Media Server on it: node.sh NUMBER TREE BEANS-JAR JAVA-HOME SERVICE INSTALL
number=$1 tree=$2 jar=$3 java=$4 service=$5 install=$6
hostname "node$number"
mount -t sysfs sysfs /sys

# All that is written lies in memory and vanishes with the namespace.
mount -t tmpfs -o mode=0755 tmpfs /mnt
over() { # over LOWER MOUNTPOINT NAME
  mkdir "/mnt/$3" "/mnt/$3.work"
  mount -t overlay -o "lowerdir=$1,upperdir=/mnt/$3,workdir=/mnt/$3.work,metacopy=on" overlay "$2"
}
over /etc /etc etc
over /var /var var
over /tmp /tmp tmp
chmod 1777 /tmp
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t tmpfs -o mode=0755 tmpfs /usr/local
mkdir -p /usr/local/sbin /usr/local/bin /usr/local/antmedia /run/lock
over "$tree" /usr/local/antmedia ams

# What tells one machine from another.
printf 'node%s\n' "$number" >/etc/hostname
printf '%032x\n' $((0xa0000000 + number)) >/etc/machine-id
printf '127.0.0.1 localhost\n10.77.0.%s node%s\n' "$number" "$number" >/etc/hosts
: >/etc/resolv.conf
rm -rf /var/lib/amsagent /etc/amsagent /.dockerenv # by the last one the vendor's scripts know a container

rm -rf /var/log/antmedia
bash -c "$install" bash "" "$jar"

printf '%s' "$service" >/usr/local/sbin/antmedia-service
# The vendor's scripts call: service antmedia start|stop
cat >/usr/local/sbin/service <<'END'
#!/bin/sh
exec /usr/local/sbin/antmedia-service "$2"
END
# The server's user cannot go through root's home, where the cache may be.
mkdir /mnt/java
mount --bind "$java" /mnt/java
echo JAVA_HOME=/mnt/java >/usr/local/sbin/antmedia-service.env
chmod 755 /usr/local/sbin/antmedia-service /usr/local/sbin/service
