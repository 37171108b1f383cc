// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

// answer is what the API does with one call.
type answer struct {
	status int
	body   string
	date   time.Time // of the answer; zero: now
	reset  bool
}

func good(body string) answer {
	return answer{status: http.StatusOK, body: strings.Replace(body, "{", `{"RequestId":"473469C7-AA6F-4DC5-B3DB-A3DC0DE3C83E",`, 1)}
}

func done() answer { return answer{status: http.StatusOK, body: `{"RequestId":"473469C7"}`} }

func bad(status int, code, message string) answer {
	return answer{status: status, body: fmt.Sprintf(`{"RequestId":"473469C7","HostId":"ess.aliyuncs.com","Code":%q,"Message":%q}`, code, message)}
}

type apiCall struct {
	action, key, date, host string
	query                   url.Values
}

// apiServer answers calls one after the other; the last answer is for good.
type apiServer struct {
	*httptest.Server
	mu      sync.Mutex
	answers map[string][]answer // by action
	calls   []apiCall
}

func newAPIServer(t *testing.T, answers map[string][]answer) *apiServer {
	t.Helper()
	s := &apiServer{answers: answers}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// ServeHTTP implements http.Handler.
func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	auth := r.Header.Get("Authorization")
	_, rest, _ := strings.Cut(auth, "Credential=")
	key, _, _ := strings.Cut(rest, ",")
	action := r.Header.Get("X-Acs-Action")
	s.mu.Lock()
	s.calls = append(s.calls, apiCall{action, key, r.Header.Get("X-Acs-Date"), r.Host, r.URL.Query()})
	a := bad(http.StatusBadRequest, "InvalidAction.NotFound", "no answer planned for "+action)
	if list := s.answers[action]; len(list) > 0 {
		if a = list[0]; len(list) > 1 {
			s.answers[action] = list[1:]
		}
	}
	s.mu.Unlock()
	if !strings.HasPrefix(r.UserAgent(), cloud.UserAgent) {
		a = bad(http.StatusBadRequest, "NoUserAgent", "the request says that it is "+r.UserAgent())
	}
	if a.reset {
		panic(http.ErrAbortHandler)
	}
	if !a.date.IsZero() {
		w.Header().Set("Date", a.date.UTC().Format(http.TimeFormat))
	}
	w.WriteHeader(a.status)
	_, _ = w.Write([]byte(a.body))
}

func (s *apiServer) called(action string) []apiCall {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.calls), func(c apiCall) bool { return c.action != action })
}

// rolled is the metadata of an instance with a RAM role.
func rolled(t *testing.T) *metadatatest.Fake {
	t.Helper()
	f := metadatatest.NewFake(t, service(), bodies(t))
	f.Set(roles, "ams-node\n")
	f.Set(roles+"ams-node", credentialsUntil("1", time.Now().Add(6*time.Hour)))
	return f
}

func credentialsUntil(n string, until time.Time) string {
	return fmt.Sprintf(`{"Code":"Success","AccessKeyId":"STS.key%s","AccessKeySecret":"s3cret","SecurityToken":"token%s","Expiration":%q}`,
		n, n, until.UTC().Format(time.RFC3339))
}

func openESS(t *testing.T, f *metadatatest.Fake, s *apiServer) (*alibaba.ESS, *locked.Buffer) {
	t.Helper()
	log := &locked.Buffer{}
	p := open(t, f, func(o *cloud.Options) { o.Log = slog.New(slog.NewTextHandler(log, nil)) })
	e, err := p.ESS(alibaba.APIOptions{Endpoint: s.URL})
	must.OK(t, err)
	t.Cleanup(func() {
		if strings.Contains(log.String(), "s3cret") || strings.Contains(log.String(), "token1") {
			t.Errorf("the log holds a secret:\n%s", log.String())
		}
	})
	return e, log
}

