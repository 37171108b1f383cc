#!/bin/sh
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# Makes a golden image of the machine it runs on: Ant Media Server, amsagent, the program by which the cloud's secret is
# read, and nothing that names this machine. amsagent.pkr.hcl and cloud-init.yaml beside it call it. Debian 12 and 13,
# Ubuntu 22.04 and 24.04; root.
set -eu

cloud=''
ams=''
ams_sum=''
installer=''
installer_sum=''
agent=''
agent_sum=''
dry=''
work=/var/tmp/amsagent-image

usage() {
	cat <<'END'
usage: prepare.sh --cloud aws|gcp|azure|alibaba|none --ams ZIP --ams-sha256 SUM --installer SCRIPT --installer-sha256 SUM
                  --agent DEB --agent-sha256 SUM [--dry-run]

ZIP is Ant Media Server as its vendor ships it, SCRIPT the vendor's install_ant-media-server.sh, DEB the package of amsagent:
each a file, or an https address. SUM is its SHA-256; a file that is here needs none ('').
END
}
die() {
	echo "image: error: $*" >&2
	exit 1
}
bad() {
	echo "image: error: $*" >&2
	usage >&2
	exit 2
}
run() { if [ "$dry" ]; then echo "run: $*"; else "$@"; fi; }

while [ $# -gt 0 ]; do
	case $1 in
	--dry-run) dry=yes ;;
	-h | --help)
		usage
		exit 0
		;;
	--cloud | --ams | --ams-sha256 | --installer | --installer-sha256 | --agent | --agent-sha256)
		[ $# -gt 1 ] || bad "$1 needs a value"
		case $1 in
		--cloud) cloud=$2 ;;
		--ams) ams=$2 ;;
		--ams-sha256) ams_sum=$2 ;;
		--installer) installer=$2 ;;
		--installer-sha256) installer_sum=$2 ;;
		--agent) agent=$2 ;;
		--agent-sha256) agent_sum=$2 ;;
		esac
		shift
		;;
	*) bad "$1 is not known" ;;
	esac
	shift
done

case $cloud in aws | gcp | azure | alibaba | none) ;; *) bad "--cloud: aws, gcp, azure, alibaba or none" ;; esac

# check NAME SOURCE SUM: what comes by the network is known by its sum, or it is not run as root.
check() {
	case $2 in
	'') bad "--$1 is missing" ;;
	https://*) [ "$3" ] || bad "--$1-sha256: $2 comes by the network and needs one" ;;
	*://*) bad "--$1: https, or a file" ;;
	*) [ "$dry" ] || [ -r "$2" ] || bad "--$1: $2 cannot be read" ;;
	esac
	case $3 in *[!0-9a-f]*) bad "--$1-sha256: small hexadecimal digits" ;; esac
	[ -z "$3" ] || [ ${#3} = 64 ] || bad "--$1-sha256: 64 digits"
}
check ams "$ams" "$ams_sum"
check installer "$installer" "$installer_sum"
check agent "$agent" "$agent_sum"
[ "$dry" ] || [ "$(id -u)" = 0 ] || die "this needs root"

# get SOURCE SUM FILE
get() {
	if [ "$dry" ]; then
		echo "get: $3 from $1, SHA-256 ${2:-not compared}"
		return
	fi
	case $1 in
	https://*) curl -fsSL --proto '=https' --retry 5 -o "$3" "$1" ;;
	*) cp "$1" "$3" ;;
	esac
	[ -z "$2" ] || echo "$2  $3" | sha256sum -c --quiet - || die "$1 is another file than the sum says"
}

export DEBIAN_FRONTEND=noninteractive
run mkdir -p "$work"
run apt-get -q update
run apt-get -q -y install --no-install-recommends ca-certificates curl sudo unzip
case $cloud in
aws) run apt-get -q -y install --no-install-recommends awscli ;;
# Google's own images bring it.
gcp) [ "$dry" ] || command -v gcloud >/dev/null || die "gcloud is not here: begin with one of Google's own images" ;;
# Its vault is asked with curl, by the machine's own identity.
azure) run apt-get -q -y install --no-install-recommends jq ;;
# There, requests are signed. What is between the marks is alibaba-secret.py beside this file, and a test compares them.
alibaba)
	run apt-get -q -y install --no-install-recommends python3
	if [ "$dry" ]; then
		echo 'write: /usr/local/sbin/amsagent-secret'
	else
		cat >/usr/local/sbin/amsagent-secret <<'AMSAGENT-SECRET'
