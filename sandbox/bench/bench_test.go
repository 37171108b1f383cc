// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
	"github.com/amsagent/amsagent/sandbox/rig"
	"github.com/amsagent/amsagent/sandbox/standin"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// buildAgent makes the agent, or takes the one that AMSAGENT_BENCH_BINARY names:
// how it is linked is part of what is measured.
func buildAgent(b *testing.B) string {
	b.Helper()
	if path := os.Getenv("AMSAGENT_BENCH_BINARY"); path != "" {
		return path
	}
	return build(b, "../..", "amsagent", "-ldflags=-s -w")
}

func buildSandbox(b *testing.B) string {
	b.Helper()
	return build(b, "..", "sandbox")
}

func build(b *testing.B, module, name string, flags ...string) string {
	b.Helper()
	out := filepath.Join(b.TempDir(), name)
	cmd := exec.Command("go", append(append([]string{"build", "-trimpath", "-buildvcs=false", "-o", out}, flags...), "./cmd/"+name)...)
	cmd.Dir, cmd.Env = module, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("building %s: %v\n%s", name, err, text)
	}
	return out
}

// startMongo runs a MongoDB-wire server in a process of its own, so that its work
// is not counted as ours, and returns its address.
func startMongo(b *testing.B, sandbox string) string {
	b.Helper()
	cmd := exec.Command(sandbox, "mongo", "--listen", "127.0.0.1:0", "--die-with", strconv.Itoa(os.Getpid()))
	out, err := cmd.StdoutPipe()
	must.OK(b, err)
	start(b, cmd)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatalf("the server did not start: %v", err)
	}
	var said struct{ Addr string }
	if err := json.Unmarshal([]byte(strings.TrimPrefix(line, "ready ")), &said); err != nil || said.Addr == "" {
		b.Fatalf("the server said %q: %v", line, err)
	}
	return said.Addr
}

// start runs a program until the benchmark ends.
func start(b *testing.B, cmd *exec.Cmd) *proc.Program {
	b.Helper()
	p, err := proc.Start(cmd)
	must.OK(b, err)
	b.Cleanup(func() { p.Signal(syscall.SIGKILL) })
	return p
}

func usage(b *testing.B, p interface{ Usage() (proc.Usage, error) }) proc.Usage {
	b.Helper()
	u, err := p.Usage()
	must.OK(b, err)
	return u
}

// nodeOptions are a machine whose server is as quick as the real one, with a heartbeat each interval.
func nodeOptions(agent, sandbox, address string, interval time.Duration) rig.Options {
	return rig.Options{
		Options: standin.Options{
			Sandbox: sandbox, Tree: tree.Options{Host: "edge-1", HostResolves: true, NoUnit: true},
			Args: []string{"--period", "5s", "--mongo-timeout", "5s", "--stream-wait", "0s", "--save-at-start=false"},
		},
		Agent: agent, ID: "i-0be0c0000" + strings.ReplaceAll(address, ".", "0"), Address: address,
		Env: []string{"AMSAGENT_METRICS_ADDRESS=127.0.0.1:0", "AMSAGENT_BEAT_INTERVAL=" + interval.String()},
	}
}

// setting reads a number of the environment.
func setting(b *testing.B, name string, usual float64) float64 {
	b.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || v <= 0 {
		b.Fatalf("%s=%q is no number above zero", name, text)
	}
	return v
}

func pause(b *testing.B, d time.Duration) {
	b.Helper()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-b.Context().Done():
		b.Fatal(b.Context().Err())
	}
}

// quantile takes one of values, which it sorts.
func quantile[T ~int64 | ~float64](values []T, q float64) T {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[int(q*float64(len(values)-1)+0.5)]
}