// Both shapes that lists have had are read: wrapped, and plain.
func TestPendingActions(t *testing.T) {
	t.Parallel()
	const self = "i-bp13znx0m0me8cq0001"
	for name, shape := range map[string]func(list, inner string) string{
		"plain":   func(_, inner string) string { return inner },
		"wrapped": func(list, inner string) string { return fmt.Sprintf(`{%q:%s}`, list, inner) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ids := func(ids ...string) string {
				b, err := json.Marshal(ids)
				must.OK(t, err)
				return shape("InstanceId", string(b))
			}
			act := func(hook, token, ids string) string {
				return fmt.Sprintf(`{"LifecycleHookId":%q,"LifecycleActionToken":%q,"LifecycleActionStatus":"Pending","LifecycleActionResult":"ABANDON","InstanceIds":%s}`, hook, token, ids)
			}
			s := newAPIServer(t, map[string][]answer{
				"DescribeScalingInstances": {good(`{"ScalingInstances":` + shape("ScalingInstance", `[{"InstanceId":"i-other","ScalingGroupId":"asg-2","LifecycleState":"InService"},`+
					`{"InstanceId":"`+self+`","ScalingGroupId":"asg-1","LifecycleState":"Removing:Wait","New":{"x":1}}]`) + `,"TotalCount":2}`)},
				"DescribeScalingActivities": {good(`{"ScalingActivities":` + shape("ScalingActivity", `[{"ScalingActivityId":"asa-1","StatusCode":"InProgress"}]`) + `,"PageNumber":1}`)},
				"DescribeLifecycleActions": {
					good(`{"NextToken":"more","LifecycleActions":` + shape("LifecycleAction", "["+act("ash-2", "t-2", ids("i-c", self, "i-b"))+","+act("ash-9", "t-9", ids("i-b"))+"]") + `}`),
					good(`{"NextToken":"","LifecycleActions":` + shape("LifecycleAction", "["+act("ash-1", "t-1", ids(self))+"]") + `}`),
				},
			})
			e, _ := openESS(t, rolled(t), s)
			m, err := e.Membership(t.Context())
			if err != nil || m == nil || *m != (alibaba.Membership{Group: "asg-1", State: "Removing:Wait"}) {
				t.Fatalf("%+v, %v", m, err)
			}
			got, err := e.Pending(t.Context(), m.Group)
			want := []alibaba.Action{{Hook: "ash-1", Token: "t-1"}, {Hook: "ash-2", Token: "t-2", Others: []string{"i-b", "i-c"}}}
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("%v\n%s", err, diff)
			}
			for action, want := range map[string]url.Values{
				"DescribeScalingInstances":  {"RegionId": {"cn-hangzhou"}, "InstanceIds.1": {self}},
				"DescribeScalingActivities": {"RegionId": {"cn-hangzhou"}, "ScalingGroupId": {"asg-1"}, "StatusCode": {"InProgress"}, "PageNumber": {"1"}, "PageSize": {"50"}},
			} {
				if diff := cmp.Diff(want, s.called(action)[0].query); diff != "" {
					t.Error(diff)
				}
			}
			if calls := s.called("DescribeLifecycleActions"); len(calls) != 2 || calls[1].query.Get("NextToken") != "more" {
				t.Errorf("%+v", calls)
			}
		})
	}
}

func TestNoGroup(t *testing.T) {
	t.Parallel()
	for _, body := range []string{`{"ScalingInstances":[]}`, `{"ScalingInstances":{"ScalingInstance":[]}}`, `{"ScalingInstances":null}`, `{"ScalingInstances":{}}`} {
		s := newAPIServer(t, map[string][]answer{"DescribeScalingInstances": {good(body)}})
		e, _ := openESS(t, rolled(t), s)
		if m, err := e.Membership(t.Context()); m != nil || err != nil {
			t.Errorf("%s: %+v, %v", body, m, err)
		}
	}
}

func TestWords(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, map[string][]answer{"RecordLifecycleActionHeartbeat": {done()}, "CompleteLifecycleAction": {done()}})
	e, _ := openESS(t, rolled(t), s)
	must.OK(t, e.Heartbeat(t.Context(), "ash-1", "T-1", 40*time.Minute))
	must.OK(t, e.Complete(t.Context(), "ash-1", "T-1"))
	want := url.Values{"RegionId": {"cn-hangzhou"}, "lifecycleHookId": {"ash-1"}, "lifecycleActionToken": {"T-1"}, "heartbeatTimeout": {"2400"}}
	if diff := cmp.Diff(want, s.called("RecordLifecycleActionHeartbeat")[0].query); diff != "" {
		t.Error(diff)
	}
	want = url.Values{"RegionId": {"cn-hangzhou"}, "LifecycleHookId": {"ash-1"}, "LifecycleActionToken": {"T-1"}, "LifecycleActionResult": {"CONTINUE"}}
	if diff := cmp.Diff(want, s.called("CompleteLifecycleAction")[0].query); diff != "" {
		t.Error(diff)
	}
}

