// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
)

// inNamespace tells the test below that it is the child that looks.
const inNamespace = "AMSAGENT_TEST_DETECT_IN_NAMESPACE"

// seenInside is what the child prints.
type seenInside struct {
	Detection metadata.Detection
	Took      time.Duration
}

// A machine in no cloud is told so within a second and a half, however its network fails to answer: with the kernel's real
// errors and the kernel's real silence, in a network namespace of its own.
func TestDetectInNamespaces(t *testing.T) {
	if os.Getenv(inNamespace) != "" {
		lookInside(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("a network namespace is for root")
	}
	for _, tool := range []string{"unshare", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	const addresses = "169.254.169.254 100.100.100.200"
	for _, tt := range []struct {
		name, setup string
		// least is how long it must take, where nothing comes back: else the silence was none.
		least time.Duration
		word  string
	}{
		{"no network", "true", 0, "no connection"},
		{"only a loopback", "ip link set lo up", 0, "no connection"},
		{"unreachable", "ip link set lo up; for a in " + addresses + "; do ip route add unreachable $a; done", 0, "no connection"},
		{"prohibited", "ip link set lo up; for a in " + addresses + "; do ip route add prohibit $a; done", 0, "no connection"},
		{"a route into nothing", "ip link set lo up; for a in " + addresses + "; do ip route add blackhole $a; done", 0, "no connection"},
		{"refused", "ip link set lo up; for a in " + addresses + "; do ip addr add $a/32 dev lo; done; ip addr add fd00:ec2::254/128 dev lo nodad || true", 0, "no connection"},
		{
			// Frames leave and nothing comes back: what a firewall that drops looks like.
			"dropped", "ip link set lo up; ip link add out type veth peer name hole; ip link set out arp off up; ip link set hole arp off up; " +
				"ip addr add 10.9.9.9/24 dev out; ip route add default dev out; ip -6 route add fd00:ec2::254 dev out || true",
			// The bound of a connection and that of the whole are the same second: either may end it, and say so.
			metadata.Options{}.WithDefaults().ProbeTimeout - 50*time.Millisecond, "no: no ",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "unshare", "-n", "sh", "-ec", tt.setup+`; exec "$0" -test.run='^TestDetectInNamespaces$' -test.v`, os.Args[0])
			cmd.Env = append(os.Environ(), inNamespace+"=1")
			out, err := cmd.CombinedOutput()
			if err != nil {
				if strings.Contains(string(out), "Operation not permitted") || strings.Contains(string(out), "Unknown device type") {
					t.Skipf("this machine does not let us: %s", out)
				}
				t.Fatalf("%v\n%s", err, out)
			}
			if strings.Contains(string(out), "--- SKIP") {
				t.Skipf("%s", out)
			}
			_, text, ok := strings.Cut(string(out), "SEEN ")
			text, _, _ = strings.Cut(text, "\n")
			var seen seenInside
			if err := json.Unmarshal([]byte(text), &seen); !ok || err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Logf("generic after %v", seen.Took.Round(time.Millisecond))
			if seen.Detection.Provider != metadata.Generic {
				t.Errorf("detected %s: %+v", seen.Detection.Provider, seen.Detection.Evidence)
			}
			if seen.Took > time.Minute || seen.Took < tt.least {
				t.Errorf("took %v, want at least %v", seen.Took, tt.least)
			}
			checkEvidence(t, seen.Detection)
			asked := 0
			for _, e := range seen.Detection.Evidence {
				if strings.Contains(e.Source, " at http") {
					asked++
					if !strings.Contains(e.Verdict, tt.word) && !strings.Contains(e.Source, "EC2") {
						t.Errorf("%s: %q, want %q in it", e.Source, e.Verdict, tt.word)
					}
				}
			}
			if asked != 4 {
				t.Errorf("%d services were asked, want 4: %+v", asked, seen.Detection.Evidence)
			}
		})
	}
}

// lookInside is the child: it looks at the network of the namespace as a daemon on a machine in no cloud does.
func lookInside(t *testing.T) {
	begin := time.Now()
	d, err := metadata.Detect(t.Context(), metadata.Options{})
	must.OK(t, err)
	took := time.Since(begin)
	if by := d.Decisive().Source; by != "all of the above" {
		t.Skipf("the machine that this runs on is known by %s", by)
	}
	// Not by t.Log, which puts the place before it.
	out, err := json.Marshal(seenInside{Detection: d, Took: took})
	must.OK(t, err)
	if _, err := os.Stdout.WriteString("SEEN " + string(out) + "\n"); err != nil {
		t.Fatal(err)
	}
}
