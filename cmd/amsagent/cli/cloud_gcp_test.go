// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/gcp"
)

// TestStopSpan: who goes down has systemd's time or the cloud's, whichever is less.
func TestStopSpan(t *testing.T) {
	spot := &metadata.Instance{Provider: "gcp", StopWindow: gcp.StopWindowSpot}
	standard := &metadata.Instance{Provider: "gcp", StopWindow: gcp.StopWindowStandard}
	for name, c := range map[string]struct {
		systemd time.Duration
		inst    *metadata.Instance
		want    time.Duration
		by      string
	}{
		"Spot":                     {15 * time.Minute, spot, 10 * time.Second, "the 30 s that Google Cloud gives a Spot VM"},
		"standard":                 {15 * time.Minute, standard, 90 * time.Second, "the 120 s that Google Cloud gives a standard VM"},
		"systemd has less":         {12 * time.Second, spot, 7 * time.Second, "systemd's TimeoutStopSec"},
		"systemd waits for ever":   {0, standard, 90 * time.Second, "the 120 s that Google Cloud gives a standard VM"},
		"the instance is unknown":  {15 * time.Minute, nil, 15*time.Minute - 5*time.Second, "systemd's TimeoutStopSec"},
		"no such time":             {15 * time.Minute, &metadata.Instance{Provider: "aws"}, 15*time.Minute - 5*time.Second, "systemd's TimeoutStopSec"},
		"another cloud's":          {15 * time.Minute, &metadata.Instance{Provider: "azure", StopWindow: 5 * time.Minute}, 270 * time.Second, "the 300 s that azure gives this machine"},
		"neither":                  {0, nil, lifecycle.DefaultDeadline, "the usual deadline"},
		"systemd has next to none": {4 * time.Second, standard, 2 * time.Second, "systemd's TimeoutStopSec"},
	} {
		t.Run(name, func(t *testing.T) {
			if span, by := stopSpan(c.systemd, c.inst); span != c.want || by != c.by {
				t.Errorf("%s by %q, want %s by %q", span, by, c.want, c.by)
			}
		})
	}
}

// TestInstanceStaysKnown: a machine goes down when it does, also while its metadata are read anew, or after they have been
// forgotten.
func TestInstanceStaysKnown(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		body := `{"projectId":"acme"}`
		if r.URL.Path == "/computeMetadata/v1/instance/" {
			body = `{"id":4567890123456789012,"name":"edge-1","zone":"projects/1/zones/europe-west1-b","scheduling":{"preemptible":"TRUE"}}`
		}
		_, _ = w.Write([]byte(body))
	}))
	defer s.Close()
	g := newGlobals(Env{LookupEnv: func(string) (string, bool) { return "", false }})
	g.logger = slog.New(slog.DiscardHandler)
	g.settings.Provider, g.settings.Root = "gcp", t.TempDir()
	g.settings.Endpoints = map[string]string{"gcp": s.URL}
	a := &daemonAdapter{g: g}
	if a.known.Load() != nil {
		t.Error("known before anybody has asked")
	}
	if _, err := a.identify(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.mu.Lock() // as while it is read
	defer a.mu.Unlock()
	a.identified = time.Time{}
	if span, by := stopSpan(15*time.Minute, a.known.Load()); span != 10*time.Second || by != "the 30 s that Google Cloud gives a Spot VM" {
		t.Errorf("%s by %s", span, by)
	}
}
