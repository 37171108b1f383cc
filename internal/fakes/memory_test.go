// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakes_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/fakes/fakeazure"
	"github.com/amsagent/amsagent/internal/fakes/fakegcp"
	"github.com/amsagent/amsagent/internal/must"
)

// TestInMemory: a personality needs no port and no clock of its own.
func TestInMemory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := fakegcp.New(fakegcp.Options{})
		began := time.Now()
		time.AfterFunc(time.Minute, func() { s.Preempt(0) })
		if body, err := ask(t, s, "/computeMetadata/v1/instance/preempted?wait_for_change=true"); body != "TRUE" || err != nil || time.Since(began) != time.Minute {
			t.Errorf("%q after %s: %v", body, time.Since(began), err)
		}
		_, err := s.WaitFor(t.Context(), func(e fakegcp.Entry) bool { return e.What == fakegcp.Gone })
		must.OK(t, err)
		must.Equal(t, "off after", time.Since(began), time.Minute+30*time.Second)
	})
	synctest.Test(t, func(t *testing.T) {
		a, s := fakeaws.NewAutoScaling(fakeaws.AutoScalingOptions{}), fakeaws.New(fakeaws.Options{})
		a.Group("edges", fakes.Hook{Name: "drain", Timeout: time.Minute})
		must.OK(t, a.Attach("edges", s))
		began := time.Now()
		must.OK(t, a.Verbs().Run("POST /terminate", nil))
		must.Equal(t, "the metadata says", s.Get().Signals.Target, "Terminated")
		_, err := a.WaitFor(t.Context(), func(e fakes.Entry) bool { return e.What == fakes.Gone && e.Text == fakes.ByTime })
		must.OK(t, err)
		if d := time.Since(began); d != time.Minute || len(a.Members()) > 0 {
			t.Errorf("gone after %s: %+v", d, a.Members())
		}
	})
}

// TestFaultsAreRefused: a fault that does nothing in a service would let a test pass against a healthy one.
func TestFaultsAreRefused(t *testing.T) {
	t.Parallel()
	s := fakeazure.New(fakeazure.Options{})
	for _, f := range []fakes.Fault{{}, {Times: 1}, {Hang: true, Reset: true}, {Status: 99}, {Code: "Throttling"}, {Held: true, Hang: true}, {Hang: true, Times: -1}} {
		if s.AddFault(f) == nil {
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
	if err := aws.AddFault(fakes.Fault{Truncate: true, Delay: time.Second}); err != nil || len(aws.Faults()) != 1 {
		t.Errorf("%v, %+v", err, aws.Faults())
	}
}

// ask reads an item of Google's metadata in memory.
func ask(t *testing.T, s http.Handler, path string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://metadata"+path, nil)
	must.OK(t, err)
	r.Header.Set(fakes.Flavor, "Google")
	resp, err := fakes.Transport{Handler: s}.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// TestTransport: in memory a fault looks to a client as it does on a port.
func TestTransport(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := fakegcp.New(fakegcp.Options{})
		for _, tt := range []struct {
			fault fakes.Fault
			body  string
			err   error
		}{
			{fakes.Fault{Truncate: true}, "NO", io.ErrUnexpectedEOF},
			{fakes.Fault{Reset: true}, "", syscall.ECONNRESET},
			{fakes.Fault{Hang: true}, "", context.DeadlineExceeded},
			{fakes.Fault{Status: 503, Body: "later"}, "later", nil},
			{fakes.Fault{Delay: time.Minute}, "NONE", nil},
		} {
			must.OK(t, s.AddFault(tt.fault))
			if body, err := ask(t, s, "/computeMetadata/v1/instance/maintenance-event"); body != tt.body || !errors.Is(err, tt.err) {
				t.Errorf("%+v: %q, %v", tt.fault, body, err)
			}
			s.ClearFaults()
		}
	})
}
