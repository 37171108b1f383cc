// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/tree"
)

const newest = "2.17.1" // what the stand-in is like

// recording is what the newest real server answered, or had written.
func recording(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile("../../../shared/corpus/real/" + newest + "/" + file)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("the tier corpus, without its folder ../shared/corpus (docs/testing.md)")
	}
	must.OK(t, err)
	return b
}

// Answers and MongoDB documents of the stand-in have a subset of the real server's fields, with the same types.
func TestRecordedShapes(t *testing.T) {
	t.Parallel()
	written := recording(t, "mongodb.json")
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
	for file, path := range map[string]string{
		"liveness.200":              "/rest/v2/liveness",
		"version.200":               "/LiveApp/rest/v2/version",
		"system-resources-idle.200": "/rest/v2/system-resources",
		"system-resources-1-publisher-3-viewers.200": "/rest/v2/system-resources",
	} {
		status, ours := request(t, "GET", "http://"+s.HTTPAddr()+path)
		must.Equal(t, path, status, http.StatusOK)
		if diff := fewer(shape([]byte(ours)), shape(recording(t, file))); diff != "" {
			t.Errorf("%s: %s", file, diff)
		}
	}
	documents, ok := shape(written).(map[string]any)
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
