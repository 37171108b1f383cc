// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/tree"
)

func recordings(t *testing.T, file string) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("../../../shared/corpus/real/*/" + file)
	if err != nil || len(files) == 0 {
		t.Skip("the tier corpus, without its folder ../shared/corpus (docs/testing.md)")
	}
	all := map[string][]byte{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		must.OK(t, err)
		all[filepath.Base(filepath.Dir(f))] = b
	}
	return all
}

// phases are the answers of one thing over a start, without those that a moment more
// or less decides: none at first, and 500 between two others.
type phases map[string][]int

func (p phases) add(what string, answer int) {
	if answer == 0 || answer == 500 {
		return
	}
	if seen := p[what]; len(seen) == 0 || seen[len(seen)-1] != answer {
		p[what] = append(seen, answer)
	}
}

// The start of a real server, as it was recorded from outside, and that of the
// stand-in give the same answers in the same order, and liveness and the document
// come before the first application serves.
func TestRecordedStart(t *testing.T) {
	t.Parallel()
	recorded := recordings(t, "start.json")
	m := mongo1(t, mongod.Options{})
	tr := install(t, tree.Options{Apps: []string{"WebRTCApp", "live"}})
	join(t, tr, m.Addr())
	o := quick(tr)
	o.AppStart = 200 * time.Millisecond
	s := start(t, o)
	apps := []string{"LiveApp", "WebRTCApp", "live"}
	ours, order := phases{}, []string{}
	nodes := database(t, m.URI(), "clusterdb").Collection("clusternode")
	first := func(what string) {
		if !slices.Contains(order, what) {
			order = append(order, what)
		}
	}
	for serving := false; !serving; {
		select {
		case <-s.Serving():
			serving = true // one more round
		default:
		}
		live := liveness(t, s)
		ours.add("liveness", live)
		if live == 200 {
			first("liveness")
		}
		if n, err := nodes.CountDocuments(t.Context(), bson.M{}); err == nil && n > 0 {
			first("clusternode")
		}
		for _, app := range apps {
			status, _ := request(t, "GET", "http://"+s.HTTPAddr()+"/"+app+"/rest/v2/version")
			ours.add(app, status)
			if status == 200 {
				first("an application")
			}
		}
	}
	slices.Sort(order[:min(2, len(order))])
	must.NoDiff(t, "the order of the stand-in", order, []string{"clusternode", "liveness", "an application"})

	for release, b := range recorded {
		var events []struct {
			What string
			Is   any
		}
		must.OK(t, json.Unmarshal(b, &events))
		theirs, at := phases{}, map[string]int{}
		for i, e := range events {
			n, ok := e.Is.(float64)
			if !ok {
				continue
			}
			if e.What == "liveness" || slices.Contains(apps, e.What) {
				theirs.add(e.What, int(n))
			}
			if n == 200 || e.What == "clusternode" && n == 1 {
				at[e.What] = i
			}
		}
		must.NoDiff(t, release+": the server (-) and the stand-in (+)", ours, theirs)
		for _, app := range apps {
			if at[app] < at["liveness"] || at[app] < at["clusternode"] {
				t.Errorf("%s: %s served before liveness and the document: %v", release, app, at)
			}
		}
	}
}

// The statistics of the stand-in have fields and types of the real server's, and need a token.
func TestRecordedStatistics(t *testing.T) {
	t.Parallel()
	recorded := recordings(t, "system-resources-idle.200")
	tr := install(t, tree.Options{Apps: []string{"live"}})
	if len(tr.Apps) != 4 {
		t.Fatalf("the tree has %v; the recorded servers had three applications and the console", tr.Apps)
	}
	secured(t, tr)
	o := quick(tr)
	o.Community = true
	s := start(t, o)
	await(t, "ready", s.Ready())
	if status, _ := ask(t, s, ""); status != 403 {
		t.Errorf("without a token: %d, and a real server says 403", status)
	}
	status, ours := ask(t, s, token(serverSecret, "{}"))
	must.Equal(t, "status with a token", status, 200)
	for release, b := range recorded {
		var theirs map[string]any
		must.OK(t, json.Unmarshal(b, &theirs))
		for field, value := range ours {
			must.Equal(t, fmt.Sprintf("%s: type of %s in the stand-in, beside the server's", release, field), fmt.Sprintf("%T", value), fmt.Sprintf("%T", theirs[field]))
			if count, ok := value.(float64); ok && strings.HasPrefix(field, "local") && count != theirs[field] {
				t.Errorf("%s: an idle server says %s %v, the stand-in %v", release, field, theirs[field], count)
			}
		}
	}
}

