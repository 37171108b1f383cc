// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadatatest

import (
	"encoding/json"
	"io/fs"
	"net/http"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// Load reads the recorded answers of one machine, one file each, as a [Fake] serves them: the good ones by path.
func Load(t *testing.T, fsys fs.FS) map[string]string {
	t.Helper()
	names, err := fs.Glob(fsys, "*.json")
	must.OK(t, err)
	bodies := map[string]string{}
	for _, name := range names {
		b, err := fs.ReadFile(fsys, name)
		must.OK(t, err)
		var ex struct {
			Request  struct{ Method, Path string }
			Response struct {
				Status int
				Body   string
			}
		}
		must.OK(t, json.Unmarshal(b, &ex))
		if ex.Request.Method == http.MethodGet && ex.Response.Status == http.StatusOK {
			bodies[ex.Request.Path] = ex.Response.Body
		}
	}
	if len(bodies) == 0 {
		t.Fatal("no exchanges")
	}
	return bodies
}
