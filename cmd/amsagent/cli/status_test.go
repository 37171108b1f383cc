// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/internal/must"
)

// TestStatusOfATree: a program on this machine's port is not the server of a tree below another root, which does not run.
func TestStatusOfATree(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("asked for %s", r.URL)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"host":"vm","status":"ok"}`)
	}))
	defer srv.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(srv.URL, "http://"), ":")
	root := doctorTree(t)
	conf := filepath.Join(root, "usr/local/antmedia/conf/red5.properties")
	b, err := os.ReadFile(conf)
	must.OK(t, err)
	text := strings.ReplaceAll(string(b), "http.port=5080", "http.port="+port)
	if text == string(b) {
		t.Fatal("the tree has another port")
	}
	must.OK(t, os.WriteFile(conf, []byte(text), 0o644))
	for _, service := range []string{"auto", "none", "systemd"} {
		code, stdout, stderr := run(t, nil, "status", "--root", root, "--service", service, "--provider", "generic", "-o", "json")
		var is struct{ Process bootstrap.ProcessView }
		if err := json.Unmarshal([]byte(stdout), &is); err != nil {
			t.Fatalf("exit %d: %v\n%s%s", code, err, stdout, stderr)
		}
		if p := is.Process; code != codeNotMember || p.Err != "not known: a tree below another root does not run" || p.Liveness.State != "unknown" || p.State.Known() {
			t.Errorf("--service %s: exit %d, %+v", service, code, p)
		}
		if code, stdout, _ := run(t, nil, "status", "--root", root, "--service", service); code != codeNotMember || !strings.Contains(stdout, "  process   not known: a tree below another root does not run\n") {
			t.Errorf("--service %s: exit %d\n%s", service, code, stdout)
		}
	}
}
