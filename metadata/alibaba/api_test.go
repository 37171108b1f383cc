// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
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
	// Headers that do not belong to the signature are not signed.
	req.Header.Set("Accept", "application/json")
	at := time.Date(2023, 10, 26, 10, 22, 32, 0, time.UTC)
	sign(req, credentials{id: "YourAccessKeyId", secret: "YourAccessKeySecret"}, "RunInstances", "2014-05-26", "3156853299f313e23d1673dc12e1703d", at)
	text, _ := canonicalRequest(req)
	if sum := sha256.Sum256([]byte(text)); hex.EncodeToString(sum[:]) != wantHash {
		t.Errorf("the canonical request is another one:\n%s", text)
	}
	if got := req.Header.Get("Authorization"); got != want {
		t.Errorf("authorization\n got %s\nwant %s", got, want)
	}
	got := canonicalQuery(url.Values{"b": {"a b*c~d/e+f"}, "a": {"ü=&"}, "InstanceIds.1": {"i-1"}})
	if want := "InstanceIds.1=i-1&a=%C3%BC%3D%26&b=a%20b%2Ac~d%2Fe%2Bf"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func (w *world) say(p *Provider) error {
	return p.Hooks().Complete(w.t.Context(), cloud.Hook{ID: "ash-1", Token: "T-1"})
}

// Answers of the API and their errors.
func TestAPIErrors(t *testing.T) {
	t.Parallel()
	page := func(status int, body string) answer { return answer{status: status, body: body} }
	for _, tt := range []struct {
		name    string
		answers []answer
		is      error
		text    string // of the error; "" without an error
		calls   int
	}{
		{"over", []answer{bad(400, over)}, cloud.ErrGone, "what it says", 1},
		{"wrong parameter", []answer{bad(400, "InvalidParamter")}, nil, "InvalidParamter", 1},
		{"wrong signature", []answer{bad(400, "SignatureDoesNotMatch")}, nil, "SignatureDoesNotMatch", 1},
		{"denied", []answer{denied()}, lacks(complete), "Forbidden.RAM: what it says", 1},
		{"denied by RAM", []answer{bad(403, "NoPermission")}, lacks(complete), "NoPermission", 1},
		{"too many calls", []answer{bad(400, "Throttling.User"), bad(429, "Throttling"), done()}, nil, "", 3},
		{"too many calls for good", []answer{bad(400, "Throttling.User")}, errThrottled, "Throttling.User", 3},
		{"ill", []answer{bad(503, "ServiceUnavailable"), page(502, "<html>"), done()}, nil, "", 3},
		{"a nonce that was used", []answer{bad(400, "SignatureNonceUsed"), done()}, nil, "", 2},
		{"cut off", []answer{{err: syscall.ECONNRESET}, done()}, nil, "", 2},
		{"a page of a proxy", []answer{ok("<html>log in</html>")}, nil, "not one of the API", 3},
		{"a page that refuses", []answer{page(403, "<html>")}, nil, "not one of the API", 1},
		{"nothing", []answer{ok("")}, nil, "not one of the API", 3},
		{"JSON of something else", []answer{ok(`{"ok":true}`)}, nil, "not one of the API", 3},
		{"a redirect", []answer{page(302, "")}, nil, "not one of the API", 3},
		{"an error with a good status", []answer{ok(`{"RequestId":"1","Code":"InternalError","Message":"x"}`), done()}, nil, "", 2},
	} {
		row(t, tt.name, func(t *testing.T, w *world) {
			w.on(complete, tt.answers...)
			err := w.say(w.open())
			if tt.is != nil {
				wants(t, err, tt.is)
			}
			if (err != nil) != (tt.text != "") || err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%v, want %q", err, tt.text)
			}
			if n := len(w.called(complete)); n != tt.calls {
				t.Errorf("%d calls, want %d", n, tt.calls)
			}
		})
	}
}

// Without a role the agent does not call the API.
func TestNoRole(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]func(items map[string]answer){
		"not set":        func(i map[string]answer) { delete(i, rolePath) },
		"an empty list":  func(i map[string]answer) { i[rolePath] = ok("\n") },
		"it was removed": func(i map[string]answer) { delete(i, rolePath+"ams-node") },
	} {
		row(t, name, func(t *testing.T, w *world) {
			set(w.items)
			wants(t, w.say(w.open()), &cloud.DeniedError{Permission: "ess:" + complete, NoRole: true})
			if len(w.calls) > 0 {
				t.Errorf("%+v", w.calls)
			}
		})
	}
}

