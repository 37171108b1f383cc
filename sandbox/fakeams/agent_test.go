// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/tree"
)

func open(t *testing.T, tr tree.Tree) *ams.Installation {
	t.Helper()
	in, err := ams.Open("", tr.Dir)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func portOf(t *testing.T, s *fakeams.Server) int {
	t.Helper()
	p, err := netip.ParseAddrPort(s.HTTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	return int(p.Port())
}

// What package ams makes of the files is what a server with these files takes.
func TestServerToken(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		settings, release string
		possible          bool // by package ams
		want              error
	}{
		"as shipped":       {"", "", false, ams.ErrForbidden},
		"with a secret":    {"server.jwtServerControlEnabled=true\nserver.jwtServerSecretKey=" + serverSecret + "\n", "", true, nil},
		"an awkward one":   {"server.jwtServerControlEnabled : TRUE \nserver.jwtServerSecretKey= a\\=b\\\\\\u00e9$ \n", "", true, nil},
		"of two the last":  {"server.jwtServerControlEnabled=true\nserver.jwtServerSecretKey=old\nserver.jwtServerSecretKey=new\n", "", true, nil},
		"no secret":        {"server.jwtServerControlEnabled=true\n", "", false, ams.ErrForbidden},
		"with a JWKS URL":  {"server.jwtServerControlEnabled=true\nserver.jwtServerSecretKey=" + serverSecret + "\nserver.jwksURL=https\\://example.org/\n", "", false, ams.ErrForbidden},
		"before there was": {"server.jwtServerControlEnabled=true\nserver.jwtServerSecretKey=" + serverSecret + "\n", "2.3.0", true, ams.ErrForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := install(t, tree.Options{})
			properties(t, tr, tt.settings)
			o := quick(tr)
			o.Release = tt.release
			s := start(t, o)
			await(t, "ready", s.Ready())
			key, err := open(t, tr).ServerKey()
			if (err == nil) != tt.possible || err != nil && !errors.Is(err, ams.ErrNoServerToken) {
				t.Errorf("key: %v", err)
			}
			st, err := ams.ReadStatistics(t.Context(), nil, "http://"+s.HTTPAddr(), key.Token(time.Now()))
			if !errors.Is(err, tt.want) {
				t.Fatalf("%v", err)
			}
			if viewers, complete := st.Viewers(); err == nil && (!complete || *viewers != 0 || st.LocalStreams == nil || st.CPU == nil) {
				t.Errorf("%+v", st)
			}
		})
	}
}

// What the kernel counts are the viewers that opened connections.
func TestConnectionsOfViewers(t *testing.T) {
	t.Parallel()
	s := start(t, quick(install(t, tree.Options{})))
	await(t, "ready", s.Ready())
	connected := func(want int) {
		t.Helper()
		// All of them come from this machine.
		eventually(t, "the connections", func() bool {
			c, err := ams.CountConnections("/", []int{portOf(t, s)}, nil)
			return err == nil && c.Local == want && c.Total == 0
		})
	}
	connected(0)
	v := fakeams.Viewers{App: "LiveApp", Stream: "s1", Kind: fakeams.HLS, N: 4, Connect: true, From: "127.0.0.9"}
	if err := s.AddViewers(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	connected(4)
	v.N = 1
	if err := s.RemoveViewers(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	connected(3)
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	connected(0)
}
