// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

const (
	describeMembers         = "DescribeScalingInstances"
	describeScaling         = "DescribeScalingActivities"
	describeActions         = "DescribeLifecycleActions"
	describeHooks           = "DescribeLifecycleHooks"
	heartbeat               = "RecordLifecycleActionHeartbeat"
	complete                = "CompleteLifecycleAction"
	listTags                = "ListTagResources"
	over, tooLong, tooOften = "LifecycleHookIdAndLifecycleActionToken.Invalid", "LifecycleAction.TimeExceeded", "LifecycleAction.RecordTimesExceeded"
)

// answer is the answer of a service to one request.
type answer struct {
	status int
	body   string
	date   time.Time // of the answer; zero if it has no date
	err    error     // instead of an answer
}

func ok(body string) answer { return answer{status: http.StatusOK, body: body} }

func good(body string) answer { return ok(strings.Replace(body, "{", `{"RequestId":"473469C7",`, 1)) }

func done() answer { return ok(`{"RequestId":"473469C7"}`) }

func bad(status int, code string) answer {
	return answer{status: status, body: fmt.Sprintf(`{"RequestId":"473469C7","HostId":"ess.aliyuncs.com","Code":%q,"Message":"what it says"}`, code)}
}

func denied() answer { return bad(http.StatusForbidden, "Forbidden.RAM") }

func (a answer) respond(req *http.Request) (*http.Response, error) {
	if a.err != nil {
		return nil, a.err
	}
	resp := metadatatest.Answer(req, a.status, a.body)
	if !a.date.IsZero() {
		resp.Header.Set("Date", a.date.UTC().Format(http.TimeFormat))
	}
	return resp, nil
}

// apiCall is one request that reached an API.
type apiCall struct {
	action, key, host, date string
	query                   url.Values
}

// world is an ECS instance with a RAM role, in memory: its metadata service, and the APIs.
type world struct {
	t   *testing.T
	log locked.Buffer

	mu      sync.Mutex
	items   map[string]answer // of the metadata by path
	asked   map[string]int    // requests of the metadata by path
	token   int               // the session token in force
	plan    map[string][]answer
	calls   []apiCall
	beat    func(url.Values) answer // answers the heartbeats if set
	wrapped bool                    // lists come in two shapes: plain, and wrapped in an object

	*metadatatest.Watched
}

// bubble runs a test with a world and a clock of its own, which begins at midnight.
func bubble(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, items: map[string]answer{}, asked: map[string]int{}, plan: map[string][]answer{}}
		for path, body := range bodies(t) {
			w.items[path] = ok(body)
		}
		w.items[rolePath], w.items[rolePath+"ams-node"] = ok("ams-node\n"), credentialsFor("1", 48*time.Hour)
		test(t, w)
		if log := w.log.String(); strings.Contains(log, "s3cret") || strings.Contains(log, "token1") {
			t.Errorf("the log holds a secret:\n%s", log)
		}
	})
}

// row is a bubble as a subtest.
func row(t *testing.T, name string, test func(t *testing.T, w *world)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { bubble(t, test) })
}

func midnight() time.Time { return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) }

func credentialsFor(n string, life time.Duration) answer {
	return ok(fmt.Sprintf(`{"Code":"Success","AccessKeyId":"STS.key%s","AccessKeySecret":"s3cret","SecurityToken":"token%s","Expiration":%q}`,
		n, n, time.Now().Add(life).UTC().Format(time.RFC3339)))
}

func (w *world) open() *Provider {
	p, err := New(cloud.Options{Transport: metadatatest.RoundTrip(w.metadata), APITransport: metadatatest.RoundTrip(w.api), Log: slog.New(slog.NewTextHandler(&w.log, nil))})
	must.OK(w.t, err)
	return p
}

