// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

// TestSignPublishedExample is the example with fixed parameters of the page that describes signature V3 (see algorithm).
func TestSignPublishedExample(t *testing.T) {
	t.Parallel()
	const (
		wantHash = "7ea06492da5221eba5297e897ce16e55f964061054b7695beedaac1145b1e259"
		want     = "ACS3-HMAC-SHA256 Credential=YourAccessKeyId,SignedHeaders=host;x-acs-action;x-acs-content-sha256;x-acs-date;" +
			"x-acs-signature-nonce;x-acs-version,Signature=06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"
	)
	q := url.Values{"ImageId": {"win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd"}, "RegionId": {"cn-shanghai"}}
	req, err := http.NewRequest(http.MethodPost, "https://ecs.cn-shanghai.aliyuncs.com/?"+canonicalQuery(q), http.NoBody)
	must.OK(t, err)
	// What is not of the signature is not signed.
	req.Header.Set("Accept", "application/json")
	at := time.Date(2023, 10, 26, 10, 22, 32, 0, time.UTC)
	sign(req, Credentials{AccessKeyID: "YourAccessKeyId", AccessKeySecret: "YourAccessKeySecret"},
		call{action: "RunInstances", version: "2014-05-26", nonce: "3156853299f313e23d1673dc12e1703d", at: at})
	text, _ := canonicalRequest(req)
	if sum := sha256.Sum256([]byte(text)); hex.EncodeToString(sum[:]) != wantHash {
		t.Errorf("the canonical request is another one:\n%s", text)
	}
	if got := req.Header.Get("Authorization"); got != want {
		t.Errorf("authorization\n got %s\nwant %s", got, want)
	}
}

func TestSignSecurityToken(t *testing.T) {
	t.Parallel()
	signed := func(token, nonce string, at time.Time) (string, string) {
		req, err := http.NewRequest(http.MethodPost, "http://127.0.0.1:81/?A=1", http.NoBody)
		must.OK(t, err)
		sign(req, Credentials{AccessKeyID: "id", AccessKeySecret: "secret", SecurityToken: token}, call{action: "A", version: "V", nonce: nonce, at: at})
		auth := req.Header.Get("Authorization")
		names, signature, _ := strings.Cut(auth, ",Signature=")
		return names, signature
	}
	now := time.Now()
	names, first := signed("sts", "n", now)
	if !strings.HasSuffix(names, "SignedHeaders=host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-security-token;x-acs-signature-nonce;x-acs-version") {
		t.Errorf("signed are %s", names)
	}
	for what, change := range map[string]func() (string, string){
		"token": func() (string, string) { return signed("other", "n", now) },
		"nonce": func() (string, string) { return signed("sts", "m", now) },
		"time":  func() (string, string) { return signed("sts", "n", now.Add(time.Second)) },
	} {
		if _, other := change(); other == first {
			t.Errorf("another %s has the same signature", what)
		}
	}
}

func TestCanonicalQuery(t *testing.T) {
	t.Parallel()
	got := canonicalQuery(url.Values{"b": {"a b*c~d/e+f"}, "a": {"ü=&"}, "InstanceIds.1": {"i-1"}})
	if want := "InstanceIds.1=i-1&a=%C3%BC%3D%26&b=a%20b%2Ac~d%2Fe%2Bf"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