// Credentials are fetched once, again before they expire, and once if the API refuses them.
func TestCredentials(t *testing.T) {
	const path = rolePath + "ams-node"
	bubble(t, func(t *testing.T, w *world) {
		p := w.open()
		want := func(what string, fetched int, keys string) {
			t.Helper()
			got := ""
			for _, c := range w.calls {
				got += strings.TrimPrefix(c.key, "STS.key")
			}
			if w.asked[path] != fetched || got != keys {
				t.Errorf("%s: fetched %d times, keys %s; want %d and %s", what, w.asked[path], got, fetched, keys)
			}
			w.calls, w.asked[path] = nil, 0
		}
		w.on(complete, done(), done(), bad(400, "InvalidSecurityToken.Expired"), done())
		must.OK(t, errors.Join(w.say(p), w.say(p)))
		want("two calls", 1, "11")
		w.items[path] = credentialsFor("2", time.Hour)
		must.OK(t, w.say(p))
		want("refused", 1, "12")
		w.on(complete, bad(404, "InvalidAccessKeyId.NotFound"))
		if err := w.say(p); err == nil || !strings.Contains(err.Error(), "InvalidAccessKeyId") {
			t.Errorf("%v", err)
		}
		want("refused although they are new", 1, "22")
		w.on(complete, done())
		<-time.After(56 * time.Minute)
		w.items[path] = answer{status: http.StatusInternalServerError}
		must.OK(t, w.say(p))
		want("the metadata do not answer, and they are good for some minutes", 3, "2")
		w.items[path] = credentialsFor("3", 2*time.Minute)
		must.OK(t, errors.Join(w.say(p), w.say(p)))
		want("the service gives out nothing better", 1, "33")
		// An error contains no part of them.
		<-time.After(2 * time.Minute)
		for _, body := range []string{"", "[]", "<html>EXAMPLE", `{"Code":"Failed","AccessKeyId":"EXAMPLE"}`, strings.Replace(metadatatest.Fixture(t, "credentials.json"), "Expir", "X", 1)} {
			w.items[path] = ok(body)
			if err := w.say(p); err == nil || strings.Contains(err.Error(), "EXAMPLE") {
				t.Errorf("%s: %v", body, err)
			}
		}
		w.items[path] = ok(strings.Replace(metadatatest.Fixture(t, "credentials.json"), "2026-11-20T14", "2000-01-01T09", 1))
		must.OK(t, w.say(p))
	})
}

// A machine whose clock is wrong by an hour logs that once, and signs with the time of the API from then on.
func TestClockSkew(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		wrong := bad(400, "InvalidTimeStamp.Expired")
		wrong.date = midnight().Add(time.Hour)
		w.on(complete, wrong, done())
		p := w.open()
		must.OK(t, errors.Join(w.say(p), w.say(p)))
		for i, want := range []string{"00", "01", "01"} {
			if at := w.calls[i].date; at != "2000-01-01T"+want+":00:00Z" {
				t.Errorf("call %d is of %s", i, at)
			}
		}
		w.logged("clock of this machine", 1)
		// An API that refuses every time causes no loop.
		w.on(complete, wrong)
		if err := w.say(w.open()); err == nil || !strings.Contains(err.Error(), "clock") || len(w.calls) != 5 {
			t.Errorf("%d calls: %v", len(w.calls), err)
		}
	})
}

// The hosts of the API are tried until one accepts a connection, which is kept.
func TestHosts(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		p := w.open()
		w.on(complete, answer{err: syscall.EHOSTUNREACH})
		err := w.say(p)
		if _, far := errors.AsType[*cloud.UnreachableError](err); !far || !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("%v", err)
		}
		w.on(complete, answer{err: syscall.EHOSTUNREACH}, done(), answer{err: syscall.ECONNRESET}, done())
		must.OK(t, errors.Join(w.say(p), w.say(p)))
		asked := ""
		for _, c := range w.calls {
			asked += strings.ReplaceAll(c.host, ".aliyuncs.com", " ")
		}
		const region, vpc = "ess.cn-hangzhou ", "ess-vpc.cn-hangzhou "
		if want := region + vpc + "ess " + region + vpc + vpc + vpc; asked != want {
			t.Errorf("asked %s, want %s", asked, want)
		}
	})
	// Two calls begin at one host, and the connection of one fails: the host that the other one reaches is kept.
	a := &api{product: "ess"}
	_, first := a.origin("r")
	a.hosts.Note(first, false)
	a.hosts.Note(first, true)
	a.hosts.Note(1, false)
	if at, _ := a.origin("r"); at != "https://ess.r.aliyuncs.com" {
		t.Error(at)
	}
}
