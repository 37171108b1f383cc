// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakecloud

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/fakeaws"
	"github.com/amsagent/amsagent/sandbox/fakegcp"
	"github.com/amsagent/amsagent/sandbox/internal/cloud"
)

// TestInMemory: a personality needs no port and no clock of its own.
func TestInMemory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := fakegcp.New(fakegcp.Options{})
		began := time.Now()
		time.AfterFunc(time.Minute, func() { s.Preempt(0) })
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/computeMetadata/v1/instance/preempted?wait_for_change=true", nil)
		r.Header.Set(cloud.Flavor, "Google")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Body.String() != "TRUE" || time.Since(began) != time.Minute {
			t.Errorf("%q after %s", w.Body, time.Since(began))
		}
		_, err := s.WaitFor(t.Context(), func(e fakegcp.Entry) bool { return e.What == fakegcp.Gone })
		must.OK(t, err)
		if d := time.Since(began); d != time.Minute+30*time.Second {
			t.Errorf("off after %s", d)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		a, s := fakeaws.NewAutoScaling(fakeaws.AutoScalingOptions{}), fakeaws.New(fakeaws.Options{})
		a.Group("edges", cloud.Hook{Name: "drain", Timeout: time.Minute})
		must.OK(t, a.Attach("edges", s))
		began := time.Now()
		must.OK(t, a.Verbs().Run("POST /terminate", nil))
		if got := s.Get().Signals.Target; got != "Terminated" {
			t.Errorf("the metadata says %q", got)
		}
		_, err := a.WaitFor(t.Context(), func(e cloud.Entry) bool { return e.What == cloud.Gone && e.Text == cloud.ByTime })
		must.OK(t, err)
		if d := time.Since(began); d != time.Minute || len(a.Members()) > 0 {
			t.Errorf("gone after %s: %+v", d, a.Members())
		}
	})
}

// TestFaultsAreRefused: a fault that does nothing in a service would let a test pass against a healthy one.
func TestFaultsAreRefused(t *testing.T) {
	t.Parallel()
	s, err := Open(context.WithoutCancel(t.Context()), "azure", Options{})
	must.OK(t, err)
	t.Cleanup(func() { _ = s.Close() })
	m, err := s.Machine(t.Context(), Machine{ID: ID("azure", 1), Role: "edge"})
	must.OK(t, err)
	for _, f := range []Fault{{}, {Times: 1}, {Hang: true, Reset: true}, {Status: 99}, {Code: "Throttling"}, {Held: true, Hang: true}, {Hang: true, Times: -1}} {
		if m.Fail(f) == nil {
			t.Errorf("%+v is accepted", f)
		}
	}
	aws := fakeaws.New(fakeaws.Options{})
	for verb, q := range map[string]url.Values{
		"POST /fault": {"sttus": {"500"}}, "POST /spot": {"in": {"soon"}}, "PUT /nothing": nil, "POST /expire-tokens": {"name": {"x"}},
	} {
		if aws.Verbs().Run(verb, q) == nil {
			t.Errorf("%s %v is accepted", verb, q)
		}
	}
	if err := aws.AddFault(Fault{Truncate: true, Delay: time.Second}); err != nil || len(aws.Faults()) != 1 {
		t.Errorf("%v, %+v", err, aws.Faults())
	}
}
