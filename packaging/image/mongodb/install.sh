#!/bin/sh
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# MongoDB for a cluster of Ant Media Server, on Debian or Ubuntu: README.md beside it. Run it again after any outcome, or
# with other --databases: what is done stays done, and the passwords and the release stay.
set -eu
umask 077

release=${MONGODB_RELEASE:-$(mongod --version 2>/dev/null | sed -n '1s/.* v\([0-9]*\.[0-9]*\).*/\1/p')}
release=${release:-8.0}
mode=''
set_name=rs0
members=''
address=''
device=''
data=/srv/mongodb
keyfile=''
databases=live,liveapp,webrtcappee
dry=''

usage() {
	cat <<'END'
usage: install.sh --single [options]
       install.sh --replica-set --members A,B,C --keyfile FILE [options]   on each of the three, A last
       install.sh --make-keyfile FILE                                      once; copy it to all three

  --release N        MongoDB's major release (the installed one, else 8.0)
  --bind IP          the private address to listen on, besides 127.0.0.1 (that of the default route)
  --data-dir DIR     data, and secrets that belong to it (/srv/mongodb)
  --data-device DEV  a disk for it: formatted only where it is empty, mounted at DIR
  --databases A,B    db.name of each application (live,liveapp,webrtcappee)
  --set-name NAME    of the replica set (rs0)
  --dry-run          say what would be done, and touch nothing
END
}

say() { echo "mongodb: $*" >&2; }
die() {
	say "error: $*"
	exit 1
}
bad() {
	say "error: $*"
	usage >&2
	exit 2
}
# folder PATH MODE OWNER: parents are for everybody to come through.
folder() {
	if [ "$dry" ]; then
		echo "folder: $1 ($2 $3)"
		return
	fi
	(umask 022 && mkdir -p "$1")
	chmod "$2" "$1"
	chown "$3" "$1"
}
run() { if [ "$dry" ]; then echo "run: $*"; else "$@"; fi; }

# put FILE MODE OWNER < CONTENT: writes a file whole, or not at all.
put() {
	if [ "$dry" ]; then
		echo "write: $1 ($2 $3)"
		sed 's/^/    /'
		return
	fi
	cat >"$1.new"
	chmod "$2" "$1.new"
	chown "$3" "$1.new"
	mv -f "$1.new" "$1"
}

# secret FILE: a password of 192 bits, made once. Hexadecimal, so that no reader of a connection string can take it wrong.
secret() {
	if [ "$dry" ]; then
		echo "secret: $1 (0600 root), made once"
	elif [ ! -s "$1" ]; then
		od -An -N24 -tx1 /dev/urandom | tr -d ' \n' | put "$1" 0600 root:root
	fi
}

while [ $# -gt 0 ]; do
	case $1 in
	--single | --replica-set) mode=${1#--} ;;
	--dry-run) dry=yes ;;
	-h | --help)
		usage
		exit 0
		;;
	--release | --bind | --data-dir | --data-device | --databases | --set-name | --members | --keyfile | --make-keyfile)
		[ $# -gt 1 ] || bad "$1 needs a value"
		case $1 in
		--release) release=$2 ;;
		--bind) address=$2 ;;
		--data-dir) data=$2 ;;
		--data-device) device=$2 ;;
		--databases) databases=$2 ;;
		--set-name) set_name=$2 ;;
		--members) members=$2 ;;
		--keyfile) keyfile=$2 ;;
		--make-keyfile)
			[ ! -e "$2" ] || die "$2 is there already: members with different keys do not find each other"
			od -An -N96 -tx1 /dev/urandom | tr -d ' \n' >"$2"
			say "$2 is the key of the replica set; copy it to all members, and to nobody else"
			exit 0
			;;
		esac
		shift
		;;
	*) bad "$1 is not known" ;;
	esac
	shift
done

# All that can be wrong is told before anything is touched.
[ "$mode" ] || bad "--single or --replica-set?"
case $release in *[!0-9.]* | '' | .* | *.) bad "--release is a number such as 8.0, not $release" ;; esac
# They become names in JavaScript and in MongoDB.
case $databases in *[!A-Za-z0-9_,-]* | '') bad "--databases: letters, digits, _ and -, separated by commas" ;; esac
case $set_name in *[!A-Za-z0-9_-]* | '') bad "--set-name: letters, digits, _ and -" ;; esac
case $members in *[!A-Za-z0-9_.,-]*) bad "--members: names or IPv4 addresses, separated by commas, without ports" ;; esac
case $data in /*[!A-Za-z0-9_./-]* | [!/]* | / | '') bad "--data-dir: a path of plain letters" ;; esac
if [ "$mode" = replica-set ]; then
	case $members in
	*,*,*,*) bad "--members: three" ;;
	?*,?*,?*) ;;
	*) bad "--members: three" ;;
	esac
	[ -s "$keyfile" ] || [ "$dry" ] || bad "--keyfile: the same file on all three; install.sh --make-keyfile makes one"
elif [ "$members$keyfile" ]; then
	bad "--members and --keyfile are for --replica-set"
fi
if [ -z "$address" ]; then
	address=$(ip -4 -o route get 192.0.2.1 2>/dev/null | sed -n 's/.* src \([0-9.]*\).*/\1/p')
	[ "$address" ] || bad "--bind: this machine has no default route to take the address from"
