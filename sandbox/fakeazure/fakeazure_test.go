// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeazure_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/metadata/azure"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/sandbox/fakeazure"
)

func start(t *testing.T, o fakeazure.Options) *fakeazure.Server {
	t.Helper()
	s, err := fakeazure.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// call makes one request. The header is given as key, value, ...
func call(t *testing.T, method, url, body string, header ...string) (int, string) {
	t.Helper()
	status, text, err := try(t.Context(), method, url, body, header...)
	if err != nil {
		t.Fatal(err)
	}
	return status, text
}

func try(ctx context.Context, method, url, body string, header ...string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

const (
	instancePath = "/metadata/instance?api-version=2021-12-13&extended=true"
	eventsPath   = "/metadata/scheduledevents?api-version=2020-07-01"
)

func TestRules(t *testing.T) {
	t.Parallel()
	s := start(t, fakeazure.Options{Unlimited: true})
	for _, tt := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
		text                     string
	}{
		{name: "an instance", path: instancePath, status: 200, text: `"vmId":"5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d0003"`},
		{name: "without the header", path: instancePath, header: []string{"Metadata", ""}, status: 400, text: "metadata header"},
		{name: "forwarded", path: instancePath, header: []string{"X-Forwarded-For", "10.0.0.1"}, status: 400, text: "forwarded"},
		{name: "without a version", path: "/metadata/instance", status: 400, text: `"newest-versions":["2025-04-07","2023-11-15","2023-07-01"]`},
		{name: "a version of tomorrow", path: "/metadata/instance?api-version=2031-01-01", status: 400, text: "newest-versions"},
		{name: "an old one", path: "/metadata/instance?api-version=2019-06-01", status: 200, text: `"tags":"amsagent-role:edge"`},
		{name: "an old one, extended", path: "/metadata/instance?api-version=2019-06-01&extended=true", status: 400},
		{name: "versions", path: "/metadata/versions", status: 200, text: `"apiVersions":["2017-04-02"`},
		{name: "no load balancer", path: "/metadata/loadbalancer?api-version=2020-10-01", status: 404, text: "No load balancer"},
		{name: "elsewhere", path: "/latest/meta-data/", status: 404},
		{name: "another method", method: "PUT", path: instancePath, status: 405},
		{name: "events", path: eventsPath, status: 200, text: `{"DocumentIncarnation":1,"Events":[]}`},
		{name: "events of a version without deletes", path: "/metadata/scheduledevents?api-version=2017-11-01", status: 200},
		{name: "no event", method: "POST", path: eventsPath, body: `{"StartRequests":[{"EventId":"x"}]}`, status: 400, text: "not known"},
		{name: "malformed", method: "POST", path: eventsPath, body: `{"StartRequests":{}}`, status: 400, text: "malformed"},
	} {
		if tt.method == "" {
			tt.method = http.MethodGet
		}
		if len(tt.header) == 0 || tt.header[0] != "Metadata" {
			tt.header = append(tt.header, "Metadata", "true")
		}
		status, text := call(t, tt.method, s.Endpoint()+tt.path, tt.body, tt.header...)
		if status != tt.status || !strings.Contains(text, tt.text) {
			t.Errorf("%s: %d %s", tt.name, status, text)
		}
	}
	if _, text := call(t, http.MethodGet, s.Endpoint()+"/metadata/instance?api-version=2019-06-01", "", "Metadata", "true"); strings.Contains(text, "tagsList") {
		t.Errorf("a list of tags before there was one: %s", text)
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()
	s := start(t, fakeazure.Options{})
	var got []int
	for range 7 {
		status, _ := call(t, http.MethodGet, s.Endpoint()+instancePath, "", "Metadata", "true")
		got = append(got, status)
	}
	if d := cmp.Diff([]int{200, 200, 200, 200, 200, 429, 429}, got); d != "" {
		t.Error(d)
	}
	if n := count(s.Set(), fakeazure.Throttled); n != 2 {
		t.Errorf("%d in the books", n)
	}
}

func count(s *fakeazure.Set, what string) (n int) {
	for _, e := range s.Books() {
		if e.What == what {
			n++
		}
	}
	return n
}

// TestBoot: calls are dropped, then 410, and the first call for events is slow.
func TestBoot(t *testing.T) {
	t.Parallel()
	s := start(t, fakeazure.Options{DropCalls: 2, BootTime: 3 * time.Second, FirstCall: 3 * time.Second, Unlimited: true})
	for range 2 {
		// net/http asks again by itself over another connection, where one was used before.
		if _, _, err := try(t.Context(), http.MethodPost, s.Endpoint()+eventsPath, "x"); err == nil {
			t.Error("a call is answered that was to be dropped")
		}
	}
	if status, _ := call(t, http.MethodGet, s.Endpoint()+instancePath, "", "Metadata", "true"); status != http.StatusGone {
		t.Errorf("%d", status)
	}
	p := provider(t, s)
	if m, err := p.Machine(t.Context()); err != nil || m.Name != "edge_3" {
		t.Errorf("%+v, %v", m, err)
	}
	for i := range 2 {
		began := time.Now()
		if _, err := p.Events(t.Context()); err != nil || (time.Since(began) > 2900*time.Millisecond) != (i == 0) {
			t.Errorf("call %d took %s, %v", i, time.Since(began), err)
		}
	}
}

func provider(t *testing.T, s *fakeazure.Server) *azure.Provider {
	t.Helper()
	p, err := azure.New(cloud.Options{Endpoints: map[string]string{"azure": s.Endpoint()}, RetryWait: 10 * time.Millisecond, Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestInstance(t *testing.T) {
	t.Parallel()
	vm := fakeazure.Sample()
	vm.Flexible, vm.Balancer = true, map[string]string{"10.1.0.4": "20.61.7.8", "10.1.0.5": "20.61.7.9"}
	s := start(t, fakeazure.Options{VM: &vm})
	inst, err := provider(t, s).Instance(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if inst.ID != vm.ID || inst.Name != "edge_3" || inst.Group != "edge" || inst.Address.String() != "10.1.0.4" || inst.PublicAddress.String() != "20.61.7.8" ||
		inst.Tags["amsagent-role"] != "edge" || inst.Zone != "1" || inst.LifeCycle != "Regular" || inst.Hostname != "edge000003" {
		t.Errorf("%+v", inst)
	}
	// An older service, which the provider finds by itself.
	old := start(t, fakeazure.Options{Versions: []string{"2017-12-01", "2019-06-01"}})
	if inst, err = provider(t, old).Instance(t.Context()); err != nil || inst.Tags["amsagent-role"] != "edge" || inst.Group != "edge" {
		t.Errorf("%+v, %v", inst, err)
	}
}

// pair is two machines of one set.
func pair(t *testing.T, o fakeazure.SetOptions) (set *fakeazure.Set, a, b *fakeazure.Server) {
	t.Helper()
	set = fakeazure.NewSet("edge", o)
	t.Cleanup(func() { _ = set.Close() })
	vms := [2]fakeazure.VM{fakeazure.Sample(), fakeazure.Sample()}
	vms[1].ID, vms[1].Name, vms[1].Zone = "5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d0004", "edge_4", "2"
	return set, start(t, fakeazure.Options{VM: &vms[0], Set: set}), start(t, fakeazure.Options{VM: &vms[1], Set: set})
}

func wait(t *testing.T, s *fakeazure.Set, what, vm string) fakeazure.Entry {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	e, err := s.WaitFor(ctx, func(e fakeazure.Entry) bool { return e.What == what && (vm == "" || e.VM == vm) })
	if err != nil {
		t.Fatalf("no %s of %s: %v\n%v", what, vm, err, s.Books())
	}
	return e
}

// TestAcknowledged: the word of one machine frees all that the event names.
func TestAcknowledged(t *testing.T) {
	t.Parallel()
	set, a, b := pair(t, fakeazure.SetOptions{})
	id, err := set.Announce(fakeazure.Event{Type: fakeazure.Terminate, VMs: []string{"edge_3", "edge_4"}, Lead: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	doc, err := provider(t, b).Events(t.Context())
	if err != nil || len(doc.Events) != 1 || doc.Events[0].ID != id || doc.Events[0].Started() || time.Until(doc.Events[0].NotBefore) < 59*time.Minute {
		t.Fatalf("%+v, %v", doc, err)
	}
	if err := provider(t, a).Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	wait(t, set, fakeazure.Started, "")
	again, err := provider(t, b).Events(t.Context())
	if err != nil || len(again.Events) != 1 || !again.Events[0].Started() || !again.Events[0].NotBefore.IsZero() {
		t.Errorf("%+v, %v", again, err)
	}
	if err := provider(t, b).Start(t.Context(), id); err != nil {
		t.Errorf("an approval of what is approved: %v", err)
	}
	for _, vm := range []string{"edge_3", "edge_4"} {
		if e := wait(t, set, fakeazure.Gone, vm); e.Late {
			t.Errorf("%+v", e)
		}
	}
	if len(set.Events()) != 0 {
		t.Errorf("%+v", set.Events())
	}
}

// TestDeletesGoTogether: of several deletes at one time none goes before all may, or before that time.
func TestDeletesGoTogether(t *testing.T) {
	t.Parallel()
	set, a, b := pair(t, fakeazure.SetOptions{ApproveDelay: time.Millisecond, StartedTime: time.Millisecond})
	at := time.Now().Add(time.Hour)
	announce := func(vm string, at time.Time) string {
		id, err := set.Announce(fakeazure.Event{Type: fakeazure.Terminate, VMs: []string{vm}, NotBefore: at})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	first, second := announce("edge_3", at), announce("edge_4", at)
	announce("edge_5", at.Add(time.Minute)) // nobody waits for that one
	if err := provider(t, a).Start(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	<-time.After(100 * time.Millisecond)
	if n := count(set, fakeazure.Gone); n != 0 {
		t.Errorf("%d are gone", n)
	}
	if err := provider(t, b).Start(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	wait(t, set, fakeazure.Gone, "edge_3")
	wait(t, set, fakeazure.Gone, "edge_4")
	if n := count(set, fakeazure.Gone); n != 2 {
		t.Errorf("%d are gone", n)
	}
}

// TestTime: what nobody acknowledges begins when its time has come; one that fails begins at once; one is cancelled.
func TestTime(t *testing.T) {
	t.Parallel()
	set, a, _ := pair(t, fakeazure.SetOptions{StartedTime: 50 * time.Millisecond})
	announced := time.Now()
	if _, err := set.Announce(fakeazure.Event{Type: fakeazure.Preempt, VMs: []string{"edge_3"}, Lead: 1500 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	reboot, err := set.Announce(fakeazure.Event{Type: fakeazure.Reboot, VMs: []string{"edge_4"}, Lead: time.Hour, Duration: 9 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	other, err := set.Announce(fakeazure.Event{Type: fakeazure.Redeploy, VMs: []string{"edge_4"}, Lead: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := set.Cancel(other); err != nil {
		t.Fatal(err)
	}
	if err := set.Begin(reboot); err != nil {
		t.Fatal(err)
	}
	wait(t, set, fakeazure.Over, "")
	e := wait(t, set, fakeazure.Gone, "edge_3")
	if took := e.Time.Sub(announced); !e.Late || took < 1500*time.Millisecond {
		t.Errorf("%+v after %s", e, took)
	}
	for what, err := range map[string]error{
		"begin": set.Begin("x"), "cancel": set.Cancel(other), "nobody": announceOne(set, fakeazure.Event{Type: fakeazure.Freeze}),
		"negative": announceOne(set, fakeazure.Event{Type: fakeazure.Freeze, VMs: []string{"a"}, Lead: -1}),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	_ = set.Close()
	if announceOne(set, fakeazure.Event{Type: fakeazure.Freeze, VMs: []string{"a"}}) == nil {
		t.Error("a set that is closed announces")
	}
	if doc, err := provider(t, a).Events(t.Context()); err != nil || len(doc.Events) != 0 {
		t.Errorf("%+v, %v", doc, err)
	}
}

func announceOne(s *fakeazure.Set, e fakeazure.Event) error {
	_, err := s.Announce(e)
	return err
}

// TestEnabling: a zone sees no events until a while after somebody there has asked.
func TestEnabling(t *testing.T) {
	t.Parallel()
	set, a, b := pair(t, fakeazure.SetOptions{EnableDelay: 400 * time.Millisecond})
	if err := announceOne(set, fakeazure.Event{Type: fakeazure.Terminate, VMs: []string{"edge_3"}, Lead: time.Hour}); err != nil {
		t.Fatal(err)
	}
	pa, pb := provider(t, a), provider(t, b)
	sees := func(p *azure.Provider) int {
		t.Helper()
		doc, err := p.Events(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(doc.Events)
	}
	if sees(pa) != 0 {
		t.Error("seen at once")
	}
	<-time.After(450 * time.Millisecond)
	if sees(pa) != 1 || sees(pb) != 0 {
		t.Error("one zone for the other")
	}
}

// TestWorstDay: whoever reads the documents of that day finds nothing that takes this machine away but what was
// cancelled again.
func TestWorstDay(t *testing.T) {
	t.Parallel()
	set, a, _ := pair(t, fakeazure.SetOptions{})
	p := provider(t, a)
	ctx, cancel := context.WithCancel(t.Context())
	var (
		mu   sync.Mutex
		said []string
	)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Watch(ctx, azure.WatchOptions{Interval: 600 * time.Millisecond}, func(s azure.Signal) {
			mu.Lock()
			defer mu.Unlock()
			if s.Event.Type != fakeazure.Freeze {
				said = append(said, fmt.Sprintf("%s %v", s.Event.Type, s.Gone))
			}
		})
	}()
	if err := set.WorstDay(t.Context(), "edge_3", 2500*time.Millisecond, "edge_4", "edge_5"); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
	if n := len(set.Events()); n != 0 {
		t.Errorf("%d events are left", n)
	}
	mu.Lock()
	defer mu.Unlock()
	// Two of an unheard-of type and one about a disk, and the two that were cancelled.
	for kind, n := range map[string]int{"Defragment": 2, "Terminate": 2, "Reboot": 1, "Preempt": 0} {
		begun, ended := 0, 0
		for _, s := range said {
			switch s {
			case kind + " false":
				begun++
			case kind + " true":
				ended++
			}
		}
		if begun != n || ended != n {
			t.Errorf("%s: %d began and %d ended, want %d\n%q", kind, begun, ended, n, said)
		}
	}
	if count(set, fakeazure.Throttled) != 0 {
		t.Error("asked too often")
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	s := start(t, fakeazure.Options{Unlimited: true})
	get := func() (int, string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		return try(ctx, http.MethodGet, s.Endpoint()+instancePath, "", "Metadata", "true")
	}
	for _, code := range []int{401, 403, 404, 410, 429, 500} {
		if err := s.AddFault(fakeazure.Fault{Path: "instance", Status: code, Times: 1}); err != nil {
			t.Fatal(err)
		}
		if got, _, err := get(); got != code || err != nil {
			t.Errorf("%d, %v, want %d", got, err, code)
		}
	}
	for name, f := range map[string]fakeazure.Fault{"reset": {Reset: true}, "truncate": {Truncate: true}, "hang": {Hang: true}} {
		if err := s.AddFault(f); err != nil {
			t.Fatal(err)
		}
		if _, _, err := get(); err == nil {
			t.Errorf("%s: no error", name)
		}
		s.ClearFaults()
	}
	if err := s.AddFault(fakeazure.Fault{Path: "/metadata/inst*", Huge: true, Times: 1}); err != nil {
		t.Fatal(err)
	}
	if _, text, err := get(); err != nil || len(text) < 2<<20 {
		t.Errorf("huge: %d bytes, %v", len(text), err)
	}
	if err := s.AddFault(fakeazure.Fault{Path: "scheduledevents", Status: 500}); err != nil {
		t.Fatal(err)
	}
	if status, _, err := get(); status != 200 || err != nil {
		t.Errorf("another path: %d, %v", status, err)
	}
	for _, bad := range []fakeazure.Fault{{}, {Hang: true, Reset: true}, {Status: 99}, {Status: 500, Method: "PATCH"}, {Delay: -1, Hang: true}} {
		if s.AddFault(bad) == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

func TestControl(t *testing.T) {
	t.Parallel()
	s := start(t, fakeazure.Options{Control: "127.0.0.1:0"})
	ask := func(want int, method, path, body string) string {
		t.Helper()
		status, text := call(t, method, "http://"+s.ControlAddr()+path, body)
		if status != want {
			t.Errorf("%s %s: %d %s", method, path, status, text)
		}
		return text
	}
	ask(200, "PATCH", "/vm", `{"zone":"3"}`)
	ask(400, "PATCH", "/vm", `{"zoen":"3"}`)
	if !strings.Contains(ask(200, "GET", "/vm", ""), `"zone": "3"`) {
		t.Error("the zone has not changed")
	}
	var events []fakeazure.Event
	if err := json.Unmarshal([]byte(ask(200, "POST", "/event?type=Terminate&lead=60000&id=e1&vms=edge_3,edge_4", "")), &events); err != nil || len(events) != 1 || !slices.Equal(events[0].VMs, []string{"edge_3", "edge_4"}) {
		t.Errorf("%+v, %v", events, err)
	}
	ask(200, "POST", "/event?type=Freeze&id=e2", "")
	ask(400, "POST", "/event?tpye=Freeze", "")
	ask(200, "POST", "/begin?id=e2", "")
	ask(400, "POST", "/begin?id=e9", "")
	ask(400, "POST", "/begin", "")
	ask(200, "DELETE", "/event?id=e1", "")
	ask(200, "POST", "/fault?path=instance&status=500&times=1", "")
	ask(400, "POST", "/fault?path=instance", "")
	if text := ask(200, "GET", "/fault", ""); !strings.Contains(text, "500") {
		t.Error(text)
	}
	ask(200, "DELETE", "/fault", "")
	ask(200, "POST", "/worst-day?step=10", "")
	ask(400, "POST", "/worst-day?step=long", "")
	wait(t, s.Set(), fakeazure.Cancelled, "")
	if text := ask(200, "GET", "/books", ""); !strings.Contains(text, "cancelled") {
		t.Error(text)
	}
	call(t, "GET", s.Endpoint()+instancePath, "", "Metadata", "true")
	if text := ask(200, "GET", "/requests", ""); !strings.Contains(text, "/metadata/instance") {
		t.Error(text)
	}
	s.Update(func(vm *fakeazure.VM) { vm.Name = "edge_9" })
	if s.VM().Name != "edge_9" {
		t.Error("the name has not changed")
	}
}
