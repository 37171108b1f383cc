// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
)

// A cloud in which this machine joined, and which does not answer, is not known for now: the machine is no other one, and
// its notices are still waited for. Firmware that names no cloud is a container's, or missing.
func TestInstanceUnknownForNow(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	defer srv.Close()
	for name, tt := range map[string]struct {
		state     string
		endpoints map[string]string
		provider  string
		cause     string // "": the machine is identified by its own facts
	}{
		"joined in a cloud": {
			`{"version":1,"phase":"joined","instance_id":"i-1","address":"10.0.0.5","provider":"aws"}`,
			map[string]string{"aws": srv.URL},
			"aws", "HTTP 403",
		},
		"a join was begun there": {
			`{"version":1,"phase":"joining","instance_id":"i-1","address":"10.0.0.5","provider":"aws"}`,
			map[string]string{"aws": srv.URL},
			"aws", "HTTP 403",
		},
		"another machine's tree": {
			`{"version":1,"phase":"joined","instance_id":"i-1","address":"10.0.0.5","provider":"alibaba"}`,
			map[string]string{"aws": srv.URL},
			"alibaba", "below a root only services whose address is set are asked",
		},
		"joined in no cloud": {
			`{"version":1,"phase":"joined","instance_id":"m-1","address":"10.0.0.5","provider":"generic"}`,
			map[string]string{"aws": srv.URL},
			"generic", "",
		},
		"never joined":         {"", map[string]string{"aws": srv.URL}, "generic", ""},
		"a state file in half": {`{"version":1,"pha`, map[string]string{"aws": srv.URL}, "generic", ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for path, text := range map[string]string{"etc/machine-id": "0123456789abcdef0123456789abcdef\n", "var/lib/amsagent/state.json": tt.state} {
				if text == "" {
					continue
				}
				path = filepath.Join(root, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			g := newGlobals(Env{LookupEnv: func(string) (string, bool) { return "", false }})
			g.logger = slog.New(slog.DiscardHandler)
			g.settings.Provider, g.settings.Root, g.settings.Endpoints = "auto", root, tt.endpoints
			m, err := g.readInstance(t.Context())
			if tt.cause == "" {
				if err != nil || !strings.HasPrefix(m.Instance.ID, "m-") {
					t.Errorf("%+v, %v", m.Instance, err)
				}
			} else if !errors.Is(err, metadata.ErrNotReady) || !strings.Contains(err.Error(), tt.cause) || !strings.Contains(metadata.HintOf(err), "--provider") {
				t.Errorf("%+v, %v (%s)", m.Instance, err, metadata.HintOf(err))
			}
			a := &daemonAdapter{g: g}
			if p, err := a.provider(t.Context()); err != nil || p != tt.provider {
				t.Errorf("the provider is %s, want %s (%v)", p, tt.provider, err)
			}
			if tt.cause == "" {
				return
			}
			c := newCloud(a)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if err := c.Watch(ctx, func(lifecycle.Notice) {}); !errors.Is(err, context.DeadlineExceeded) || c.source != nil {
				t.Errorf("%v, source %v", err, c.source)
			}
			select {
			case <-c.known:
				t.Error("the daemon looks for this machine's cloud no more")
			default:
			}
		})
	}
}

// A machine in no cloud may get another address while it runs: its own facts are read again soon, and a cloud is not looked
// for each time.
func TestIdentifyReadsOwnFactsAgain(t *testing.T) {
	root := t.TempDir()
	is := func(id string) {
		t.Helper()
		path := filepath.Join(root, "etc/machine-id")
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(strings.Repeat(id, 32)+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	g := newGlobals(Env{LookupEnv: func(string) (string, bool) { return "", false }})
	g.logger = slog.New(slog.DiscardHandler)
	g.settings.Provider, g.settings.Root = "auto", root
	a := &daemonAdapter{g: g}
	id := func() string {
		t.Helper()
		inst, err := a.identify(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return inst.ID
	}
	is("a")
	first, identified := id(), a.identified
	is("b")
	if got := id(); got != first {
		t.Errorf("read again at once: %s", got)
	}
	a.lookedAt = time.Now().Add(-ownFactsAge)
	if got := id(); got == first {
		t.Error("not read again")
	}
	if !a.identified.Equal(identified) {
		t.Error("a cloud was looked for again")
	}
}

// Who asks who this machine is waits no longer than he wants to, whoever else asks.
func TestIdentifyWaitsForNobody(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(asked) })
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		once()
		<-release
	}))
	defer s.Close()
	g := newGlobals(Env{LookupEnv: func(string) (string, bool) { return "", false }})
	g.logger = slog.New(slog.DiscardHandler)
	g.settings.Provider, g.settings.Root, g.settings.Endpoints = metadata.GCP, t.TempDir(), map[string]string{metadata.GCP: s.URL}
	a := &daemonAdapter{g: g}
	var first sync.WaitGroup
	first.Go(func() {
		if _, err := a.identify(t.Context()); err == nil {
			t.Error("a service that said nothing said who this machine is")
		}
	})
	<-asked
	why := errors.New("waited long enough")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, why)
	defer cancel()
	if _, err := a.identify(ctx); !errors.Is(err, why) {
		t.Errorf("the second one: %v", err)
	}
	close(release)
	first.Wait()
}

// A daemon asks the metadata again every minute: what each try came to is said once.
func TestAskSaysItOnce(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }))
	defer s.Close()
	var log strings.Builder
	g := newGlobals(Env{LookupEnv: func(string) (string, bool) { return "", false }})
	g.logger = slog.New(slog.NewTextHandler(&log, nil))
	g.settings.Provider, g.settings.Root, g.settings.Endpoints = metadata.GCP, t.TempDir(), map[string]string{metadata.GCP: s.URL}
	a := &daemonAdapter{g: g}
	ask := func() string {
		t.Helper()
		log.Reset()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if _, err := a.ask(ctx, false); err == nil {
			t.Error("a service that failed said who this machine is")
		}
		return log.String()
	}
	if said := ask(); !strings.Contains(said, "trying again") {
		t.Errorf("the first time: %q", said)
	}
	if said := ask(); said != "" {
		t.Errorf("the second time: %q", said)
	}
}