fi
case $address in
10.* | 192.168.* | 172.1[6-9].* | 172.2[0-9].* | 172.3[01].* | 100.6[4-9].* | 100.[7-9][0-9].* | 100.1[01][0-9].* | 100.12[0-7].*) ;;
# A database on a public address is found within hours.
*) bad "--bind: $address is no private address" ;;
esac
case $address in *[!0-9.]*) bad "--bind: $address is no address" ;; esac

# For tests, a file with another name.
os=${OS_RELEASE:-/etc/os-release}
# shellcheck source=/dev/null
id=$(. "$os" && echo "${ID:-}")
# shellcheck source=/dev/null
codename=$(. "$os" && echo "${VERSION_CODENAME:-}")
case $id in
debian) component=main ;;
ubuntu) component=multiverse ;;
*) die "MongoDB's packages are taken for Debian and Ubuntu; this is ${id:-something else}" ;;
esac
[ "$codename" ] || die "$os names no release"
[ "$dry" ] || [ "$(id -u)" = 0 ] || die "this needs root"

keyring=/usr/share/keyrings/mongodb-server-$release.asc
sources=/etc/apt/sources.list.d/mongodb-org-$release.list
conf=/etc/mongod.conf
secrets=$data/secrets
uri=$secrets/amsagent.uri

disk() {
	[ "$device" ] || return 0
	if [ "$dry" ]; then
		echo "disk: $device, formatted with XFS where it is empty, at $data by its UUID in /etc/fstab"
		return
	fi
	# A cloud attaches it while the machine boots.
	tries=120
	while [ ! -b "$device" ]; do
		tries=$((tries - 1))
		[ $tries -gt 0 ] || die "$device did not appear within ten minutes"
		sleep 5
	done
	mountpoint -q "$data" && return
	# Only a disk without any signature is empty: blkid says so with 2, and with nothing else.
	code=0
	blkid -p "$device" >/dev/null || code=$?
	case $code in
	0) [ "$(blkid -p -o value -s TYPE "$device")" = xfs ] || die "$device holds something that is no XFS; it was not touched" ;;
	2) mkfs.xfs -q "$device" ;;
	*) die "blkid cannot tell whether $device is empty ($code); it was not touched" ;;
	esac
	uuid=$(blkid -p -o value -s UUID "$device")
	folder "$data" 0755 root:root
	# nofail: a machine without the disk boots, and mongod says what is missing.
	grep -q "^UUID=$uuid " /etc/fstab || echo "UUID=$uuid $data xfs defaults,noatime,nofail 0 2" >>/etc/fstab
	mount "$data"
}

packages() {
	export DEBIAN_FRONTEND=noninteractive
	run apt-get -q update
	run apt-get -q -y install --no-install-recommends ca-certificates curl xfsprogs
	if [ "$dry" ]; then
		echo "fetch: https://pgp.mongodb.com/server-$release.asc to $keyring (0644)"
	elif [ ! -s "$keyring" ]; then
		curl -fsSL --retry 5 -o "$keyring.new" "https://pgp.mongodb.com/server-$release.asc"
		grep -q 'BEGIN PGP PUBLIC KEY' "$keyring.new" || die "what pgp.mongodb.com sent is no key"
		chmod 0644 "$keyring.new"
		mv -f "$keyring.new" "$keyring"
	fi
	echo "deb [signed-by=$keyring] https://repo.mongodb.org/apt/$id $codename/mongodb-org/$release $component" |
		put "$sources" 0644 root:root
	run apt-get -q update
	run apt-get -q -y install mongodb-org
}

config() {
	folder "$data" 0755 root:root
	folder "$data/db" 0700 mongodb:mongodb
	folder "$secrets" 0700 root:root
	if [ "$keyfile" ]; then
		if [ "$dry" ]; then
			echo "write: $data/keyfile (0400 mongodb:mongodb), a copy of $keyfile"
		elif [ "$keyfile" != "$data/keyfile" ]; then
			put "$data/keyfile" 0400 mongodb:mongodb <"$keyfile"
		fi
	fi
	{
		echo "# Written by amsagent's packaging/image/mongodb/install.sh; the next run writes it anew."
		echo "storage:"
		echo "  dbPath: $data/db"
		echo "systemLog:"
		echo "  destination: file"
		echo "  path: /var/log/mongodb/mongod.log"
		echo "  logAppend: true"
		echo "net:"
		echo "  port: 27017"
		echo "  bindIp: 127.0.0.1,$address"
		echo "security:"
		echo "  authorization: enabled"
		if [ "$mode" = replica-set ]; then
			echo "  keyFile: $data/keyfile"
			echo "replication:"
			echo "  replSetName: $set_name"
		fi
	} | put "$conf" 0644 root:root
	# It may come up before the address does, and before the disk.
	folder /etc/systemd/system/mongod.service.d 0755 root:root
	printf '[Unit]\nWants=network-online.target\nAfter=network-online.target\nRequiresMountsFor=%s\n\n[Service]\nRestart=on-failure\nRestartSec=5\n' "$data" |
		put /etc/systemd/system/mongod.service.d/50-amsagent.conf 0644 root:root
	run systemctl daemon-reload
	run systemctl enable mongod
	run systemctl restart mongod
}