// Answers and MongoDB documents of the stand-in have a subset of the real server's fields, with the same types.
func TestRecordedShapes(t *testing.T) {
	t.Parallel()
	const newest = "2.17.1" // what the stand-in is like
	recordings(t, "mongodb.json")
	m := mongo1(t, mongod.Options{})
	tr := install(t, tree.Options{Apps: []string{"WebRTCApp", "live"}})
	secured(t, tr)
	join(t, tr, m.Addr())
	o := quick(tr)
	o.Control = "127.0.0.1:0"
	s := start(t, o)
	<-s.Serving()
	for _, path := range []string{"/stream?app=LiveApp&id=stream1", "/viewers?app=LiveApp&stream=stream1&kind=hls&n=3"} {
		if status, body := request(t, "POST", "http://"+s.ControlAddr()+path); status != 200 {
			t.Fatalf("%s: %d %s", path, status, body)
		}
	}
	shape := func(text []byte) any {
		var v any
		if err := json.Unmarshal(text, &v); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		return v
	}
	answer := func(path string) func() any {
		return func() any {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.HTTPAddr()+path, nil)
			must.OK(t, err)
			req.Header.Set("ProxyAuthorization", token(serverSecret, "{}"))
			resp, err := http.DefaultClient.Do(req)
			must.OK(t, err)
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("%s: %d, %v: %s", path, resp.StatusCode, err, body)
			}
			return shape(body)
		}
	}
	for file, ours := range map[string]func() any{
		"liveness.200":              answer("/rest/v2/liveness"),
		"version.200":               answer("/LiveApp/rest/v2/version"),
		"system-resources-idle.200": answer("/rest/v2/system-resources"),
		"system-resources-1-publisher-3-viewers.200": answer("/rest/v2/system-resources"),
	} {
		if diff := fewer(ours(), shape(recordings(t, file)[newest])); diff != "" {
			t.Errorf("%s: %s", file, diff)
		}
	}
	documents, ok := shape(recordings(t, "mongodb.json")[newest]).(map[string]any)
	if !ok {
		t.Fatal("mongodb.json holds no documents")
	}
	// Settings in MongoDB are the beans' work, which the stand-in leaves out.
	delete(documents, "clusterdb.AppSettings")
	for name, recorded := range documents {
		base, collection, _ := strings.Cut(name, ".")
		doc, err := database(t, m.URI(), base).Collection(collection).FindOne(t.Context(), bson.M{}).Raw()
		if err != nil {
			t.Errorf("the stand-in writes no %s: %v", name, err)
			continue
		}
		text, err := bson.MarshalExtJSON(doc, false, false)
		must.OK(t, err)
		if diff := fewer([]any{shape(text)}, recorded); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// fewer says where a value has what another one does not have, or has as another kind.
func fewer(ours, theirs any) string {
	switch a := ours.(type) {
	case map[string]any:
		b, ok := theirs.(map[string]any)
		if !ok {
			return fmt.Sprintf("an object, and %T", theirs)
		}
		for _, key := range slices.Sorted(maps.Keys(a)) {
			value, ok := b[key]
			if !ok {
				return key + ": the server has none"
			}
			if diff := fewer(a[key], value); diff != "" {
				return key + ": " + diff
			}
		}
	case []any:
		b, ok := theirs.([]any)
		if !ok {
			return fmt.Sprintf("a list, and %T", theirs)
		}
		if len(a) > 0 && len(b) > 0 {
			return fewer(a[0], b[0])
		}
	default:
		if theirs != nil && fmt.Sprintf("%T", ours) != fmt.Sprintf("%T", theirs) {
			return fmt.Sprintf("%T, and %T", ours, theirs)
		}
	}
	return ""
}
