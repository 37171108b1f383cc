// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/tree"
)

func recordings(t *testing.T, file string) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("../../../shared/corpus/real/*/" + file)
	if err != nil || len(files) == 0 {
		t.Skip("recordings not present")
	}
	all := map[string][]byte{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
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
	if want := []string{"clusternode", "liveness", "an application"}; !slices.Equal(order, want) {
		t.Errorf("the order of the stand-in is %v, want %v", order, want)
	}

	for release, b := range recorded {
		var events []struct {
			What string
			Is   any
		}
		if err := json.Unmarshal(b, &events); err != nil {
			t.Fatal(err)
		}
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
		if diff := cmp.Diff(theirs, ours); diff != "" {
			t.Errorf("%s: the server (-) and the stand-in (+):\n%s", release, diff)
		}
		for _, app := range apps {
			if at[app] < at["liveness"] || at[app] < at["clusternode"] {
				t.Errorf("%s: %s served before liveness and the document: %v", release, app, at)
			}
		}
	}
}

// What the server says of itself has the same fields and the same kinds of values, so
// far as the stand-in has them; and it lets nobody ask without a token.
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
	if status != 200 {
		t.Fatalf("with a token: %d", status)
	}
	for release, b := range recorded {
		var theirs map[string]any
		if err := json.Unmarshal(b, &theirs); err != nil {
			t.Fatal(err)
		}
		for field, value := range ours {
			if got, want := fmt.Sprintf("%T", value), fmt.Sprintf("%T", theirs[field]); got != want {
				t.Errorf("%s: %s is %s, and in the stand-in %s", release, field, want, got)
			}
			if count, ok := value.(float64); ok && strings.HasPrefix(field, "local") && count != theirs[field] {
				t.Errorf("%s: an idle server says %s %v, the stand-in %v", release, field, theirs[field], count)
			}
		}
	}
}
