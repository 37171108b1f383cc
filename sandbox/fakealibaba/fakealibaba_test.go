// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakealibaba

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// TestSignature is the example of the documentation: what this fake refuses by is
// not what the agent made up.
func TestSignature(t *testing.T) {
	t.Parallel()
	r := httptest.NewRequest(http.MethodPost, "https://ecs.cn-shanghai.aliyuncs.com/?RegionId=cn-shanghai&ImageId=win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd", nil)
	const hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for k, v := range map[string]string{
		"x-acs-action": "RunInstances", "x-acs-version": "2014-05-26", "x-acs-date": "2023-10-26T10:22:32Z",
		"x-acs-signature-nonce": "3156853299f313e23d1673dc12e1703d", "x-acs-content-sha256": hash,
	} {
		r.Header.Set(k, v)
	}
	signed := []string{"host", "x-acs-action", "x-acs-content-sha256", "x-acs-date", "x-acs-signature-nonce", "x-acs-version"}
	if got := sign("YourAccessKeySecret", canonical(r, signed, hash)); got != "06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0" {
		t.Errorf("%s\n%s", got, canonical(r, signed, hash))
	}
}

// scaled is a cloud with machines in one group, and the agent's own client for each.
type scaled struct {
	t     *testing.T
	cloud *Cloud
	metas []*Server
	ess   []*alibaba.ESS
	log   *strings.Builder
}

