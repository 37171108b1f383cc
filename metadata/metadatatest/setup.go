// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadatatest

import (
	"net/http"
	"net/netip"
	"os"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// Fixture returns a file of testdata.
func Fixture(tb testing.TB, name string) string {
	tb.Helper()
	b, err := os.ReadFile("testdata/" + name)
	must.OK(tb, err)
	return string(b)
}

// Sends sets Options.Local; "" means none.
func Sends(v4, v6 string) func(*cloud.Options) {
	return func(o *cloud.Options) {
		o.Local = func() (a, b netip.Addr) {
			a, _ = netip.ParseAddr(v4)
			b, _ = netip.ParseAddr(v6)
			return a, b
		}
	}
}

// RoundTrip is an in-memory transport.
type RoundTrip func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f RoundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
