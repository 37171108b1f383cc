// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakegcp

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/metadata"
)

func start(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

type got struct {
	status int
	body   string
	header http.Header
	took   time.Duration
}

// get asks as a machine does.
func get(t *testing.T, s *Server, path string, header ...string) (got, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint()+base+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(flavorHeader, flavor)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	began := time.Now()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := c.Do(req)
	if err != nil {
		return got{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return got{resp.StatusCode, string(b), resp.Header, time.Since(began)}, err
}

func must(t *testing.T, s *Server, path string, header ...string) got {
	t.Helper()
	g, err := get(t, s, path, header...)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestProtocol(t *testing.T) {
	s := start(t, Options{})
	for name, c := range map[string]struct {
		path, header, value string
		status              int
	}{
		"item":             {"instance/id", "", "", 200},
		"no flavor":        {"instance/id", flavorHeader, "", 403},
		"another flavor":   {"instance/id", flavorHeader, "Amazon", 403},
		"forwarded":        {"instance/id", "X-Forwarded-For", "10.0.0.1", 403},
		"no such item":     {"instance/nothing", "", "", 404},
		"folder":           {"instance/?recursive=true&alt=json", "", "", 200},
		"without a slash":  {"instance?recursive=true", "", "", 301},
		"not recursive":    {"instance/", "", "", 501},
		"no maintenance":   {"instance/upcoming-maintenance?alt=json", "", "", 404},
		"shutdown details": {"instance/shutdown-details/?recursive=true&alt=json", "", "", 200},
	} {
		var h []string
		if c.header != "" {
			h = []string{c.header, c.value}
		}
		g := must(t, s, c.path, h...)
		if g.status != c.status || g.header.Get(flavorHeader) != flavor {
			t.Errorf("%s: %d %s", name, g.status, g.header)
		}
		if (g.status == 200) != (g.header.Get("ETag") != "") {
			t.Errorf("%s: tag %q", name, g.header.Get("ETag"))
		}
	}
	if g := must(t, s, "instance/id"); g.body != Sample().ID {
		t.Errorf("id %q", g.body)
	}
	var doc struct {
		ID json.Number `json:"id"`
	}
	if err := json.Unmarshal([]byte(must(t, s, "instance/?recursive=true&alt=json").body), &doc); err != nil || doc.ID.String() != Sample().ID {
		t.Errorf("%v, %v", doc, err)
	}
}

// The agent's own provider understands it.
func TestProvider(t *testing.T) {
	i := Sample()
	i.NICs[0].IPv6s = []string{"2001:db8::7"}
	i.ProjectAttributes = map[string]string{"amsagent-mongo": "10.0.0.9", "amsagent-role": "origin"}
	s := start(t, Options{Instance: &i})
	p, err := metadata.Open("gcp", metadata.Options{Endpoints: map[string]string{"gcp": s.Endpoint()}})
	if err != nil {
		t.Fatal(err)
	}
	inst, err := p.Instance(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if inst.ID != i.ID || inst.Name != i.Name || inst.Group != "edge-mig" || inst.Address != netip.MustParseAddr("10.132.0.5") ||
		inst.LifeCycle != "spot" || inst.AccountID != "acme-video" || inst.IPv6 != netip.MustParseAddr("2001:db8::7") || len(inst.Missing) > 0 {
		t.Errorf("%+v", inst)
	}
	if inst.Tags["amsagent-role"] != "edge" || inst.Tags["amsagent-mongo"] != "10.0.0.9" {
		t.Errorf("%v", inst.Tags)
	}
	if n := len(s.Requests()); n != 2 {
		t.Errorf("%d requests", n)
	}
}

// onceAsked does something when one more request has come in.
func onceAsked(s *Server, do func()) {
	n := len(s.Requests())
	go func() {
		for len(s.Requests()) == n {
			<-time.After(time.Millisecond)
		}
		do()
	}()
}

func TestLongPoll(t *testing.T) {
	s := start(t, Options{})
	tag := must(t, s, "instance/preempted").header.Get("ETag")
	poll := "instance/preempted?wait_for_change=true&last_etag=" + tag + "&timeout_sec="
	if g := must(t, s, poll+"1"); g.body != "FALSE" || g.took < 900*time.Millisecond || g.header.Get("ETag") != tag {
		t.Errorf("unchanged: %+v", g)
	}
	onceAsked(s, func() {
		s.Update(func(i *Instance) { i.MachineType = "n2-standard-8" }) // not what is asked for
		<-time.After(200 * time.Millisecond)
		s.Announce(true)
	})
	if g := must(t, s, poll+"600"); g.body != "TRUE" || g.header.Get("ETag") == tag {
		t.Errorf("changed: %+v", g)
	}
	if g := must(t, s, poll+"600"); g.body != "TRUE" {
		t.Errorf("an older tag: %+v", g)
	}
	if g := must(t, s, "instance/nothing?wait_for_change=true&timeout_sec=600"); g.status != 404 {
		t.Errorf("what is not there: %+v", g)
	}
}

func TestFaults(t *testing.T) {
	s := start(t, Options{})
	for _, f := range []Fault{{}, {Status: 99}, {Status: 500, Hang: true}, {Delay: -1}, {Reset: true, Times: -1}} {
		if s.AddFault(f) == nil {
			t.Errorf("taken: %+v", f)
		}
	}
	ask := func(f Fault) (got, error) {
		t.Helper()
		s.ClearFaults()
		if err := s.AddFault(f); err != nil {
			t.Fatal(err)
		}
		return get(t, s, "instance/name")
	}
	if g, err := ask(Fault{Status: 503, Times: 1}); err != nil || g.status != 503 {
		t.Errorf("%+v, %v", g, err)
	}
	if g := must(t, s, "instance/name"); g.status != 200 {
		t.Errorf("after it was over: %+v", g)
	}
	if g, err := ask(Fault{Path: "instance/id", Status: 503}); err != nil || g.status != 200 {
		t.Errorf("another path: %+v, %v", g, err)
	}
	if g, err := ask(Fault{Held: true, Status: 503}); err != nil || g.status != 200 {
		t.Errorf("no poll: %+v, %v", g, err)
	}
	if _, err := ask(Fault{Reset: true}); err == nil {
		t.Error("a reset is an answer")
	}
	if g, err := ask(Fault{Truncate: true}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%+v, %v", g, err)
	}
	if g, err := ask(Fault{Huge: true}); err != nil || len(g.body) < 2<<20 {
		t.Errorf("%d bytes, %v", len(g.body), err)
	}
	if g, err := ask(Fault{NoFlavor: true}); err != nil || g.header.Get(flavorHeader) != "" {
		t.Errorf("%+v, %v", g, err)
	}
	if g, err := ask(Fault{NoTag: true}); err != nil || g.header.Get("ETag") != "" {
		t.Errorf("%+v, %v", g, err)
	}
	if g, err := ask(Fault{Delay: 300 * time.Millisecond}); err != nil || g.took < 300*time.Millisecond {
		t.Errorf("%+v, %v", g, err)
	}
	s.ClearFaults()
	if err := s.AddFault(Fault{Held: true, Instant: true}); err != nil {
		t.Fatal(err)
	}
	tag := must(t, s, "instance/preempted").header.Get("ETag")
	if g := must(t, s, "instance/preempted?wait_for_change=true&timeout_sec=600&last_etag="+tag); g.body != "FALSE" {
		t.Errorf("at once: %+v", g)
	}
	s.ClearFaults()
	if err := s.AddFault(Fault{Hang: true, Times: 1}); err != nil {
		t.Fatal(err)
	}
	go func() {
		for len(s.Faults()) > 0 { // till it has struck
			<-time.After(time.Millisecond)
		}
		s.ClearFaults()
	}()
	if g, err := get(t, s, "instance/name"); err == nil {
		t.Errorf("it was to hang: %+v", g)
	}
}

func TestVanish(t *testing.T) {
	s := start(t, Options{})
	tag := must(t, s, "instance/preempted").header.Get("ETag")
	if err := s.Vanish(500 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(time.Minute); ; {
		if _, err := get(t, s, "instance/name"); err == nil {
			break
		} else if time.Now().After(limit) {
			t.Fatal(err)
		}
		<-time.After(20 * time.Millisecond)
	}
	onceAsked(s, func() { _ = s.Vanish(time.Hour) })
	if g, err := get(t, s, "instance/preempted?wait_for_change=true&timeout_sec=600&last_etag="+tag); err == nil {
		t.Errorf("a poll outlives the service: %+v", g)
	}
	if g, err := get(t, s, "instance/name"); err == nil {
		t.Errorf("it is there: %+v", g)
	}
	if s.Vanish(time.Hour) == nil {
		t.Error("it vanishes twice")
	}
}

func TestStories(t *testing.T) {
	wait := func(s *Server, what string) Entry {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		e, err := s.WaitFor(ctx, func(e Entry) bool { return e.What == what })
		if err != nil {
			t.Errorf("%v: %+v", err, s.Books())
		}
		return e
	}
	whats := func(s *Server) (out []string) {
		for _, e := range s.Books() {
			out = append(out, e.What)
		}
		return out
	}
	for name, c := range map[string]struct {
		do    func(*Server)
		books []string
		late  bool
		soft  int
		hard  int
	}{
		"preempted": {func(s *Server) { s.Preempt(300 * time.Millisecond) }, []string{Notice, SoftOff, Gone}, true, 1, 1},
		"preempted, off in time": {func(s *Server) {
			s.Preempt(10 * time.Second)
			s.Off()
			s.Off()
		}, []string{Notice, SoftOff, Gone}, false, 1, 0},
		"scale-in": {func(s *Server) { s.ScaleIn(300 * time.Millisecond) }, []string{SoftOff, Gone}, true, 1, 1},
		"graceful shutdown": {func(s *Server) {
			s.Stop(200*time.Millisecond, "DELETED")
			wait(s, SoftOff)
			s.Off()
		}, []string{Notice, SoftOff, Gone}, false, 1, 0},
		"taken back, and then": {func(s *Server) {
			s.Stop(2*time.Second, "DELETED")
			s.Unstop()
			<-time.After(2200 * time.Millisecond)
			s.Off() // nothing is under way
			s.ScaleIn(100 * time.Millisecond)
		}, []string{Notice, TakenBack, SoftOff, Gone}, true, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			soft, hard := make(chan struct{}, 8), make(chan struct{}, 8)
			s := start(t, Options{SoftOff: func() { soft <- struct{}{} }, HardOff: func() { hard <- struct{}{} }})
			c.do(s)
			e := wait(s, Gone)
			for limit := time.Now().Add(time.Minute); (len(soft) < c.soft || len(hard) < c.hard) && time.Now().Before(limit); {
				<-time.After(time.Millisecond)
			}
			<-time.After(100 * time.Millisecond) // in which nothing more comes
			if d := cmp.Diff(c.books, whats(s)); d != "" || e.Late != c.late {
				t.Errorf("late %v\n%s", e.Late, d)
			}
			if len(soft) != c.soft || len(hard) != c.hard {
				t.Errorf("pressed %d times, pulled %d times", len(soft), len(hard))
			}
		})
	}
}

func TestControl(t *testing.T) {
	s := start(t, Options{Control: "127.0.0.1:0"})
	call := func(method, path, body string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.ControlAddr()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		item, want         string // what is told after it
	}{
		{"GET", "/instance", "", 200, "", ""},
		{"PATCH", "/instance", `{"name":"edge-2"}`, 200, "instance/name", "edge-2"},
		{"PATCH", "/instance", `{"nome":"edge-2"}`, 400, "", ""},
		{"PUT", "/attribute?key=amsagent-role", "origin", 200, "instance/attributes/amsagent-role", "origin"},
		{"PUT", "/attribute?key=amsagent-mongo&project=true", "10.0.0.9", 200, "project/attributes/amsagent-mongo", "10.0.0.9"},
		{"PUT", "/attribute", "x", 400, "", ""},
		{"PUT", "/item?path=instance/new", "x", 200, "instance/new", "x"},
		{"PUT", "/maintenance", "TERMINATE_ON_HOST_MAINTENANCE", 200, "instance/maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"},
		{"PUT", "/upcoming", "NONE", 200, "instance/upcoming-maintenance", "NONE"},
		{"POST", "/stop?ms=60000&target=DELETED", "", 200, "instance/shutdown-details/stop-state", "PENDING_STOP"},
		{"DELETE", "/stop", "", 200, "instance/shutdown-details/stop-state", ""},
		{"POST", "/announce", "", 200, "instance/preempted", "TRUE"},
		{"POST", "/announce?preempted=false", "", 200, "instance/preempted", "FALSE"},
		{"POST", "/preempt?ms=60000", "", 200, "instance/preempted", "TRUE"},
		{"POST", "/off", "", 200, "", ""},
		{"POST", "/scale-in?ms=60000", "", 200, "", ""},
		{"POST", "/fault?path=instance/name&status=503&times=1", "", 200, "", ""},
		{"POST", "/fault?pth=instance/name&status=503", "", 400, "", ""},
		{"POST", "/fault?hang=true&reset=true", "", 400, "", ""},
		{"GET", "/fault", "", 200, "", ""},
		{"DELETE", "/fault", "", 200, "instance/name", "edge-2"},
		{"GET", "/books", "", 200, "", ""},
		{"GET", "/requests", "", 200, "", ""},
		{"POST", "/vanish?ms=1", "", 200, "", ""},
	} {
		if status := call(c.method, c.path, c.body); status != c.status {
			t.Errorf("%s %s: %d", c.method, c.path, status)
		}
		if c.item == "" {
			continue
		}
		if g := must(t, s, c.item); g.body != c.want {
			t.Errorf("after %s %s: %s is %q", c.method, c.path, c.item, g.body)
		}
	}
}
