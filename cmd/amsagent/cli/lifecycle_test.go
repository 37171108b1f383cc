// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/gcp"
)

// No setting names the cloud, and its metadata do not answer.
func TestCloudOfTheFirmware(t *testing.T) {
	g := plainGlobals(&testEnv{})
	g.settings.Provider = "auto"
	plant(t, g.settings.Root, map[string]string{"sys/class/dmi/id/product_name": "Google Compute Engine\n"})
	a := &daemonAdapter{g: g}
	if _, err := a.openCloud(); err != nil || a.opened["gcp"] == nil {
		t.Errorf("%v, %v", a.opened, err)
	}
}

// adapterOnAWS is what a daemon that was started just now has, and what it logs.
func adapterOnAWS(t *testing.T, metadata *httptest.Server) (*daemonAdapter, *testEnv) {
	t.Helper()
	e := &testEnv{vars: map[string]string{"AMSAGENT_PROVIDER": "aws", "AMSAGENT_AWS_ENDPOINT": metadata.URL}}
	return adapterIn(t, e), e
}

// A malformed tag does not change the identity.
func TestCloudOfAMalformedTag(t *testing.T) {
	t.Parallel()
	srv := metadataOfAWS(t, func() map[string]string { return map[string]string{"amsagent:role": "two words"} })
	a, _ := adapterOnAWS(t, srv)
	// A join goes by the tags, and does not begin.
	if inst, err := a.identify(t.Context()); !errors.Is(err, bootstrap.ErrTags) || inst.Zone != "eu-west-1a" {
		t.Errorf("%+v, %v", inst, err)
	}
	// A machine may shut down while its metadata are being read again.
	a.mu.Lock()
	defer a.mu.Unlock()
	if inst := a.g.lastSeen().Instance; inst.ID != "i-0abc1234567890def" {
		t.Errorf("known: %+v", inst)
	}
}

// An answer that contradicts the join counts twice only if it was given twice.
func TestOddIdentityIsAskedAgain(t *testing.T) {
	t.Parallel()
	for id, again := range map[string]bool{"i-0abc1234567890def": false, "i-0fedcba9876543210": true} {
		var asked atomic.Int32
		srv := metadataOfAWS(t, func() map[string]string {
			asked.Add(1)
			return map[string]string{"amsagent:role": "edge"}
		})
		a, _ := adapterOnAWS(t, srv)
		plant(t, a.g.settings.Root, map[string]string{bootstrap.StateDir + "/state.json!": `{"version":1,"phase":"joined","instance_id":"` + id + `"}`})
		_, err := a.identify(t.Context())
		must.OK(t, err)
		once := asked.Load()
		for range 2 {
			_, err := a.identify(t.Context())
			must.OK(t, err)
		}
		if got := asked.Load(); again != (got > 2*once) || !again && got != once {
			t.Errorf("%s joined: %d requests, and %d of the first answer", id, got, once)
		}
	}
}

// A role whose tag comes after the join is seen before the answer of the metadata has become old.
func TestRoleOfALateTag(t *testing.T) {
	t.Parallel()
	var tags atomic.Pointer[map[string]string]
	tags.Store(&map[string]string{"Name": "edge-1"})
	srv := metadataOfAWS(t, func() map[string]string { return *tags.Load() })
	a, _ := adapterOnAWS(t, srv)
	role := func() string {
		t.Helper()
		_, err := a.identify(t.Context())
		must.OK(t, err)
		return a.settings().Role
	}
	must.Equal(t, "role", role(), "")
	tags.Store(&map[string]string{"amsagent:role": "edge"})
	a.identified = a.identified.Add(-time.Minute)
	must.Equal(t, "role after a minute", role(), "edge")
}

// The deadline of a drain is not final until the tags are read, unless a source that counts more names it.
func TestDrainDeadlineOfATag(t *testing.T) {
	t.Parallel()
	srv := metadataOfAWS(t, func() map[string]string { return map[string]string{"amsagent:drain-deadline": "20m"} })
	a, _ := adapterOnAWS(t, srv)
	check := func(when string, want time.Duration, final bool) {
		t.Helper()
		if d, f := a.drainDeadline(); d != want || f != final {
			t.Errorf("%s: %s, final: %v", when, d, f)
		}
	}
	check("before the tags are read", time.Hour, false)
	_, err := a.identify(t.Context())
	must.OK(t, err)
	check("after it", 20*time.Minute, true)
	must.OK(t, a.reread())
	check("reloaded", time.Hour, false)
	a.g.given[settings.KeyDrainDeadline] = settings.Flag{Text: "2h", Name: "--drain-deadline"}
	must.OK(t, a.reread())
	check("named by a flag", 2*time.Hour, true)
}

// A shutdown has systemd's time or the cloud's, whichever is less.
func TestStopSpan(t *testing.T) {
	spot := metadata.Instance{Provider: "gcp", StopWindow: seconds.Duration(gcp.StopWindowSpot)}
	standard := metadata.Instance{Provider: "gcp", StopWindow: seconds.Duration(gcp.StopWindowStandard)}
	for name, c := range map[string]struct {
		systemd time.Duration
		inst    metadata.Instance
		want    time.Duration
		by      string
	}{
		"Spot":                     {15 * time.Minute, spot, 10 * time.Second, "the 30 s that Google Cloud gives a Spot VM"},
		"standard":                 {15 * time.Minute, standard, 90 * time.Second, "the 120 s that Google Cloud gives a standard VM"},
		"systemd has less":         {12 * time.Second, spot, 7 * time.Second, "systemd's TimeoutStopSec"},
		"systemd waits for ever":   {0, standard, 90 * time.Second, "the 120 s that Google Cloud gives a standard VM"},
		"the instance is unknown":  {15 * time.Minute, metadata.Instance{}, 15*time.Minute - 5*time.Second, "systemd's TimeoutStopSec"},
		"no such time":             {15 * time.Minute, metadata.Instance{Provider: "aws"}, 15*time.Minute - 5*time.Second, "systemd's TimeoutStopSec"},
		"another cloud's":          {15 * time.Minute, metadata.Instance{Provider: "azure", StopWindow: seconds.Duration(5 * time.Minute)}, 270 * time.Second, "the 300 s that azure gives this machine"},
		"neither":                  {0, metadata.Instance{}, lifecycle.DefaultDeadline, "the usual deadline"},
		"systemd has next to none": {4 * time.Second, standard, 2 * time.Second, "systemd's TimeoutStopSec"},
	} {
		t.Run(name, func(t *testing.T) {
			if span, by := stopSpan(c.systemd, c.inst); span != c.want || by != c.by {
				t.Errorf("%s by %q, want %s by %q", span, by, c.want, c.by)
			}
		})
	}
}