func TestHooks(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, map[string][]answer{"DescribeLifecycleHooks": {
		good(`{"LifecycleHooks":[{"LifecycleHookId":"ash-1","HeartbeatTimeout":600,"LifecycleTransition":"SCALE_IN"},` +
			`{"LifecycleHookId":"ash-2","HeartbeatTimeout":30,"LifecycleTransition":"SCALE_OUT","New":1},{"LifecycleHookId":"ash-3","HeartbeatTimeout":-1}]}`),
		good(`{"LifecycleHooks":{"LifecycleHook":[]}}`),
	}})
	e, _ := openESS(t, rolled(t), s)
	for _, want := range [][]alibaba.LifecycleHook{
		{{ID: "ash-1", Timeout: 10 * time.Minute}, {ID: "ash-2", Launching: true, Timeout: 30 * time.Second}, {ID: "ash-3"}}, nil,
	} {
		got, err := e.Hooks(t.Context(), "asg-1")
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	}
}

// What the API answers, and what it means.
func TestAPIErrors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		answers []answer
		is      error
		text    string
		calls   int
	}{
		{"over", []answer{bad(400, "LifecycleHookIdAndLifecycleActionToken.Invalid", "does not match")}, alibaba.ErrOver, "", 1},
		{"too often", []answer{bad(400, "LifecycleAction.RecordTimesExceeded", "x")}, alibaba.ErrOften, "", 1},
		{"too long", []answer{bad(400, "LifecycleAction.TimeExceeded", "x")}, alibaba.ErrLimit, "", 1},
		{"wrong parameter", []answer{bad(400, "InvalidParamter", "The specified value of parameter is invalid.")}, nil, "InvalidParamter", 1},
		{"a storm", []answer{bad(400, "Throttling.User", "slow down"), bad(429, "Throttling", "slow down"), done()}, nil, "", 3},
		{"a storm for good", []answer{bad(400, "Throttling.User", "slow down")}, alibaba.ErrThrottled, "slow down", 3},
		{"ill", []answer{bad(503, "ServiceUnavailable", "x"), {status: 502, body: "<html>"}, done()}, nil, "", 3},
		{"cut off", []answer{{reset: true}, done()}, nil, "", 2},
		{"a portal", []answer{{status: 200, body: "<html>log in</html>"}}, nil, "not one of the API", 3},
		{"nothing", []answer{{status: 200}}, nil, "not one of the API", 3},
		{"another's JSON", []answer{{status: 200, body: `{"ok":true}`}}, nil, "not one of the API", 3},
		{"a redirect", []answer{{status: 302, body: ""}}, nil, "not one of the API", 3},
		{"an error with a good status", []answer{{status: 200, body: `{"RequestId":"1","Code":"InternalError","Message":"x"}`}, done()}, nil, "", 2},
		{"wrong signature", []answer{bad(400, "SignatureDoesNotMatch", "x")}, nil, "SignatureDoesNotMatch", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newAPIServer(t, map[string][]answer{"CompleteLifecycleAction": tt.answers})
			e, _ := openESS(t, rolled(t), s)
			err := e.Complete(t.Context(), "ash-1", "T-1")
			switch {
			case tt.is == nil && tt.text == "":
				if err != nil {
					t.Error(err)
				}
			case err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.text):
				t.Errorf("%v, want %v %q", err, tt.is, tt.text)
			}
			if n := len(s.called("CompleteLifecycleAction")); n != tt.calls {
				t.Errorf("%d calls, want %d", n, tt.calls)
			}
		})
	}
}

