// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package amstable is one table of what an Ant Media Server of the Community Edition
// does in cluster mode, seen from outside. The stand-in (package fakeams) and the real
// server (package realams) are both held to it: what differs is a fault of the stand-in.
package amstable

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
)

// Server is the one that is looked at. It was never started as a node.
type Server struct {
	// Start makes it a node, or starts it again, and returns before it serves. Stop
	// ends it as SIGTERM does, Kill as SIGKILL; both return when it has ended.
	Start, Stop, Kill func(*testing.T)
	// Publish begins a stream; end ends it.
	Publish func(t *testing.T, app, stream string) (end func())
	// Settings is the text of an application's red5-web.properties.
	Settings func(t *testing.T, app string) []byte
	// Complete is [ams.Installation.Initialized] of an application of the server that was started then.
	Complete func(app string, started time.Time) bool
	// Client asks it at URL, and keeps no connection. Token is the agent's.
	Client *http.Client
	URL    func() string
	Token  string
	// Apps are its applications without the console; LiveApp is one of them.
	Apps []string
	// Old is a release before 2.16.2.
	Old bool
	// Address is the node's, and MongoHost what db.host is once it is a node.
	Address, MongoHost string
	// Mongo is the cluster's memory.
	Mongo *mongo.Client
}

// Hold holds a server to the table, line by line up to the first that fails.
func Hold(t *testing.T, s Server) {
	h := &held{Server: s, before: map[string][]byte{}}
	for _, app := range append([]string{console}, s.Apps...) {
		h.before[app] = s.Settings(t, app)
	}
	for _, line := range []struct {
		name string
		is   func(*testing.T)
	}{
		{"the first start", h.complete},
		{"the document", h.document},
		{"the applications' files are written anew, with Java's escapes", h.settings},
		{"answers without a token", h.answers},
		{"statistics with a token", h.statistics},
		{"a stream", h.stream},
		{"a stop with nobody on it waits for nothing and leaves the document", h.stops},
		{"the next start takes the document up, and keeps the settings", h.startsAgain},
		{"a kill leaves the document, and marks that the next start is told from", h.kills},
		{"liveness and the document come before the applications, which refuse until they serve", h.starts}, // the last: it may take their names
	} {
		if !t.Run(line.name, line.is) {
			return
		}
	}
}

const (
	console  = "root"
	javaDate = "#Mon Jan 02 15:04:05 MST 2006"
)

type held struct {
	Server
	before map[string][]byte // the settings
	id     string            // of the document
}

// get requests a path; status 0: no answer.
func (h *held) get(t *testing.T, path, token string) (status int, body []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.URL()+path, nil)
	must.OK(t, err)
	if token != "" {
		req.Header.Set("ProxyAuthorization", token)
	}
	resp, err := h.Client.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		return 0, nil
	}
	return resp.StatusCode, body
}

func (h *held) nodes() *mongo.Collection {
	return h.Mongo.Database("clusterdb").Collection("clusternode")
}

// one is the only document of the node.
func (h *held) one(t *testing.T) (doc bson.Raw) {
	t.Helper()
	found, err := h.nodes().Find(t.Context(), bson.M{})
	var docs []bson.Raw
	if err == nil {
		err = found.All(t.Context(), &docs)
	}
	if err != nil || len(docs) != 1 {
		t.Fatalf("the documents are %v, %v", docs, err)
	}
	return docs[0]
}

func (h *held) serves(t *testing.T) bool {
	t.Helper()
	for _, app := range h.Apps {
		if status, _ := h.get(t, "/"+app+"/rest/v2/version", ""); status != http.StatusOK {
			return false
		}
	}
	return true
}

// starts: no answer and 500 come at moments that differ from start to start.
func (h *held) starts(t *testing.T) {
	h.Stop(t)
	at := h.beat(t)
	h.Start(t)
	answers := map[string][]int{}
	var order []string
	const noToken = "without a token"
	first := func(what string) {
		if !slices.Contains(order, what) {
			order = append(order, what)
		}
	}
	ask := func(what, path, token string) int {
		status, _ := h.get(t, path, token)
		if seen := answers[what]; status != 0 && status != 500 && (len(seen) == 0 || seen[len(seen)-1] != status) {
			answers[what] = append(seen, status)
		}
		return status
	}
	must.Until(t, "all applications", func() bool {
		if ask("liveness", "/rest/v2/liveness", "") == http.StatusOK {
			first("liveness")
		}
		ask(statistics, statistics, h.Token)
		ask(noToken, statistics, "")
		if h.beat(t) > at {
			first("document")
		}
		all := true
		for _, app := range h.Apps {
			served := ask(app, "/"+app+"/rest/v2/version", "") == http.StatusOK
			if all = all && served; served {
				first("application")
			}
		}
		return all
	})
	if len(order) != 3 || order[2] != "application" {
		t.Errorf("the order is %v", order)
	}
	for what, got := range answers {
		want := []int{http.StatusForbidden, http.StatusOK}
		switch {
		case what == noToken:
			want = want[:1]
		case len(got) == 1 && (what == "liveness" || what == statistics):
			want = want[1:] // their 403 is short
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s answers %v, want %v", what, got, want)
		}
	}
}