func newScaled(t *testing.T, n int, o CloudOptions, hooks ...Hook) *scaled {
	t.Helper()
	c, err := StartCloud(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	c.Group("asg-1", hooks...)
	s := &scaled{t: t, cloud: c, log: &strings.Builder{}}
	for i := range n {
		in := Sample()
		in.ID, in.NICs[0].IPv4s = fmt.Sprintf("i-bp13znx0m0me8cq%04d", i+1), []string{fmt.Sprintf("192.168.0.%d", 12+i)}
		meta, err := Start(context.Background(), Options{Instance: &in, Cloud: c})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = meta.Close() })
		if err := c.Attach("asg-1", "", meta); err != nil {
			t.Fatal(err)
		}
		p, err := alibaba.New(cloud.Options{
			Endpoints: map[string]string{"alibaba": meta.Endpoint(), alibaba.EndpointECS: c.Endpoint()}, RetryWait: time.Millisecond,
			Log: slog.New(slog.NewTextHandler(s.log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		e, err := p.ESS(alibaba.APIOptions{Endpoint: c.Endpoint()})
		if err != nil {
			t.Fatal(err)
		}
		s.metas, s.ess = append(s.metas, meta), append(s.ess, e)
	}
	return s
}

func (s *scaled) id(n int) string { return s.metas[n].Instance().ID }

func (s *scaled) state(n int) string {
	s.t.Helper()
	m, err := s.ess[n].Membership(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	if m == nil {
		return ""
	}
	return m.State
}

// waits waits until the actions of a machine are listed.
func (s *scaled) waits(n int) []alibaba.Action {
	s.t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		actions, err := s.ess[n].Pending(s.t.Context(), "asg-1")
		if err != nil {
			s.t.Fatal(err)
		}
		if len(actions) > 0 {
			return actions
		}
		if time.Now().After(end) {
			s.t.Fatalf("nothing waits: %+v", s.cloud.Members())
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (s *scaled) gone(n int) Entry {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	e, err := s.cloud.WaitFor(ctx, func(e Entry) bool { return e.What == Gone && e.Instance == s.id(n) })
	if err != nil {
		s.t.Fatalf("%v: %+v", err, s.cloud.Books())
	}
	return e
}

// The instance as the agent reads it, tags and group among it.
func TestInstance(t *testing.T) {
	t.Parallel()
	s := newScaled(t, 1, CloudOptions{})
	p, err := alibaba.New(cloud.Options{Endpoints: map[string]string{"alibaba": s.metas[0].Endpoint(), alibaba.EndpointECS: s.cloud.Endpoint()}})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	i, err := p.Instance(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("read in %s", time.Since(begin).Round(time.Millisecond))
	if i.ID != s.id(0) || i.Group != "asg-1" || !i.TagsKnown || i.Tags["amsagent-role"] != "edge" || i.Address.String() != "192.168.0.12" ||
		i.Name != "edge-hangzhou-0001" || len(i.Missing) > 0 || i.Zone != "cn-hangzhou-i" || i.PublicAddress.String() != "203.0.113.7" {
		t.Errorf("%+v", i)
	}
}

// One token for three machines: whoever says the word says it for all, and both
// shapes of lists tell of it.
func TestOneTokenForThree(t *testing.T) {
	t.Parallel()
	for _, wrapped := range []bool{false, true} {
		s := newScaled(t, 3, CloudOptions{ActionDelay: 50 * time.Millisecond}, Hook{ID: "ash-1"}, Hook{ID: "ash-2"}, Hook{ID: "ash-3", Launching: true})
		s.cloud.Wrap(wrapped)
		if err := s.cloud.ScaleIn(s.id(0), s.id(1), s.id(2)); err != nil {
			t.Fatal(err)
		}
		actions := s.waits(1)
		if len(actions) != 2 || actions[0].Hook != "ash-1" || actions[1].Hook != "ash-2" || !slices.Equal(actions[0].Others, []string{s.id(0), s.id(2)}) {
			t.Fatalf("wrapped %v: %+v", wrapped, actions)
		}
		if other := s.waits(0); other[0].Token != actions[0].Token || s.state(0) != "Removing:Wait" {
			t.Errorf("another token: %+v, %s", other, s.state(0))
		}
		if hooks, err := s.ess[0].Hooks(t.Context(), "asg-1"); err != nil || len(hooks) != 3 || hooks[0].Timeout != 10*time.Minute || !hooks[2].Launching {
			t.Errorf("%+v, %v", hooks, err)
		}
		if err := s.ess[0].Complete(t.Context(), "ash-1", actions[0].Token, false); err != nil {
			t.Fatal(err)
		}
		if s.state(2) != "Removing:Wait" {
			t.Error("one of two hooks let them go")
		}
		if err := s.ess[2].Complete(t.Context(), "ash-2", actions[1].Token, false); err != nil {
			t.Fatal(err)
		}
		for n := range 3 {
			if e := s.gone(n); e.Text != ByWord || s.state(n) != "" {
				t.Errorf("%+v", e)
			}
		}
		if err := s.ess[1].Complete(t.Context(), "ash-2", actions[1].Token, false); !errors.Is(err, alibaba.ErrOver) {
			t.Errorf("the second word: %v", err)
		}
		// OOS is told the same.
		if err := s.cloud.Complete("ash-2="+actions[1].Token, "CONTINUE"); err == nil {
			t.Error("a token that is over was taken")
		}
	}
}

func TestWaitsAndLimits(t *testing.T) {
	t.Parallel()
	s := newScaled(t, 2, CloudOptions{Beats: 3, Longest: time.Minute}, Hook{ID: "ash-1", Timeout: 5 * time.Second})
	if err := s.cloud.ScaleIn(s.id(0)); err != nil {
		t.Fatal(err)
	}
	a := s.waits(0)[0]
	beat := func(d time.Duration) error { return s.ess[0].Heartbeat(t.Context(), "ash-1", a.Token, d) }
	if err := beat(time.Hour); !errors.Is(err, alibaba.ErrLimit) || errors.Is(err, alibaba.ErrOften) {
		t.Errorf("longer than all of it: %v", err)
	}
	for range 3 {
		if err := beat(30 * time.Second); err != nil {
			t.Error(err)
		}
	}
	if err := beat(30 * time.Second); !errors.Is(err, alibaba.ErrOften) {
		t.Errorf("the fourth: %v", err)
	}
	if err := s.cloud.Complete(s.cloud.Members()[0].Tokens[0], "ROLLBACK"); err != nil || s.state(0) != "InService" {
		t.Errorf("rolled back: %v, %s", err, s.state(0))
	}
	// Who says nothing is taken when the hook's own time is over.
	begin := time.Now()
	if err := s.cloud.ScaleIn(s.id(1)); err != nil {
		t.Fatal(err)
	}
	if e := s.gone(1); e.Text != ByTime || e.Time.Sub(begin) < 5*time.Second {
		t.Errorf("%+v after %s", e, e.Time.Sub(begin))
	}
	for _, state := range []string{"Standby", "Protected", "InService"} {
		if err := s.cloud.Move(s.id(0), state); err != nil || s.state(0) != state {
			t.Errorf("%v, %s", err, s.state(0))
		}
	}
	s.cloud.Group("asg-1", Hook{ID: "ash-9", Launching: true, Default: "ABANDON"})
	if err := s.cloud.ScaleOut(s.id(0)); err != nil {
		t.Fatal(err)
	}
	a = s.waits(0)[0]
	if err := s.ess[0].Complete(t.Context(), a.Hook, a.Token, false); err != nil || s.state(0) != "InService" {
		t.Errorf("launched: %v, %s", err, s.state(0))
	}
}

// TestWorstDay is what a cloud can do to an agent all at once.
func TestWorstDay(t *testing.T) {
	t.Parallel()
	s := newScaled(t, 3, CloudOptions{Skew: time.Hour}, Hook{ID: "ash-1"})
	ids := []string{s.id(0), s.id(1), s.id(2)}
	if err := s.cloud.ScaleIn(ids...); err != nil {
		t.Fatal(err)
	}
	// The clock of the machine is an hour off.
	a := s.waits(0)[0]
	if strings.Count(s.log.String(), "clock of this machine is wrong") != 1 {
		t.Errorf("%s", s.log)
	}
	// A storm.
	if err := s.cloud.AddFault(Fault{Code: "Throttling.User", Times: 2}); err != nil {
		t.Fatal(err)
	}
	if err := s.ess[0].Heartbeat(t.Context(), a.Hook, a.Token, time.Hour); err != nil {
		t.Errorf("after a storm: %v", err)
	}
	// Credentials that end in the middle, and a session token with them.
	s.metas[0].ExpireCredentials()
	s.metas[0].ExpireTokens()
	if err := s.ess[0].Heartbeat(t.Context(), a.Hook, a.Token, time.Hour); err != nil {
		t.Errorf("with new credentials: %v", err)
	}
	// The role is taken away, and the credentials refused: nobody may, until it is back.
	s.metas[0].Update(func(i *Instance) { i.Role = "" })
	s.metas[0].ExpireCredentials()
	err := s.ess[0].Heartbeat(t.Context(), a.Hook, a.Token, time.Hour)
	if d, ok := errors.AsType[*alibaba.DeniedError](err); !ok || !d.NoRole {
		t.Errorf("without a role: %v", err)
	}
	s.metas[0].Update(func(i *Instance) { i.Role = "ams-node" })
	// Metadata that are switched off.
	if err := s.metas[0].AddFault(Fault{Status: http.StatusForbidden}); err != nil {
		t.Fatal(err)
	}
	if err := s.ess[0].Heartbeat(t.Context(), a.Hook, a.Token, time.Hour); !errors.Is(err, cloud.ErrForbidden) {
		t.Errorf("switched off: %v", err)
	}
	s.metas[0].ClearFaults()
	// A permission less.
	s.cloud.Deny("CompleteLifecycleAction")
	err = s.ess[0].Complete(t.Context(), a.Hook, a.Token, false)
	if d, ok := errors.AsType[*alibaba.DeniedError](err); !ok || d.Action != "ess:CompleteLifecycleAction" {
		t.Errorf("denied: %v", err)
	}
	s.cloud.Allow()
	// The word is heard, the answer is not: that it was done shows when it is said again.
	if err := s.cloud.AddFault(Fault{Path: "CompleteLifecycleAction", Deaf: true, Times: 1}); err != nil {
		t.Fatal(err)
	}
	if err := s.ess[0].Complete(t.Context(), a.Hook, a.Token, false); !errors.Is(err, alibaba.ErrOver) {
		t.Errorf("deaf: %v", err)
	}
	for n := range ids {
		s.gone(n)
	}
}

// What signs wrongly is refused.
func TestRefusals(t *testing.T) {
	t.Parallel()
	s := newScaled(t, 1, CloudOptions{})
	if s.state(0) != "InService" { // so that there are credentials
		t.Fatal(s.state(0))
	}
	k := s.metas[0].keys[0]
	for _, tt := range []struct {
		name, code string
		change     func(*http.Request)
		secret     string
	}{
		{"well", "", nil, k.secret},
		{"another secret", "SignatureDoesNotMatch", nil, "x"},
		{"another key", "InvalidAccessKeyId.NotFound", func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), k.id, "STS.x", 1))
		}, k.secret},
		{"a parameter more", "SignatureDoesNotMatch", func(r *http.Request) { r.URL.RawQuery += "&x=1" }, k.secret},
		{"another action", "SignatureDoesNotMatch", func(r *http.Request) { r.Header.Set("X-Acs-Action", "CompleteLifecycleAction") }, k.secret},
		{"another token", "InvalidSecurityToken.MismatchWithAccessKey", func(r *http.Request) { r.Header.Set("X-Acs-Security-Token", "x") }, k.secret},
		{"the same nonce", "SignatureNonceUsed", func(r *http.Request) { r.Header.Set("X-Acs-Signature-Nonce", "nonce-well") }, k.secret},
		{"not signed", "IncompleteSignature", func(r *http.Request) { r.Header.Set("X-Acs-New", "x") }, k.secret},
		{"no signature", "IncompleteSignature", func(r *http.Request) { r.Header.Del("Authorization") }, k.secret},
	} {
		r, err := http.NewRequest(http.MethodPost, s.cloud.Endpoint()+"/?InstanceIds.1="+s.id(0)+"&RegionId=cn-hangzhou", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		const hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
		for name, v := range map[string]string{
			"X-Acs-Action": "DescribeScalingInstances", "X-Acs-Version": essVersion, "X-Acs-Date": time.Now().UTC().Format("2006-01-02T15:04:05Z"),
			"X-Acs-Signature-Nonce": "nonce-" + tt.name, "X-Acs-Content-Sha256": hash, "X-Acs-Security-Token": k.token,
		} {
			r.Header.Set(name, v)
		}
		signed := []string{"host", "x-acs-action", "x-acs-content-sha256", "x-acs-date", "x-acs-security-token", "x-acs-signature-nonce", "x-acs-version"}
		if tt.name == "the same nonce" {
			tt.change(r)
		}
		r.Header.Set("Authorization", "ACS3-HMAC-SHA256 Credential="+k.id+",SignedHeaders="+strings.Join(signed, ";")+",Signature="+sign(tt.secret, canonical(r, signed, hash)))
		if tt.change != nil {
			tt.change(r)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		var doc struct{ Code, RequestId string }
		if err != nil || json.Unmarshal(b, &doc) != nil || doc.Code != tt.code || doc.RequestId == "" {
			t.Errorf("%s: %s, %v", tt.name, b, err)
		}
	}
}

// The control port does what it says.
func TestControl(t *testing.T) {
	t.Parallel()
	c, err := StartCloud(t.Context(), CloudOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	s, err := Start(t.Context(), Options{Control: "127.0.0.1:0", Cloud: c})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	do := func(method, path, body string) string {
		t.Helper()
		req, err := http.NewRequest(method, "http://"+s.ControlAddr()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Sprint(resp.StatusCode)
		}
		return string(b)
	}
	do("PUT", "/cloud/group?id=asg-1", `[{"id":"ash-1"}]`)
	if err := c.Attach("asg-1", "", s); err != nil {
		t.Fatal(err)
	}
	id := s.Instance().ID
	do("POST", "/cloud/scale-in?instance="+id, "")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := c.WaitFor(ctx, func(e Entry) bool { return e.What == State && e.Text == "Removing:Wait" }); err != nil {
		t.Fatal(err)
	}
	var members []Member
	if err := json.Unmarshal([]byte(do("GET", "/cloud/members", "")), &members); err != nil || len(members) != 1 || len(members[0].Tokens) != 1 {
		t.Fatalf("%+v, %v", members, err)
	}
	if out := do("POST", "/cloud/complete?token="+url.QueryEscape(members[0].Tokens[0]), ""); strings.TrimSpace(out) != "[]" {
		t.Errorf("%s", out)
	}
	do("POST", "/spot?in=5m", "")
	do("PUT", "/events", "[]")
	do("PATCH", "/instance", `{"role":""}`)
	if i := s.Instance(); i.TerminationTime.IsZero() || i.Events != "[]" || i.Role != "" {
		t.Errorf("%+v", i)
	}
	do("PUT", "/item?path=user-data", "amsagent-role=edge")
	do("DELETE", "/signals", "")
	if i := s.Instance(); !i.TerminationTime.IsZero() || i.Events != "" || i.Extra["user-data"] == "" {
		t.Errorf("%+v", i)
	}
	do("POST", "/fault?path=api/token&status=403", "")
	if diff := cmp.Diff([]Fault{{Path: "api/token", Status: 403}}, s.Faults()); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"/fault?statsu=403", "/fault?path=x", "/cloud/move?instance=i-x&state=Standby", "/cloud/scale-in", "/cloud/fault?code=A&hang=true"} {
		if out := do("POST", bad, ""); out != "400" {
			t.Errorf("%s: %s", bad, out)
		}
	}
}
