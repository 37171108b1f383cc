// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/plain"
)

// Who may not use the control socket is told what the daemon tells everybody.
func TestStatusAsksReadyz(t *testing.T) {
	stopped := bootstrap.Disagreement{ID: "STATUS-STOPPED", Text: "antmedia is stopped"}
	for name, tt := range map[string]struct {
		code              int
		kind, body        string
		disagree          []bootstrap.Disagreement
		headline, daemon  string
		member, disagrees bool
	}{
		"ready": {
			code: 200, body: `{"ready":true,"row":"active","server":true,"applications":{}}`,
			headline: "active: in the cluster, as the daemon says", daemon: "ready for new sessions; only root may ask it for more", member: true,
		},
		"not ready": {
			code: 503, body: `{"ready":false,"why":"LiveApp fails","row":"active"}`,
			headline: "active: not ready for new sessions: LiveApp fails", daemon: "not ready for new sessions: LiveApp fails; only root", member: true,
		},
		"stopped": {
			code: 503, body: `{"ready":false,"why":"LiveApp does not answer","row":"active"}`, disagree: []bootstrap.Disagreement{stopped},
			headline: "degraded: 1 disagreement", daemon: "LiveApp does not answer", member: true, disagrees: true,
		},
		"left, and stopped for that": {
			code: 503, body: `{"ready":false,"why":"this node has left the cluster","row":"left"}`, disagree: []bootstrap.Disagreement{stopped},
			headline: "left: this node is out of the cluster", daemon: "not ready", member: true,
		},
		"no node": {
			code: 503, body: `{"ready":false,"why":"this machine is not a cluster node","row":""}`,
			headline: "unknown: only root may tell", daemon: "not ready for new sessions: this machine is not a cluster node",
		},
		"another program": {
			code: 200, kind: "text/html", body: "<html>",
			headline: "unknown: only root may tell", daemon: "says nothing: what answers there is no daemon of ours",
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/readyz" {
					t.Errorf("asked for %s", r.URL)
				}
				if tt.kind == "" {
					tt.kind = "application/json"
				}
				w.Header().Set("Content-Type", tt.kind)
				w.WriteHeader(tt.code)
				_, _ = io.WriteString(w, tt.body)
			}))
			defer srv.Close()
			s := &statusView{Status: &bootstrap.Status{Unprivileged: true, Disagree: tt.disagree}}
			s.Files.Dir, s.Files.Err = "/usr/local/antmedia", "open red5.properties: permission denied"
			s.askReady(t.Context(), strings.TrimPrefix(srv.URL, "http://"))
			w := &textWriter{}
			statusText(w, s)
			if got := w.b.String(); !strings.HasPrefix(got, tt.headline) || !strings.Contains(s.daemonText(), tt.daemon) {
				t.Errorf("%s\nwant %q and %q", got, tt.headline, tt.daemon)
			}
			if s.Member != tt.member || len(s.Disagree) > 0 != tt.disagrees {
				t.Errorf("member %t, %v", s.Member, s.Disagree)
			}
		})
	}
}

// FuzzReadiness: at the daemon's port anybody may answer. What he says is shown as text, and nothing else of it.
func FuzzReadiness(f *testing.F) {
	for _, seed := range []string{
		`{"ready":true,"row":"active","server":true,"applications":{"LiveApp":"serves"}}`, `{"row":"left"}`, `{"row":"draining","why":"a drain is under way"}`,
		`{"row":"\u001b[31m","why":"\u202e\n\u0085"}`, `{"ready":1}`, `[]`, `null`, `{"applications":{"\u0000":"\u0007"},"omitted":-1}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var r daemon.Readiness
		if json.NewDecoder(bytes.NewReader(body)).Decode(&r) != nil {
			return
		}
		v := &statusView{Status: &bootstrap.Status{Unprivileged: true, Member: true}, Readiness: &r, DaemonErr: "only root may ask it"}
		e := &testEnv{}
		g := globalsOf(e.env())
		for _, form := range []string{"text", "json"} {
			g.setForm(form, "never", 0)
			must.OK(t, g.result("status", v, func(w *textWriter) { statusText(w, v) }))
		}
		for line := range strings.Lines(e.stdout.String()) {
			if line = strings.TrimSuffix(line, "\n"); plain.Text(line) != line {
				t.Errorf("%s\nshows %q", body, line)
			}
		}
	})
}

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
		if p := is.Process; code != exitNotMember || p.Err != "not known: a tree below another root does not run" || p.Liveness.State != "unknown" || p.State.Known() {
			t.Errorf("--service %s: exit %d, %+v", service, code, p)
		}
		if code, stdout, _ := run(t, nil, "status", "--root", root, "--service", service); code != exitNotMember || !strings.Contains(stdout, "  process   not known: a tree below another root does not run\n") {
			t.Errorf("--service %s: exit %d\n%s", service, code, stdout)
		}
	}
}