#!/usr/bin/env python3
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# A secret of KMS, by this machine's RAM role: amsagent-secret get NAME | put NAME FILE. No command line has key or value.
import hashlib, hmac, json, os, sys, time, uuid
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import ProxyHandler, Request, build_opener, urlopen

meta = os.environ.get('AMSAGENT_ALIBABA_ENDPOINT', 'http://100.100.100.200') + '/latest/'


def read(path, method='GET', **h):
    r = Request(meta + path, None, {'X-aliyun-ecs-metadata-' + k: v for k, v in h.items()}, method=method)
    return build_opener(ProxyHandler({})).open(r, timeout=10).read().decode().strip()


def call(action, **params):
    token = read('api/token', 'PUT', **{'token-ttl-seconds': '300'})
    roles = 'meta-data/ram/security-credentials/'
    key = json.loads(read(roles + read(roles, token=token).split()[0], token=token))
    url = os.environ.get('AMSAGENT_ALIBABA_KMS_ENDPOINT', 'https://kms.%s.aliyuncs.com' % read('meta-data/region-id', token=token))
    body = urlencode(params, quote_via=quote).encode()
    h = {
        'content-type': 'application/x-www-form-urlencoded', 'host': urlsplit(url).netloc, 'x-acs-action': action,
        'x-acs-content-sha256': hashlib.sha256(body).hexdigest(), 'x-acs-date': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
        'x-acs-security-token': key['SecurityToken'], 'x-acs-signature-nonce': uuid.uuid4().hex, 'x-acs-version': '2016-01-20',
    }
    names = ';'.join(h)  # in order
    text = '\n'.join(['POST', '/', '', *map(':'.join, h.items()), '', names, h['x-acs-content-sha256']])
    text = 'ACS3-HMAC-SHA256\n' + hashlib.sha256(text.encode()).hexdigest()
    sign = hmac.new(key['AccessKeySecret'].encode(), text.encode(), hashlib.sha256).hexdigest()
    h['authorization'] = 'ACS3-HMAC-SHA256 Credential=%s,SignedHeaders=%s,Signature=%s' % (key['AccessKeyId'], names, sign)
    return json.load(urlopen(Request(url + '/', body, h), timeout=20))


do, name = sys.argv[1:3]
try:
    if do == 'put':
        call('PutSecretValue', SecretName=name, SecretData=open(sys.argv[3]).read().strip(), VersionId=uuid.uuid4().hex)
    else:
        value = call('GetSecretValue', SecretName=name)['SecretData']
        if not value.startswith('mongodb'):
            sys.exit(name + ' has no connection string yet')
        print(value)
except (OSError, ValueError, LookupError) as e:
    sys.exit('%s: %s %s' % (name, e, e.read(500) if hasattr(e, 'read') else ''))
AMSAGENT-SECRET
		chmod 0755 /usr/local/sbin/amsagent-secret
	fi
	;;
esac

get "$ams" "$ams_sum" "$work/ant-media-server.zip"
get "$installer" "$installer_sum" "$work/install_ant-media-server.sh"
get "$agent" "$agent_sum" "$work/amsagent.deb"
# It unpacks where it stands.
if [ "$dry" ]; then
	echo "run: install_ant-media-server.sh -i $work/ant-media-server.zip"
else
	(cd "$work" && bash ./install_ant-media-server.sh -i ant-media-server.zip </dev/null)
fi
run apt-get -q -y install --no-install-recommends "$work/amsagent.deb"

# The load balancer asks the agent whether new sessions may come; firewalls let nobody else in. No secret, ever: this file
# is for everybody to read.
if [ "$dry" ]; then
	echo 'write: /etc/amsagent/config.yaml'
else
	mkdir -p /etc/amsagent
	printf '%s\n' '# Written when the image was made.' 'metrics_address: 0.0.0.0:9771' >/etc/amsagent/config.yaml
	chmod 0644 /etc/amsagent/config.yaml
fi
run amsagent config
run amsagent doctor --strict --ignore AMS-MONGO-MISSING || echo 'image: amsagent doctor is not content, see above' >&2

# What names this machine goes: Ant Media Server's identity, users and keys, and the machine's.
run systemctl stop antmedia
run amsagent seal --yes
run apt-get -q clean
run rm -rf "$work"
run find /etc/ssh -name 'ssh_host_*_key*' -delete
# Google's images have none.
if [ "$dry" ] || command -v cloud-init >/dev/null; then run cloud-init clean --logs --seed; fi
