// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws_test

import (
	"encoding/json"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/replay"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// The recorded answers in testdata decode as at the time of their recording, and each item is requested once.
func TestReplay(t *testing.T) {
	dirs, err := filepath.Glob("../../testdata/metadata/aws/*")
	if err != nil || len(dirs) < 5 {
		t.Fatalf("%d machines, %v", len(dirs), err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			f := replay.New(t, service().Protocol, recorded(t, os.DirFS(dir)))
			p, err := aws.New(cloud.Options{Transport: fakes.Transport{Handler: f}})
			must.OK(t, err)
			inst, err := p.Instance(t.Context())
			must.OK(t, err)
			var want cloud.Instance
			readJSON(t, filepath.Join(dir, "instance.json"), &want)
			must.NoDiff(t, "instance", jsonText(t, inst), jsonText(t, want))
			f.AskedOnce()

			var detection struct {
				DMI      map[string]string
				Provider string
			}
			readJSON(t, filepath.Join(dir, "detection.json"), &detection)
			root := t.TempDir()
			dmi := filepath.Join(root, "sys/class/dmi/id")
			must.OK(t, os.MkdirAll(dmi, 0o755))
			for name, v := range detection.DMI {
				must.OK(t, os.WriteFile(filepath.Join(dmi, name), []byte(v+"\n"), 0o600))
			}
			d, err := metadata.Detect(metadata.Options{Root: root})
			if err != nil || d.Provider != detection.Provider {
				t.Errorf("Detect() = %q, %v, want %q", d.Provider, err, detection.Provider)
			}
		})
	}
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	must.OK(t, err)
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func jsonText(t *testing.T, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", "  ")
	must.OK(t, err)
	return string(b)
}

// recorded reads the recorded answers of one machine, one file each, as a Fake serves them: the good ones by path.
func recorded(t *testing.T, fsys fs.FS) map[string]string {
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