func TestDenied(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"Forbidden.RAM", "Forbidden.Unauthorized", "NoPermission", "Forbidden"} {
		s := newAPIServer(t, map[string][]answer{"CompleteLifecycleAction": {bad(403, code, "User not authorized to operate on the specified resource")}})
		e, _ := openESS(t, rolled(t), s)
		err := e.Complete(t.Context(), "ash-1", "T-1")
		d, ok := errors.AsType[*alibaba.DeniedError](err)
		if !ok || d.Action != "ess:CompleteLifecycleAction" || d.NoRole || !strings.Contains(d.Reason, code) {
			t.Fatalf("%s: %#v, %v", code, d, err)
		}
		var policy struct {
			Version   string
			Statement []struct{ Action []string }
		}
		if err := json.Unmarshal([]byte(d.Policy), &policy); err != nil || policy.Version != "1" || !slices.Contains(policy.Statement[0].Action, d.Action) {
			t.Errorf("%v: %s", err, d.Policy)
		}
		if n := len(s.called("CompleteLifecycleAction")); n != 1 {
			t.Errorf("%d calls", n)
		}
	}
}

// Without a role nothing is asked of the API.
func TestNoRole(t *testing.T) {
	t.Parallel()
	for what, set := range map[string]func(*metadatatest.Fake){
		"404":           func(*metadatatest.Fake) {},
		"an empty list": func(f *metadatatest.Fake) { f.Set(roles, "\n") },
		"a role that was taken away": func(f *metadatatest.Fake) {
			f.Set(roles, "ams-node")
		},
	} {
		f := metadatatest.NewFake(t, service(), bodies(t))
		set(f)
		s := newAPIServer(t, nil)
		e, _ := openESS(t, f, s)
		_, err := e.Membership(t.Context())
		if d, ok := errors.AsType[*alibaba.DeniedError](err); !ok || !d.NoRole {
			t.Errorf("%s: %v", what, err)
		}
		if len(s.calls) != 0 {
			t.Errorf("%s: %+v", what, s.calls)
		}
	}
}

// Credentials are fetched once, anew before they end, and once where the API refuses them.
func TestCredentialsEnd(t *testing.T) {
	t.Parallel()
	f := rolled(t)
	s := newAPIServer(t, map[string][]answer{"CompleteLifecycleAction": {
		done(), done(),
		bad(400, "InvalidSecurityToken.Expired", "Specified SecurityToken is expired."), done(),
		bad(404, "InvalidAccessKeyId.NotFound", "x"), bad(404, "InvalidAccessKeyId.NotFound", "x"),
	}})
	e, log := openESS(t, f, s)
	for range 2 {
		must.OK(t, e.Complete(t.Context(), "ash-1", "T-1"))
	}
	if n := f.Count(roles + "ams-node"); n != 1 {
		t.Errorf("the credentials were fetched %d times", n)
	}
	f.Set(roles+"ams-node", credentialsUntil("2", time.Now().Add(6*time.Hour)))
	if err := e.Complete(t.Context(), "ash-1", "T-1"); err != nil {
		t.Errorf("after their end: %v", err)
	}
	// Refused when they are new: for another reason, which is told.
	if err := e.Complete(t.Context(), "ash-1", "T-1"); err == nil || !strings.Contains(err.Error(), "InvalidAccessKeyId") {
		t.Errorf("%v", err)
	}
	var keys []string
	for _, c := range s.called("CompleteLifecycleAction") {
		keys = append(keys, c.key)
	}
	if want := []string{"STS.key1", "STS.key1", "STS.key1", "STS.key2", "STS.key2", "STS.key2"}; !slices.Equal(keys, want) {
		t.Errorf("keys %v, want %v", keys, want)
	}
	if !strings.Contains(log.String(), "fetching new ones") {
		t.Error(log.String())
	}
}

// Credentials that end soon are renewed, and used on where the metadata do not answer just then.
func TestCredentialsRenewed(t *testing.T) {
	t.Parallel()
	f := rolled(t)
	f.Set(roles+"ams-node", credentialsUntil("1", time.Now().Add(2*time.Minute)))
	s := newAPIServer(t, map[string][]answer{"CompleteLifecycleAction": {done()}})
	e, _ := openESS(t, f, s)
	for range 3 {
		must.OK(t, e.Complete(t.Context(), "ash-1", "T-1"))
	}
	// The service gives out nothing better, and is not asked with each call for it.
	if n := f.Count(roles + "ams-node"); n != 1 {
		t.Errorf("fetched %d times", n)
	}
}

