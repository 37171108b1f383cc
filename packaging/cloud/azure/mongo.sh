#!/bin/sh
set -e
cat >/usr/local/sbin/amsagent-mongodb <<'AMSAGENT-MONGODB'
{{install}}
AMSAGENT-MONGODB
chmod 0755 /usr/local/sbin/amsagent-mongodb
apt-get -q update
DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends ca-certificates curl jq
uri=$(/usr/local/sbin/amsagent-mongodb --single --release '{{release}}' --databases '{{databases}}' --data-device /dev/disk/azure/scsi1/lun0 | tail -n 1)
umask 077
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
jq -R '{value: .}' "$uri" >"$work/secret"
# Neither the token nor the password is on a command line. Tried again until it works: rights may come later than the machine.
until curl -fsS --noproxy '*' -H 'Metadata: true' 'http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://{{vaults}}&client_id={{identity}}' | jq -r '"Authorization: Bearer " + .access_token' | curl -fsS -X PUT -H @- -H 'Content-Type: application/json' --data-binary "@$work/secret" -o /dev/null 'https://{{vault}}/secrets/mongo?api-version=7.4'; do sleep 15; done
