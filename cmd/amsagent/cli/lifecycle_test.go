// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
)

// TestCloudWithoutHooks: a hook of AWS that somebody tells of by `amsagent event`
// does not hold a machine that is elsewhere, known by its metadata or not.
func TestCloudWithoutHooks(t *testing.T) {
	mute := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
	t.Cleanup(mute.Close)
	hook := lifecycle.Hook{Provider: "aws", Group: "edge", Name: "drain"}
	for provider, gone := range map[string]bool{"generic": true, "gcp": true, "azure": true, "alibaba": true, "aws": false} {
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
			err := c.Complete(call, hook)
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
			if err := lateCloud(&daemonAdapter{g: g}).Complete(once, hook); errors.Is(err, lifecycle.ErrGone) != gone {
				t.Errorf("complete, late: %v", err)
			}
		})
	}
}

// TestCloudOfTheFirmware: nobody named the cloud, and its metadata do not answer.
func TestCloudOfTheFirmware(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "sys/class/dmi/id")
	must.OK(t, os.MkdirAll(dir, 0o755))
	must.OK(t, os.WriteFile(filepath.Join(dir, "product_name"), []byte("Google Compute Engine\n"), 0o644))
	g := newGlobals(Env{LookupEnv: func(string) (string, bool) { return "", false }})
	g.logger = slog.New(slog.DiscardHandler)
	g.settings.Provider, g.settings.Root = "auto", root
	a := &daemonAdapter{g: g}
	if p, err := a.provider(t.Context()); err != nil || p != "gcp" {
		t.Errorf("%q, %v", p, err)
	}
}

// metadataOfAWS serves the metadata of an EC2 instance, of which tags tells the tags. A tag with the value forbidden
// cannot be read; nil is that the launch template switches tags off.
func metadataOfAWS(t *testing.T, tags func() map[string]string) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		const below = "/latest/meta-data/tags/instance"
		name, isTag := strings.CutPrefix(r.URL.Path, below+"/")
		value, tagged := tags()[name]
		switch {
		case r.URL.Path == "/latest/api/token":
			w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "21600")
			_, _ = io.WriteString(w, "a-session-token")
		case r.URL.Path == "/latest/dynamic/instance-identity/document":
			_, _ = io.WriteString(w, `{"accountId":"111122223333","instanceId":"i-0abc1234567890def","region":"eu-west-1","availabilityZone":"eu-west-1a","instanceType":"c5.large","privateIp":"10.0.1.23"}`)
		case r.URL.Path == below && tags() != nil:
			_, _ = io.WriteString(w, strings.Join(slices.Sorted(maps.Keys(tags())), "\n"))
		case isTag && tagged && value == forbidden:
			w.WriteHeader(http.StatusForbidden)
		case isTag && tagged:
			_, _ = io.WriteString(w, value)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

const forbidden = "forbidden"

// adapterOnAWS is what a daemon that was started just now has, and what it logs.
func adapterOnAWS(t *testing.T, metadata *httptest.Server, root string) (*daemonAdapter, *testEnv) {
	t.Helper()
	e := &testEnv{vars: map[string]string{"AMSAGENT_PROVIDER": "aws", "AMSAGENT_AWS_ENDPOINT": metadata.URL}}
	g := newGlobals(e.env().withDefaults())
	g.given[keyRoot] = given{text: root, name: "--root"}
	cmd := newRunCommand(g)
	must.OK(t, g.load(cmd))
	return &daemonAdapter{g: g, cmd: cmd}, e
}

// A malformed tag tells nothing of who this machine is: its end is watched for.
func TestCloudOfAMalformedTag(t *testing.T) {
	t.Parallel()
	srv := metadataOfAWS(t, func() map[string]string { return map[string]string{"amsagent:role": "two words"} })
	a, e := adapterOnAWS(t, srv, t.TempDir())
	c := newCloud(a)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.Watch(ctx, func(lifecycle.Notice) {})
	}()
	select {
	case <-c.known:
	case <-ctx.Done():
		t.Fatal("the cloud is not watched")
	}
	cancel()
	<-ended
	if c.source == nil || c.completer == nil {
		t.Errorf("source %v, completer %v", c.source, c.completer)
	}
	if said := e.stderr.String(); !strings.Contains(said, "amsagent:role") || !strings.Contains(said, "two words") {
		t.Errorf("it said: %s", said)
	}
	if inst := a.known.Load(); inst == nil || inst.ID != "i-0abc1234567890def" {
		t.Errorf("known: %+v", inst)
	}
	// A join goes by the tags, and does not begin.
	if inst, err := a.identify(t.Context()); !errors.Is(err, bootstrap.ErrTags) || inst.Zone != "eu-west-1a" {
		t.Errorf("%+v, %v", inst, err)
	}
}

// A role whose tag comes after the join is seen before the answer of the metadata has become old.
func TestRoleOfALateTag(t *testing.T) {
	t.Parallel()
	var tags atomic.Pointer[map[string]string]
	tags.Store(&map[string]string{"Name": "edge-1"})
	srv := metadataOfAWS(t, func() map[string]string { return *tags.Load() })
	a, _ := adapterOnAWS(t, srv, t.TempDir())
	role := func() string {
		t.Helper()
		if _, err := a.identify(t.Context()); err != nil {
			t.Fatal(err)
		}
		return a.settings().Role
	}
	if r := role(); r != "" {
		t.Errorf("role %q", r)
	}
	tags.Store(&map[string]string{"amsagent:role": "edge"})
	a.identified = a.identified.Add(-time.Minute)
	if r := role(); r != "edge" {
		t.Errorf("role %q after a minute", r)
	}
}

// The deadline of a drain is not final until the tags are read, unless a source that counts more names it.
func TestDrainDeadlineOfATag(t *testing.T) {
	t.Parallel()
	srv := metadataOfAWS(t, func() map[string]string { return map[string]string{"amsagent:drain-deadline": "20m"} })
	a, _ := adapterOnAWS(t, srv, t.TempDir())
	check := func(when string, want time.Duration, final bool) {
		t.Helper()
		if d, f := a.drainDeadline(); d != want || f != final {
			t.Errorf("%s: %s, final: %v", when, d, f)
		}
	}
	check("before the tags are read", time.Hour, false)
	if _, err := a.identify(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("after it", 20*time.Minute, true)
	must.OK(t, a.reread())
	check("reloaded", time.Hour, false)
	a.g.given[keyDrainDeadline] = given{text: "2h", name: "--drain-deadline"}
	must.OK(t, a.reread())
	check("named by a flag", 2*time.Hour, true)
}
