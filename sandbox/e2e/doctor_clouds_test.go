// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/bootstrap/doctor"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/fakecloud"
)

// TestDoctorSilence: whatever is asked takes the connection and says nothing, the database, the cloud and the daemon, and
// several doctors look at once. Each is over in its time, and lists all.
func TestDoctorSilence(t *testing.T) {
	t.Parallel()
	h := newOnCloud(t, newDatabase(t), newCloud(t, "alibaba", fakecloud.Options{}), 22)
	tcp := silent(t, "tcp", "127.0.0.1:0")
	socket := h.Path("run/amsagent/control.sock")
	must.OK(t, os.MkdirAll(filepath.Dir(socket), 0o755))
	silent(t, "unix", socket)
	for i, v := range h.Env {
		if name, _, _ := strings.Cut(v, "="); strings.HasSuffix(name, "_ENDPOINT") {
			h.Env[i] = name + "=http://" + tcp
		}
	}
	// The doctor's own 15 s, on a machine that is busy with other tests.
	const bound = 32 * time.Second
	var doctors sync.WaitGroup
	for range 3 {
		doctors.Go(func() {
			begin := time.Now()
			out, code := h.Run("doctor", "-o", "json", "--mongo", tcp)
			if took := time.Since(begin); took > bound {
				t.Errorf("it took %s", took)
			}
			var d struct{ Checks []doctor.Result }
			if err := json.Unmarshal([]byte(out), &d); err != nil || code != 6 || len(d.Checks) < 40 {
				t.Errorf("exit %d, %d checks, %v", code, len(d.Checks), err)
			}
			for _, r := range d.Checks {
				if r.Check == "AMS-MONGO" && r.Severity != bootstrap.Bad || r.Check == "AGENT-DAEMON-DOWN" && r.Severity != bootstrap.Unknown {
					t.Errorf("%+v", r)
				}
			}
		})
	}
	doctors.Wait()
}

// silent takes connections and says nothing.
func silent(t *testing.T, network, address string) string {
	t.Helper()
	l, err := net.Listen(network, address)
	must.OK(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
		}
	}()
	return l.Addr().String()
}
