// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakealibaba"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

// TestSignPublishedExample is the example with fixed parameters of the page that describes signature V3 (see algorithm).
func TestSignPublishedExample(t *testing.T) {
	t.Parallel()
	const (
		want = "ACS3-HMAC-SHA256 Credential=YourAccessKeyId,SignedHeaders=host;x-acs-action;x-acs-content-sha256;x-acs-date;" +
			"x-acs-signature-nonce;x-acs-version,Signature=06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"
	)
	q := url.Values{"ImageId": {"win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd"}, "RegionId": {"cn-shanghai"}}
	req, err := http.NewRequest(http.MethodPost, "https://ecs.cn-shanghai.aliyuncs.com/?"+canonicalQuery(q), http.NoBody)
	must.OK(t, err)
	// Headers that do not belong to the signature are not signed.
	req.Header.Set("Accept", "application/json")
	at := time.Date(2023, 10, 26, 10, 22, 32, 0, time.UTC)
	sign(req, credentials{id: "YourAccessKeyId", secret: "YourAccessKeySecret"}, "RunInstances", "2014-05-26", "3156853299f313e23d1673dc12e1703d", at)
	must.NoDiff(t, "authorization", req.Header.Get("Authorization"), want)
	got := canonicalQuery(url.Values{"b": {"a b*c~d/e+f"}, "a": {"ü=&"}, "InstanceIds.1": {"i-1"}})
	must.Equal(t, "query", got, "InstanceIds.1=i-1&a=%C3%BC%3D%26&b=a%20b%2Ac~d%2Fe%2Bf")
}

// call makes one call of the API: a machine in no group asks for nothing else.
func (a *account) call(p *Provider) error {
	_, err := p.Check(a.t.Context(), nil)
	return err
}

// Answers of the API and their errors.
func TestAPIErrors(t *testing.T) {
	t.Parallel()
	bad := func(status int, code string, times int) event {
		return fails(fakes.Fault{Status: status, Code: code, Message: "what it says", Times: times})
	}
	page := func(status int, body string, times int) event {
		return fails(fakes.Fault{Status: status, Body: body, Times: times})
	}
	for _, tt := range []struct {
		name    string
		history history
		is      error
		text    string // of the error; "" without an error
		calls   int
	}{
		{"over", history{bad(400, "LifecycleHookIdAndLifecycleActionToken.Invalid", 0)}, cloud.ErrGone, "what it says", 1},
		{"wrong parameter", history{bad(400, "InvalidParamter", 0)}, nil, "InvalidParamter", 1},
		{"wrong signature", history{bad(400, "SignatureDoesNotMatch", 0)}, nil, "SignatureDoesNotMatch", 1},
		{"denied", history{bad(403, "Forbidden.RAM", 0)}, lacks(describeMembers), "Forbidden.RAM: what it says", 1},
		{"denied by RAM", history{bad(403, "NoPermission", 0)}, lacks(describeMembers), "NoPermission", 1},
		{"too many calls", history{bad(400, "Throttling.User", 1), bad(429, "Throttling", 1)}, nil, "", 3},
		{"too many calls for good", history{bad(400, "Throttling.User", 0)}, errThrottled, "Throttling.User", 3},
		{"ill", history{bad(503, "ServiceUnavailable", 1), page(502, "<html>", 1)}, nil, "", 3},
		{"a nonce that was used", history{bad(400, "SignatureNonceUsed", 1)}, nil, "", 2},
		{"cut off", history{fails(fakes.Fault{Reset: true, Times: 1})}, nil, "", 2},
		{"a page of a proxy", history{page(200, "<html>log in</html>", 0)}, nil, "not one of the API", 3},
		{"a page that refuses", history{page(403, "<html>", 0)}, nil, "not one of the API", 1},
		{"nothing", history{page(200, "", 0)}, nil, "not one of the API", 3},
		{"JSON of something else", history{page(200, `{"ok":true}`, 0)}, nil, "not one of the API", 3},
		{"a redirect", history{page(302, "", 0)}, nil, "not one of the API", 3},
		{"an error with a good status", history{page(200, `{"RequestId":"1","Code":"InternalError","Message":"x"}`, 1)}, nil, "", 2},
	} {
		row(t, tt.name, func(t *testing.T, a *account) {
			a.plays(tt.history...)
			err := a.call(a.open())
			if tt.is != nil {
				wants(t, err, tt.is)
			}
			if (err != nil) != (tt.text != "") || err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%v, want %q", err, tt.text)
			}
			must.Equal(t, "calls", len(a.called(describeMembers)), tt.calls)
		})
	}
}

// Without a role the agent does not call the API.
func TestNoRole(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string]event{
		"not set":        serves(rolePath, http.StatusNotFound, ""),
		"an empty list":  serves(rolePath, http.StatusOK, "\n"),
		"it was removed": serves(rolePath+"ams-node", http.StatusNotFound, ""),
	} {
		row(t, name, func(t *testing.T, a *account) {
			a.plays(lost)
			wants(t, a.call(a.open()), &cloud.DeniedError{Permission: "ess:" + describeMembers, NoRole: true})
			if len(a.sent) > 0 {
				t.Errorf("%d calls", len(a.sent))
			}
		})
	}
}

