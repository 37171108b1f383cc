// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
)

func TestLookupHostname(t *testing.T) {
	const name = "ams-node-1"
	gives := func(list ...string) func(context.Context, string) ([]netip.Addr, error) {
		return func(_ context.Context, name string) ([]netip.Addr, error) {
			if name != "ams-node-1" {
				return nil, errors.New("asked for " + name)
			}
			return addrs(list...), nil
		}
	}
	h := resolved(t.Context(), name, gives("10.0.0.5", "127.0.1.1", "fe80::5%eth0"))
	if !h.Resolvable() || h.Addr().String() != "10.0.0.5" || len(h.Addrs) != 3 {
		t.Errorf("%+v", h)
	}
	h = resolved(t.Context(), name, gives())
	if h.Resolvable() || h.Addr().IsValid() || h.Problem == "" {
		t.Errorf("%+v", h)
	}
	h = resolved(t.Context(), name, func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no answer") })
	if h.Resolvable() || h.Problem != "no answer" {
		t.Errorf("%+v", h)
	}
	t.Run("a resolver that hangs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			h := resolved(t.Context(), name, func(ctx context.Context, _ string) ([]netip.Addr, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			})
			if h.Resolvable() || !h.TimedOut || !strings.Contains(h.Problem, "deadline") || time.Since(begin) != hostnameLimit {
				t.Errorf("%+v after %s", h, time.Since(begin))
			}
		})
	})
	// With the second for the detection of the cloud, a join begins within two.
	if hostnameLimit > 900*time.Millisecond {
		t.Errorf("a dead resolver costs %s", hostnameLimit)
	}
	// The test machine has a name; it may not resolve.
	if h, err := LookupHostname(t.Context(), ""); err != nil || h.Name == "" || h.Resolvable() == (h.Problem != "") {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestLookupHostnameBelowRoot(t *testing.T) {
	for name, c := range map[string]struct {
		files   map[string]string
		want    []netip.Addr
		problem string
	}{
		"own line":   {map[string]string{"etc/hostname": "node-1\n", "etc/hosts": "127.0.0.1 localhost\n10.0.0.5\tnode-1.internal NODE-1 # me\n"}, addrs("10.0.0.5"), ""},
		"IPv4 first": {map[string]string{"etc/hostname": "# c\n\n node-1", "etc/hosts": "fd00::5 node-1\n10.0.0.5 node-1\n10.0.0.5 node-1"}, addrs("10.0.0.5", "fd00::5"), ""},
		"only part of another name": {
			map[string]string{"etc/hostname": "node-1\n", "etc/hosts": "10.0.0.99 ams-node-10\n10.0.0.98 db-for-node-1.internal\n#10.0.0.5 node-1\n10.0.0.97 x # node-1\nnonsense node-1\n10.0.0.21\n"}, nil, "neither /etc/hosts",
		},
		"no hosts":       {map[string]string{"etc/hostname": "node-1\n"}, nil, "neither /etc/hosts"},
		"a folder":       {map[string]string{"etc/hostname": "node-1\n", "etc/hosts/": ""}, nil, "not a regular file"},
		"absolute links": {map[string]string{"etc/hostname": "-> /run/hostname", "run/hostname": "node-1", "etc/hosts": "-> /srv/hosts", "srv/hosts": "10.0.0.5 node-1\n"}, addrs("10.0.0.5"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := LookupHostname(t.Context(), plant(t, c.files))
			if err != nil || h.Name != "node-1" || h.Resolvable() == (h.Problem != "") || !strings.Contains(h.Problem, c.problem) {
				t.Errorf("%+v, %v", h, err)
			}
			must.NoDiff(t, "addresses", h.Addrs, c.want, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }))
		})
	}
	for name, files := range map[string]map[string]string{
		"no hostname":    {"etc/hosts": "127.0.0.1 x"},
		"empty hostname": {"etc/hostname": "\n#x\n"},
	} {
		if h, err := LookupHostname(t.Context(), plant(t, files)); err == nil {
			t.Errorf("%s: %+v", name, h)
		}
	}
}

func TestGetentAddrs(t *testing.T) {
	const out = "fe80::1%eth0    STREAM \n::ffff:10.0.0.5 STREAM node-1\n10.0.0.5        DGRAM  \n10.0.0.5        RAW    \n127.0.1.1 STREAM\nnonsense\n\n"
	if got := hostAddrs([]byte(out), ""); len(got) != 3 || got[0].String() != "10.0.0.5" || got[1].String() != "127.0.1.1" {
		t.Errorf("%v", got)
	}
}
