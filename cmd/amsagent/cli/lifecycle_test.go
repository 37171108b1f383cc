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
	"testing"
	"time"

	"github.com/amsagent/amsagent/lifecycle"
)

// TestCloudWithoutHooks: a hook of AWS that somebody tells of by `amsagent event`
// does not hold a machine that is elsewhere, known by its metadata or not.
func TestCloudWithoutHooks(t *testing.T) {
	mute := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
	t.Cleanup(mute.Close)
	hook := lifecycle.Hook{Provider: "aws", Group: "edge", Name: "drain"}
	for provider, gone := range map[string]bool{"none": true, "generic": true, "gcp": true, "azure": true, "alibaba": true, "aws": false} {
		t.Run(provider, func(t *testing.T) {
			t.Parallel() // some wait for a service that never answers
			g := newGlobals(Env{LookupEnv: func(string) (string, bool) { return "", false }})
			g.logger = slog.New(slog.DiscardHandler)
			g.settings.Provider, g.settings.Root = provider, t.TempDir()
			g.settings.Endpoints = map[string]string{provider: mute.URL}
			c := newCloud(&daemonAdapter{g: g})
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = c.Watch(ctx, func(lifecycle.Notice) {})
			}()
			bound := time.Minute
			if !gone {
				bound = 200 * time.Millisecond
			}
			call, stop := context.WithTimeout(ctx, bound)
			defer stop()
			err := c.Complete(call, hook, lifecycle.Continue)
			if errors.Is(err, lifecycle.ErrGone) != gone {
				t.Errorf("complete: %v", err)
			}
			if !gone && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("an AWS that does not answer: %v", err)
			}
			if !hasHooks(provider) {
				if h, err := c.Discover(call, false); h != nil || err != nil {
					t.Errorf("discover: %v, %v", h, err)
				}
			}
			cancel()
			<-ended
			// Who looks for the cloud only now needs nobody who watches.
			once, stop := context.WithTimeout(t.Context(), bound)
			defer stop()
			if err := lateCloud(&daemonAdapter{g: g}).Complete(once, hook, lifecycle.Continue); errors.Is(err, lifecycle.ErrGone) != gone {
				t.Errorf("complete, late: %v", err)
			}
		})
	}
}

// TestCloudOfTheFirmware: nobody named the cloud, and its metadata do not answer.
func TestCloudOfTheFirmware(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "sys/class/dmi/id")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "product_name"), []byte("Google Compute Engine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	g := newGlobals(Env{LookupEnv: func(string) (string, bool) { return "", false }})
	g.logger = slog.New(slog.DiscardHandler)
	g.settings.Provider, g.settings.Root = "auto", root
	a := &daemonAdapter{g: g}
	if p, err := a.provider(t.Context()); err != nil || p != "gcp" {
		t.Errorf("%q, %v", p, err)
	}
}