// Credentials are fetched once, again before they expire, and once if the API refuses them.
func TestCredentials(t *testing.T) {
	const path = rolePath + "ams-node"
	bubble(t, func(t *testing.T, a *account) {
		p := a.open()
		fetches, calls := 0, 0
		want := func(what string, fetched int, answers ...string) {
			t.Helper()
			n, got := a.meta.Asked(path, time.Time{}), a.answers()
			if n-fetches != fetched || !slices.Equal(got[calls:], answers) {
				t.Errorf("%s: fetched %d times, answers %q; want %d and %q", what, n-fetches, got[calls:], fetched, answers)
			}
			fetches, calls = n, len(got)
		}
		must.OK(t, errors.Join(a.call(p), a.call(p)))
		want("two calls", 1, "", "")
		a.meta.ExpireKeys()
		must.OK(t, a.call(p))
		want("refused", 1, "InvalidSecurityToken.Expired", "")
		const unknown = "InvalidAccessKeyId.NotFound"
		a.plays(fails(fakes.Fault{Code: unknown}))
		if err := a.call(p); err == nil || !strings.Contains(err.Error(), unknown) {
			t.Errorf("%v", err)
		}
		want("refused although they are new", 1, unknown, unknown)
		a.ClearFaults()
		must.OK(t, a.call(p))
		want("they are good again", 1, "")
		k := a.meta.Key()
		<-time.After(time.Until(k.Until) - 4*time.Minute)
		a.plays(serves(path, http.StatusInternalServerError, ""))
		must.OK(t, a.call(p))
		want("the metadata do not answer, and they are good for some minutes", 3, "")
		old := map[string]any{"AccessKeyId": k.ID, "AccessKeySecret": k.Secret, "SecurityToken": k.Token, "Expiration": k.Until}
		a.plays(serves(path, http.StatusOK, fakes.JSON(old)))
		must.OK(t, errors.Join(a.call(p), a.call(p)))
		want("the service gives out nothing better", 2, "", "")
		// An error contains no part of them.
		<-time.After(4 * time.Minute)
		documented := metadatatest.Fixture(t, "credentials.json")
		for _, body := range []string{"\n", "[]", "<html>EXAMPLE", `{"Code":"Failed","AccessKeyId":"EXAMPLE"}`, strings.Replace(documented, "Expir", "X", 1)} {
			a.plays(serves(path, http.StatusOK, body))
			if err := a.call(p); err == nil || strings.Contains(err.Error(), "EXAMPLE") {
				t.Errorf("%s: %v", body, err)
			}
			want(body, 3)
		}
		a.plays(serves(path, http.StatusOK, documented))
		if err := a.call(p); err == nil || !strings.Contains(err.Error(), unknown) {
			t.Errorf("the credentials of another account: %v", err)
		}
	})
}

// A machine whose clock is wrong by an hour logs that once, and signs with the time of the API from then on.
func TestClockSkew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const wrong = "InvalidTimeStamp.Expired"
		a := newAccount(t, fakealibaba.CloudOptions{Skew: time.Hour})
		p := a.open()
		must.OK(t, errors.Join(a.call(p), a.call(p)))
		must.NoDiff(t, "answers", a.answers(), []string{wrong, "", ""})
		a.logged("clock of this machine", 1)
		// An API that refuses every time causes no loop.
		a.plays(fails(fakes.Fault{Code: wrong}))
		if err := a.call(a.open()); err == nil || !strings.Contains(err.Error(), "clock") || len(a.answers()) != 5 {
			t.Errorf("answers %q: %v", a.answers(), err)
		}
	})
}

// Credentials that look expired by the clock of this machine are kept while they are good by that of the API.
func TestCredentialsAndSkew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAccount(t, fakealibaba.CloudOptions{Skew: -7 * time.Hour})
		k := a.meta.Key()
		a.plays(serves(rolePath+"ams-node", http.StatusOK, fakes.JSON(map[string]any{
			"AccessKeyId": k.ID, "AccessKeySecret": k.Secret, "SecurityToken": k.Token, "Expiration": k.Until.Add(-7 * time.Hour),
		})))
		p := a.open()
		must.OK(t, errors.Join(a.call(p), a.call(p), a.call(p)))
		must.Equal(t, "fetched (times)", a.meta.Asked(rolePath+"ams-node", time.Time{}), 1)
	})
}

// The hosts of the API are tried until one accepts a connection, which is kept.
func TestHosts(t *testing.T) {
	bubble(t, func(t *testing.T, a *account) {
		p := a.open()
		a.plays(fails(fakes.Fault{Reset: true, Times: 4}))
		err := a.call(p)
		if !errors.Is(err, cloud.ErrUnreachable) || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v", err)
		}
		must.OK(t, a.call(p))
		a.plays(fails(fakes.Fault{Reset: true, Times: 1}))
		must.OK(t, a.call(p))
		asked := ""
		for _, r := range a.called(describeMembers) {
			asked += strings.ReplaceAll(r.URL.Host, ".aliyuncs.com", " ")
		}
		const region, vpc = "ess.cn-hangzhou ", "ess-vpc.cn-hangzhou "
		must.Equal(t, "asked", asked, region+vpc+"ess "+region+vpc+vpc+vpc)
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