func (w *world) metadata(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	path := r.URL.Path
	w.asked[path]++
	a, found := w.items[path]
	switch {
	case path == tokenPath && found:
	case path == tokenPath && r.Method == http.MethodPut && r.Header.Get(ttlHeader) == "21600":
		w.token++
		a = ok(fmt.Sprintf("token-%d", w.token))
	case r.Header.Get(tokenHeader) != fmt.Sprintf("token-%d", w.token):
		a.status = http.StatusUnauthorized
	case !found:
		a.status = http.StatusNotFound
	}
	return a.respond(r)
}

// set changes an item of the metadata.
func (w *world) set(path string, a answer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.items[path] = a
}

func (w *world) api(r *http.Request) (*http.Response, error) {
	h := r.Header
	_, auth, _ := strings.Cut(h.Get("Authorization"), "Credential=")
	key, signed, _ := strings.Cut(auth, ",")
	c := apiCall{h.Get("X-Acs-Action"), key, r.URL.Host, h.Get("X-Acs-Date"), r.URL.Query()}
	version := "2022-02-22"
	if c.action == listTags {
		version = "2014-05-26"
	}
	if h.Get("X-Acs-Version") != version || !strings.HasPrefix(h.Get("User-Agent"), cloud.UserAgent) || !strings.Contains(signed, "x-acs-security-token") {
		w.t.Errorf("%s to %s with %v", c.action, r.URL, h)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, c)
	if c.action == heartbeat && w.beat != nil {
		return w.beat(c.query).respond(r)
	}
	planned := w.plan[c.action]
	if len(planned) == 0 {
		return bad(http.StatusBadRequest, "NoAnswerPlanned").respond(r)
	}
	if len(planned) > 1 { // the last one repeats
		w.plan[c.action] = planned[1:]
	}
	a := planned[0]
	if w.wrapped {
		a.body = strings.NewReplacer(":[", `:{"Member":[`, "]", "]}").Replace(a.body)
	}
	return a.respond(r)
}

// on sets the answers to an action.
func (w *world) on(action string, answers ...answer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.plan[action] = answers
}

// called returns the calls of an action so far.
func (w *world) called(action string) (found []apiCall) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.calls {
		if c.action == action {
			found = append(found, c)
		}
	}
	return found
}

// in sets the answers of ESS about the group: the state of the instance ("" if it is in no group), the ids of the hooks, and
// the tokens of the waiting actions, t-1 of ash-1 and so on.
func (w *world) in(state, hooks, tokens string) {
	var all, waits []string
	for _, id := range strings.Fields(hooks) {
		all = append(all, fmt.Sprintf(`{"LifecycleHookId":%q,%s}`, id, map[string]string{
			"ash-1": `"LifecycleHookName":"amsagent","LifecycleTransition":"SCALE_IN","HeartbeatTimeout":900`,
			"ash-2": `"LifecycleHookName":"logs","LifecycleTransition":"SCALE_IN","HeartbeatTimeout":-1`,
			"ash-3": `"LifecycleHookName":"up","LifecycleTransition":"SCALE_OUT","HeartbeatTimeout":300`,
		}[id]))
	}
	for _, token := range strings.Fields(tokens) {
		waits = append(waits, fmt.Sprintf(`{"LifecycleHookId":"ash%s","LifecycleActionToken":%q,"LifecycleActionStatus":"Pending","InstanceIds":["%s"]}`,
			token[1:], token, map[string]string{"t-1": self, "t-2": `i-c","` + self + `","i-b`, "t-3": self + `","i-b`, "t-9": "i-b"}[token]))
	}
	members := []string{`{"InstanceId":"i-other","ScalingGroupId":"asg-2","LifecycleState":"InService"}`}
	if state != "" {
		members = append(members, fmt.Sprintf(`{"InstanceId":%q,"ScalingGroupId":"asg-1","LifecycleState":%q,"New":1}`, self, state))
	}
	for action, items := range map[string][]string{
		describeMembers: members, describeHooks: all, describeActions: waits,
		describeScaling: {`{"ScalingActivityId":"asa-1","StatusCode":"InProgress"}`},
	} {
		field := strings.TrimPrefix(action, "Describe")
		w.on(action, good(fmt.Sprintf(`{%q:[%s],"New":{"x":1}}`, field, strings.Join(items, ","))))
	}
}
