// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// red5.properties belongs to the server's user and must not make root connect to other machines.
func TestDialThisMachine(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }))
	defer srv.Close()
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	must.OK(t, err)
	for _, host := range []string{"127.0.0.1", "localhost", "::ffff:127.0.0.1"} {
		if l := CheckLiveness(t.Context(), nil, "http://"+net.JoinHostPort(host, port)); l.State != "no-endpoint" {
			t.Errorf("%s: %s", host, l)
		}
	}
	// Reserved for documentation: the test must not send anything there.
	for _, host := range []string{"192.0.2.1", "2001:db8::1", "169.254.169.254", "224.0.0.1", "::1%25lo", "::ffff:192.0.2.1", "fe80::1%25lo"} {
		base := "http://" + net.JoinHostPort(host, port)
		if l := CheckLiveness(t.Context(), nil, base); l.State != LiveUnknown || !strings.Contains(l.Detail, "no address of this machine") {
			t.Errorf("%s: %s", host, l)
		}
		if _, err := ReadStatistics(t.Context(), nil, base, "token"); !errors.Is(err, errNotThisMachine) {
			t.Errorf("%s: %v", host, err)
		}
	}
	if l := CheckLiveness(t.Context(), nil, "http://"+net.JoinHostPort("127.0.0.9", port)); l.State != LiveStarting {
		t.Errorf("another address of the loopback: %s", l)
	}
}
