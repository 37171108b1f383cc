// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
)

// TestCloudAzure: events are asked for from the first moment on, whoever waits for the metadata at the time, and are
// acknowledged there.
func TestCloudAzure(t *testing.T) {
	asked, said := make(chan struct{}, 100), make(chan string, 100)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/metadata/scheduledevents":
			w.WriteHeader(http.StatusGone)
		case r.Method == http.MethodPost:
			b, _ := io.ReadAll(r.Body)
			said <- string(b)
		default:
			asked <- struct{}{}
			_, _ = io.WriteString(w, `{"DocumentIncarnation":1,"Events":[]}`)
		}
	}))
	defer srv.Close()
	root := t.TempDir()
	dir := filepath.Join(root, "sys/class/dmi/id")
	must.OK(t, os.MkdirAll(dir, 0o755))
	must.OK(t, os.WriteFile(filepath.Join(dir, "chassis_asset_tag"), []byte("7783-7084-3265-9085-8269-3286-77\n"), 0o644))
	for _, provider := range []string{"auto", "azure"} {
		g := newGlobals(Env{LookupEnv: func(string) (string, bool) { return "", false }})
		g.logger = slog.New(slog.DiscardHandler)
		g.settings.Provider, g.settings.Root = provider, root
		g.settings.Endpoints = map[string]string{"azure": srv.URL}
		a := &daemonAdapter{g: g}
		c := newCloud(a)
		c.begin(t.Context())
		a.mu.Lock() // somebody waits for the metadata
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		ended := make(chan error)
		go func() { ended <- c.Watch(ctx, func(lifecycle.Notice) {}) }()
		select {
		case <-asked:
		case <-ctx.Done():
			t.Errorf("%s: nobody asks for events", provider)
		}
		a.mu.Unlock()
		if err := c.Complete(ctx, lifecycle.Hook{Provider: "azure", Token: "1"}); err != nil {
			t.Errorf("%s: %v", provider, err)
		}
		if got := <-said; got != `{"StartRequests":[{"EventId":"1"}]}` {
			t.Errorf("%s: said %s", provider, got)
		}
		if err := c.Complete(ctx, lifecycle.Hook{Provider: "aws", Name: "drain"}); !errors.Is(err, lifecycle.ErrGone) {
			t.Errorf("%s: another cloud's hook: %v", provider, err)
		}
		if h, err := c.Discover(ctx, false); h != nil || err != nil {
			t.Errorf("%s: %v, %v", provider, h, err)
		}
		cancel()
		<-ended
	}
}