// TestClockSkew: a machine whose clock is off by an hour is told so once, and goes by the API's clock from then on.
func TestClockSkew(t *testing.T) {
	t.Parallel()
	ahead := time.Now().Add(time.Hour)
	wrong := bad(400, "InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.")
	wrong.date = ahead
	s := newAPIServer(t, map[string][]answer{"CompleteLifecycleAction": {wrong, done(), done()}})
	e, log := openESS(t, rolled(t), s)
	for range 2 {
		must.OK(t, e.Complete(t.Context(), "ash-1", "T-1"))
	}
	calls := s.called("CompleteLifecycleAction")
	for i, want := range []time.Time{time.Now(), ahead, ahead} {
		at, err := time.Parse(time.RFC3339, calls[i].date)
		if err != nil || at.Sub(want).Abs() > 10*time.Minute {
			t.Errorf("call %d is of %s, want %s", i, at, want)
		}
	}
	if n := strings.Count(log.String(), "the clock of this machine is wrong"); n != 1 {
		t.Errorf("said %d times:\n%s", n, log.String())
	}
	// One that refuses whatever the time is no loop.
	s = newAPIServer(t, map[string][]answer{"CompleteLifecycleAction": {wrong}})
	e, _ = openESS(t, rolled(t), s)
	if err := e.Complete(t.Context(), "ash-1", "T-1"); err == nil || !strings.Contains(err.Error(), "clock") || len(s.calls) != 2 {
		t.Errorf("%d calls: %v", len(s.calls), err)
	}
}

// The addresses of the API are tried until one takes a connection, which is kept.
func TestEndpointOfTheRegion(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var asked []string
	dial := func(_ context.Context, _, addr string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, addr)
		return nil, &net.DNSError{Err: "no such host", Name: addr, IsNotFound: true}
	}
	f := rolled(t)
	e, err := open(t, f, nil).ESS(alibaba.APIOptions{Transport: &http.Transport{DialContext: dial}})
	must.OK(t, err)
	_, err = e.Membership(t.Context())
	far, ok := errors.AsType[*alibaba.UnreachableError](err)
	if !ok || !strings.Contains(far.Hint(), "AMSAGENT_ALIBABA_ESS_ENDPOINT") {
		t.Errorf("%v", err)
	}
	if want := []string{"ess.cn-hangzhou.aliyuncs.com:443", "ess-vpc.cn-hangzhou.aliyuncs.com:443", "ess.aliyuncs.com:443"}; !slices.Equal(asked, want) {
		t.Errorf("dialled %v, want %v", asked, want)
	}
}

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Two calls begin at one host, and the connection of one fails. What the other one reaches is kept.
func TestEndpointOfTwoCalls(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, map[string][]answer{"CompleteLifecycleAction": {done()}})
	var asked atomic.Int32
	both, moved := make(chan struct{}), make(chan struct{})
	move := sync.OnceFunc(func() { close(moved) })
	e, err := open(t, rolled(t), nil).ESS(alibaba.APIOptions{Transport: roundTripFunc(func(r *http.Request) (*http.Response, error) {
		lost := &net.OpError{Op: "dial", Err: syscall.ENETUNREACH}
		if r.URL.Host != "ess.cn-hangzhou.aliyuncs.com" {
			move()
			return nil, lost
		}
		switch asked.Add(1) {
		case 1:
			<-both
			return nil, lost
		case 2:
			close(both)
			<-moved
		}
		r = r.Clone(r.Context())
		r.URL.Scheme, r.URL.Host = "http", s.Listener.Addr().String()
		return http.DefaultTransport.RoundTrip(r)
	})})
	must.OK(t, err)
	errs := make(chan error)
	for range 2 {
		go func() { errs <- e.Complete(t.Context(), "ash-1", "T-1") }()
	}
	if err := errors.Join(<-errs, <-errs, e.Complete(t.Context(), "ash-1", "T-1")); err != nil {
		t.Error(err)
	}
}

func TestBadEndpoint(t *testing.T) {
	t.Parallel()
	p := open(t, metadatatest.NewFake(t, service(), nil), nil)
	for _, e := range []string{"ess.aliyuncs.com", "http://u:p@x", "https://x/y"} {
		if _, err := p.ESS(alibaba.APIOptions{Endpoint: e}); err == nil || strings.Contains(err.Error(), "u:p") {
			t.Errorf("%s: %v", e, err)
		}
	}
}

