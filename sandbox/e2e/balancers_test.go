// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// TestBalancerExamples lets the load balancers check the examples of packaging: HAProxy of this machine and of Debian's testing,
// and nginx of testing, which is the oldest Debian whose nginx finds servers by SRV records.
func TestBalancerExamples(t *testing.T) {
	i := newBalancers(t, "", true).image
	must.OK(t, os.Mkdir(i.dir+"/var/lib/amsagent-balance", 0o755))
	must.OK(t, os.WriteFile(i.dir+"/var/lib/amsagent-balance/haproxy.state", []byte("1\n"), 0o644))
	configs, err := filepath.Glob("../../packaging/examples/balancers/haproxy-*.cfg")
	must.OK(t, err)
	if len(configs) != 3 {
		t.Errorf("%d examples for HAProxy: %v", len(configs), configs)
	}
	here := packageTool(t, "haproxy")
	for _, config := range configs {
		name := filepath.Base(config)
		b, err := os.ReadFile(config)
		must.OK(t, err)
		must.OK(t, os.WriteFile(i.dir+"/etc/haproxy/"+name, b, 0o644))
		t.Run(name, func(t *testing.T) {
			noComplaint(t, "chroot", i.dir, "haproxy", "-c", "-f", "/etc/haproxy/"+name)
			copied := filepath.Join(t.TempDir(), name)
			must.OK(t, os.WriteFile(copied, []byte(strings.NewReplacer("/etc/haproxy/certs/", i.dir+"/etc/haproxy/certs/", "/var/lib/amsagent-balance/", i.dir+"/var/lib/amsagent-balance/").Replace(string(b))), 0o600))
			noComplaint(t, here, "-c", "-f", copied)
		})
	}
	t.Run("nginx-dns.conf", func(t *testing.T) {
		nodeCopy(t, "../../packaging/examples/balancers/nginx-dns.conf", i.dir+"/etc/nginx/nginx.conf")
		noComplaint(t, "chroot", i.dir, "nginx", "-t", "-q")
	})
}

// noComplaint runs a check that succeeds without a warning.
func noComplaint(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil || strings.Contains(strings.ToLower(string(out)), "warn") {
		t.Errorf("%s %v: %v\n%s", name, args, err, out)
	}
}