var nodeID = regexp.MustCompile(`^[0-9a-f]{32}`)

func (h *held) document(t *testing.T) {
	// Of a server that has not read its settings yet, the test beans write none: the first may follow the applications.
	must.Until(t, "a document", func() bool {
		n, err := h.nodes().CountDocuments(t.Context(), bson.M{})
		return err == nil && n > 0
	})
	doc := h.one(t)
	for key, want := range map[string]bson.Type{
		"_id": bson.TypeString, "_t": bson.TypeString, "ip": bson.TypeString, "lastUpdateTime": bson.TypeInt64,
		"memory": bson.TypeString, "cpu": bson.TypeString,
	} {
		got := doc.Lookup(key).Type
		if load := key == "memory" || key == "cpu"; load && got == 0 {
			continue // the test beans have no figures of the load
		}
		if got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	if t.Failed() {
		return
	}
	h.id = doc.Lookup("_id").StringValue()
	if id, ok := strings.CutSuffix(h.id, h.Address); !ok || nodeID.FindString(id) != id {
		t.Errorf("the id is %s, of address %s", h.id, h.Address)
	}
	if ip, kind := doc.Lookup("ip").StringValue(), doc.Lookup("_t").StringValue(); ip != h.Address || kind != "ClusterNode" {
		t.Errorf("ip %s, _t %s", ip, kind)
	}
	at := h.beat(t)
	must.Until(t, "a beat", func() bool { return h.beat(t) > at })
}

// beat is the time of the last one.
func (h *held) beat(t *testing.T) int64 {
	t.Helper()
	return h.one(t).Lookup("lastUpdateTime").Int64()
}

func (h *held) settings(t *testing.T) {
	if now := h.Settings(t, console); !slices.Contains(strings.Split(string(now), "\n"), "db.host="+h.MongoHost) {
		t.Errorf("the console's file was rewritten, or is no node's:\n%s", now)
	}
	for _, app := range h.Apps {
		text := h.Settings(t, app)
		lines := strings.Split(string(text), "\n")
		if _, err := time.Parse(javaDate, lines[0]); err != nil {
			t.Errorf("%s: the first line: %v", app, err)
		}
		if want := "db.host=" + strings.ReplaceAll(h.MongoHost, ":", `\:`); !slices.Contains(lines, want) {
			t.Errorf("%s has no line %q:\n%s", app, want, text)
		}
		was, now := properties(t, h.before[app]), properties(t, text)
		for _, key := range was.Keys() {
			if _, ok := now.Get(key); !ok {
				t.Errorf("%s has no %s any more", app, key)
			}
		}
		if got, _ := now.Get("db.host"); got != h.MongoHost {
			t.Errorf("%s: db.host means %q, want %q", app, got, h.MongoHost)
		}
	}
}

func properties(t *testing.T, text []byte) *conf.Properties {
	t.Helper()
	p, err := conf.ParseProperties(text)
	must.OK(t, err)
	return p
}

func (h *held) answers(t *testing.T) {
	for path, want := range map[string]int{
		"/rest/v2/liveness": 200, "/LiveApp/rest/v2/version": 200, "/LiveApp/streams/nobody.m3u8": 404,
		statistics: 403,
	} {
		if got, body := h.get(t, path, ""); got != want {
			t.Errorf("%s answers %d, want %d: %s", path, got, want, body)
		}
	}
	for app, want := range map[string]bool{"LiveApp": true, "none": false} {
		path := "/" + app + "/rest/v2/broadcasts/nobody"
		if got, body := h.get(t, path, ""); got != http.StatusNotFound || strings.Contains(string(body), "nobody") == want {
			t.Errorf("%s answers %d: %s", path, got, body)
		}
	}
	playing, _ := h.get(t, "/none/streams/nobody.m3u8", "")
	if want := map[bool]int{true: 404, false: 500}[h.Old]; playing != want {
		t.Errorf("a player of an application that is not there gets %d, want %d", playing, want)
	}
	if got, _ := h.get(t, statistics, h.Token+"x"); got != http.StatusForbidden {
		t.Errorf("with a wrong token %s answers %d", statistics, got)
	}
	var live struct{ Host, Status string }
	if _, body := h.get(t, "/rest/v2/liveness", ""); json.Unmarshal(body, &live) != nil || live.Host == "" || live.Status != "ok" {
		t.Errorf("liveness is %s", body)
	}
	var version struct{ VersionName string }
	if _, body := h.get(t, "/LiveApp/rest/v2/version", ""); json.Unmarshal(body, &version) != nil || !strings.Contains(version.VersionName, ".") {
		t.Errorf("the version is %s", body)
	}
}

const statistics = "/rest/v2/system-resources"

// figures are what the server says of itself.
func (h *held) figures(t *testing.T) map[string]any {
	t.Helper()
	status, body := h.get(t, statistics, h.Token)
	var told map[string]any
	if err := json.Unmarshal(body, &told); status != http.StatusOK || err != nil {
		t.Fatalf("%s answers %d: %s", statistics, status, body)
	}
	return told
}

// statistics: the Community Edition says -1 of WebRTC for each application.
func (h *held) statistics(t *testing.T) {
	told := h.figures(t)
	for key, want := range map[string]int{
		"localLiveStreams": 0, "localWebRTCLiveStreams": -len(h.Apps), "localWebRTCViewers": 0, "localHLSViewers": 0, "localDASHViewers": 0,
		"encoders-blocked": 0,
	} {
		if got := told[key]; got != float64(want) {
			t.Errorf("%s is %v, want %d", key, got, want)
		}
	}
	usage, ok := told["cpuUsage"].(map[string]any)
	if !ok {
		t.Fatalf("cpuUsage is %v", told["cpuUsage"])
	}
	for _, key := range []string{"systemCPULoad", "processCPULoad"} {
		if _, ok := usage[key].(float64); !ok {
			t.Errorf("%s is %v", key, usage[key])
		}
	}
}

// stream: its document is there while it is published, and says who takes it in.
func (h *held) stream(t *testing.T) {
	streams := h.Mongo.Database("liveapp").Collection("broadcast")
	broadcasting := bson.M{"streamId": "table", "status": "broadcasting"}
	end := h.Publish(t, "LiveApp", "table")
	must.Until(t, "a stream", func() bool { return h.figures(t)["localLiveStreams"] == 1.0 })
	var doc bson.Raw
	must.Until(t, "its document", func() bool {
		var err error
		doc, err = streams.FindOne(t.Context(), broadcasting).Raw()
		return err == nil
	})
	if got := doc.Lookup("originAdress").String(); got != fmt.Sprintf("%q", h.Address) {
		t.Errorf("the origin is %s, want %s", got, h.Address)
	}
	updated, ok := doc.Lookup("updateTime").Int64OK()
	if age := time.Since(time.UnixMilli(updated)); !ok || age.Abs() > 20*time.Second {
		t.Errorf("updateTime is %s", doc.Lookup("updateTime"))
	}
	must.Until(t, "an update of it", func() bool {
		now, err := streams.FindOne(t.Context(), broadcasting).Raw()
		return err == nil && now.Lookup("updateTime").AsInt64() > updated
	})
	end()
	must.Until(t, "its end", func() bool {
		n, err := streams.CountDocuments(t.Context(), broadcasting)
		return err == nil && n == 0 && h.figures(t)["localLiveStreams"] == 0.0
	})
}

// stopMost is far above the 2 to 3 s of a quiet machine, and below one wait for streams for each application.
const stopMost = 15 * time.Second

func (h *held) stops(t *testing.T) {
	begun := time.Now()
	h.Stop(t)
	took := time.Since(begun)
	t.Logf("it took %s to stop", took.Round(10*time.Millisecond))
	if took > stopMost {
		t.Errorf("it took %s to stop, want at most %s", took, stopMost)
	}
	h.checkEnded(t)
}

// checkEnded checks that the server does not answer and its document stays.
func (h *held) checkEnded(t *testing.T) {
	t.Helper()
	if status, _ := h.get(t, "/rest/v2/liveness", ""); status != 0 {
		t.Errorf("liveness answers %d", status)
	}
	if id := h.one(t).Lookup("_id").StringValue(); id != h.id {
		t.Errorf("the document is %s, was %s", id, h.id)
	}
}

func (h *held) startsAgain(t *testing.T) {
	at := h.beat(t)
	before := h.keys(t)
	h.complete(t)
	must.Until(t, "a beat", func() bool { return h.beat(t) > at })
	if id := h.one(t).Lookup("_id").StringValue(); id != h.id {
		t.Errorf("the document is %s, was %s", id, h.id)
	}
	must.NoDiff(t, "the settings before (-) and after (+) a start", h.keys(t), before)
}

// complete starts it, and asks no application anything before its context is complete: it has
// its name then. From 2.16.2 on, one that is asked before that may lose it, and for good.
func (h *held) complete(t *testing.T) {
	t.Helper()
	started := time.Now()
	for _, app := range h.Apps {
		if h.Complete(app, started) {
			t.Errorf("%s is complete before the start", app)
		}
	}
	h.Start(t)
	must.Until(t, "all applications to be complete", func() bool {
		return !slices.ContainsFunc(h.Apps, func(app string) bool { return !h.Complete(app, started) })
	})
	must.Until(t, "all applications", func() bool { return h.serves(t) })
	for _, app := range h.Apps {
		if got, _ := properties(t, h.Settings(t, app)).Get("appName"); got != app {
			t.Errorf("%s is named %q", app, got)
		}
	}
}

// keys are those of all settings, of the cluster's own with their values: the others may come from the copy in MongoDB
// at the next start.
func (h *held) keys(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, app := range append([]string{console}, h.Apps...) {
		p := properties(t, h.Settings(t, app))
		for _, key := range p.Keys() {
			if value, _ := p.Get(key); strings.HasPrefix(key, "db.") {
				key += "=" + value
			}
			all[app] = append(all[app], key)
		}
		slices.Sort(all[app])
	}
	return all
}

func (h *held) kills(t *testing.T) {
	h.Kill(t)
	h.checkEnded(t)
	h.complete(t)
}