// TestTagsOfTheAPI: with a role the tags of the instance count, and the group that ESS put on it; the user data fill in.
func TestTagsOfTheAPI(t *testing.T) {
	t.Parallel()
	tags := func(list string) answer {
		return good(`{"TagResources":{"TagResource":` + list + `},"NextToken":""}`)
	}
	const (
		row   = `{"ResourceId":"i-bp13znx0m0me8cq0001","ResourceType":"instance","TagKey":%q,"TagValue":%q}`
		group = "acs:autoscaling:scalingGroupId"
	)
	for _, tt := range []struct {
		name, userData string
		answer         answer
		want           cloud.TagSet
		missing        bool
		hint           string
	}{
		{
			"of both", "# amsagent-role=origin\n# amsagent-mongo=10.0.0.9\n",
			tags("[" + fmt.Sprintf(row, "amsagent-role", "edge") + "," + fmt.Sprintf(row, group, "asg-1") + "]"),
			cloud.TagSet{Tags: cloud.Tags{"amsagent-role": "edge", "amsagent-mongo": "10.0.0.9", group: "asg-1"}, Known: true, Group: "asg-1"},
			false, "",
		},
		{"none", "", tags("[]"), cloud.TagSet{Tags: cloud.Tags{}, Known: true}, false, ""},
		{"plain list", "", good(`{"TagResources":[` + fmt.Sprintf(row, "a", "b") + `]}`), cloud.TagSet{Tags: cloud.Tags{"a": "b"}, Known: true}, false, ""},
		{
			"denied", "amsagent-role=edge", bad(403, "NoPermission", "x"),
			cloud.TagSet{Tags: cloud.Tags{"amsagent-role": "edge"}},
			false, "ecs:ListTagResources",
		},
		{"ill", "amsagent-role=edge", bad(500, "InternalError", "x"), cloud.TagSet{Tags: cloud.Tags{"amsagent-role": "edge"}}, true, "could not be read"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := rolled(t)
			f.Set(latest+"user-data", tt.userData)
			s := newAPIServer(t, map[string][]answer{"ListTagResources": {tt.answer}})
			p := open(t, f, func(o *cloud.Options) { o.Endpoints[alibaba.EndpointECS] = s.URL })
			inst, err := p.Instance(t.Context())
			must.OK(t, err)
			got := cloud.TagSet{Tags: inst.Tags, Known: inst.TagsKnown, Group: inst.Group}
			if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b cloud.Tags) bool {
				return fmt.Sprint(map[string]string(a)) == fmt.Sprint(map[string]string(b))
			})); diff != "" {
				t.Error(diff)
			}
			if !strings.Contains(inst.TagsHint, tt.hint) || (inst.TagsHint == "") != tt.want.Known {
				t.Errorf("hint %q", inst.TagsHint)
			}
			if slices.Contains(inst.Missing, "tags") != tt.missing {
				t.Errorf("missing %v", inst.Missing)
			}
			calls := s.called("ListTagResources")
			if q := calls[0].query; q.Get("ResourceId.1") != inst.ID || q.Get("ResourceType") != "instance" || q.Get("RegionId") != "cn-hangzhou" {
				t.Errorf("%v", q)
			}
			// A refusal is said once, and not asked for with each reading.
			n := len(calls)
			if _, err := p.Instance(t.Context()); err != nil {
				t.Fatal(err)
			}
			if again := len(s.called("ListTagResources")) - n; (again == 0) != (tt.name == "denied") {
				t.Errorf("asked %d times more", again)
			}
		})
	}
}

// TestFieldReport07_Tags: a group tags its instances after they have started, so tags are read again.
func TestFieldReport07_Tags(t *testing.T) {
	t.Parallel()
	f := rolled(t)
	f.Unset(latest + "user-data")
	s := newAPIServer(t, map[string][]answer{"ListTagResources": {
		good(`{"TagResources":[]}`),
		good(`{"TagResources":[{"ResourceId":"i-bp13znx0m0me8cq0001","TagKey":"amsagent-role","TagValue":"edge"}]}`),
	}})
	p := open(t, f, func(o *cloud.Options) { o.Endpoints[alibaba.EndpointECS] = s.URL })
	for _, want := range []string{"", "edge"} {
		inst, err := p.Instance(t.Context())
		if err != nil || !inst.TagsKnown || inst.Tags["amsagent-role"] != want {
			t.Errorf("%+v, %v, want %q", inst, err, want)
		}
	}
}