# users makes the users, by the localhost exception as long as there is none, and later as the administrator. The
# passwords go from file to file: no command line has one.
users() {
	secret "$secrets/admin.password"
	secret "$secrets/amsagent.password"
	quoted=$(echo "$members" | sed "s/[^,][^,]*/'&'/g")
	put "$secrets/users.js" 0600 root:root <<END
const fs = require('fs'), secrets = '$secrets/', members = [$quoted];
const password = (user) => fs.readFileSync(secrets + user + '.password', 'utf8').trim();
const open = (uri) => new Mongo(uri + 'serverSelectionTimeoutMS=60000').getDB('admin');
let admin = open('mongodb://127.0.0.1:27017/?directConnection=true&');
const until = (what, done) => {
  for (let i = 0; i < 120; i++) { if (done()) return; sleep(1000); }
  throw new Error(what + ' took more than two minutes');
};
const signIn = () => { try { return admin.auth('admin', password('admin')).ok === 1; } catch (e) { return false; } };
until('the start of mongod', () => { try { return admin.runCommand({ping: 1}).ok === 1; } catch (e) { return false; } });
const known = signIn();
if (members.length && !known && !admin.runCommand({hello: 1}).setName) {
  const reply = admin.runCommand({replSetInitiate: {_id: '$set_name', members: members.map((h, i) => ({_id: i, host: h + ':27017'}))}});
  if (reply.ok !== 1 && reply.codeName !== 'AlreadyInitialized') throw new Error('replSetInitiate: ' + reply.errmsg);
}
if (known && members.length) {
  // Another member may be the primary by now.
  admin = open('mongodb://' + members.map((h) => h + ':27017').join() + '/?replicaSet=$set_name&');
  if (!signIn()) throw new Error('the administrator cannot sign in at the primary');
} else {
  until('the election of this member', () => admin.runCommand({hello: 1}).isWritablePrimary === true);
}
if (!known) {
  admin.createUser({user: 'admin', pwd: password('admin'), roles: ['root']});
  if (!signIn()) throw new Error('the new administrator cannot sign in');
}
// What Ant Media Server and the agent write, and nothing else: the cluster's two, the console's, and those of each application.
const names = ['clusterdb', 'serverdb', 'amsagent'];
for (const name of '$databases'.split(',').filter(Boolean))
  for (const part of ['', 'VoD', '_token', '_subscriber', '_endpointCredentials', 'detection', 'room']) names.push(name + part);
const roles = names.map((db) => ({role: 'readWrite', db}));
if (admin.getUser('amsagent')) admin.updateUser('amsagent', {pwd: password('amsagent'), roles});
else admin.createUser({user: 'amsagent', pwd: password('amsagent'), roles});
END
	run mongosh --quiet --norc --nodb "$secrets/users.js"
}

# The database is in the path and not in ?authSource=: so a single one has no query, and a set no "&", which releases of
# Ant Media Server take wrong when they make an application.
connection() {
	hosts=$address:27017
	query=''
	if [ "$mode" = replica-set ]; then
		hosts=$(echo "$members" | sed 's/,/:27017,/g'):27017
		query="?replicaSet=$set_name"
	fi
	if [ "$dry" ]; then
		echo "write: $uri (0600 root:root)"
		echo "    mongodb://amsagent:PASSWORD@$hosts/admin$query"
	else
		printf 'mongodb://amsagent:%s@%s/admin%s\n' "$(cat "$secrets/amsagent.password")" "$hosts" "$query" | put "$uri" 0600 root:root
	fi
}

# first: this is the member on which the set and its users are made.
first() {
	[ "$mode" = single ] || [ "${members%%,*}" = "$address" ] ||
		[ "$(getent ahostsv4 "${members%%,*}" | sed -n '1s/ .*//p')" = "$address" ]
}

packages
disk
config
if ! first; then
	say "this member waits for ${members%%,*}, where the set is made: run it there last"
	exit 0
fi
users
connection
echo "$uri"
say "the connection string is in $uri (0600 root): amsagent join --mongo file:PATH, or into the cloud's vault"
