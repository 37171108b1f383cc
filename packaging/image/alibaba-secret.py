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
