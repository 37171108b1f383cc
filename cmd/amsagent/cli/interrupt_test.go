// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/internal/must"
)

// processSignals sends a signal to all its receivers, as the system does: support and the commands that it runs.
type processSignals struct {
	mu    sync.Mutex
	asked []chan os.Signal
}

func (p *processSignals) source() (<-chan os.Signal, func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ch := make(chan os.Signal, 2)
	p.asked = append(p.asked, ch)
	return ch, func() {}
}

func (p *processSignals) send(sig os.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ch := range p.asked {
		ch <- sig
	}
}

// hanging listens and answers nothing; it sends SIGTERM when the first client has connected.
func hanging(t *testing.T, network, address string) (addr string, sig *processSignals) {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), network, address)
	must.OK(t, err)
	t.Cleanup(func() { _ = l.Close() })
	sig = &processSignals{}
	go func() {
		for first := true; ; first = false {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
			if first {
				sig.send(syscall.SIGTERM)
			}
		}
	}()
	return l.Addr().String(), sig
}

// A signal while MongoDB, the metadata service or the daemon hangs is exit code 130 in every command, without a result.
func TestInterruptedWhileItHangs(t *testing.T) {
	const mongo, cloud, control = "mongo", "cloud", "control"
	for _, tt := range []struct{ hangs, args string }{
		{mongo, "status"},
		{mongo, "status --strict -o json"},
		{mongo, "status --wait active"},
		{control, "status"},
		{mongo, "nodes"},
		{mongo, "nodes --watch"},
		{mongo, "nodes prune"},
		{mongo, "events"},
		{mongo, "doctor"},
		{cloud, "doctor"},
		{cloud, "config"},
		{cloud, "config -o json"},
		{cloud, "metadata"},
		{cloud, "status"},
		{cloud, "support"},
		{mongo, "drain n1"},
		{control, "drain"},
		{control, "undrain"},
		{control, "event --file /event.json --instance-id i-0abc"},
		{mongo, "deregister --service none"},
	} {
		t.Run(tt.args+" "+tt.hangs, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, map[string]string{"event.json": bridge})
			var sig *processSignals
			switch tt.hangs {
			case mongo:
				m.vars["AMSAGENT_MONGO"], sig = hanging(t, "tcp", "127.0.0.1:0")
			case cloud:
				var addr string
				addr, sig = hanging(t, "tcp", "127.0.0.1:0")
				// A command that needs only the cloud does not connect there.
				m.vars["AMSAGENT_MONGO"], m.vars["AMSAGENT_PROVIDER"], m.vars["AMSAGENT_AWS_ENDPOINT"] = "127.0.0.1:1", "aws", "http://"+addr
			case control:
				must.OK(t, os.MkdirAll(filepath.Dir(m.socket()), 0o755))
				_, sig = hanging(t, "unix", m.socket())
			}
			if strings.HasPrefix(tt.args, "deregister") {
				plant(t, m.root, map[string]string{bootstrap.StateDir + "/state.json!": `{"version":1,"phase":"joined","instance_id":"i-0abc","address":"10.0.0.1"}`})
			}
			m.vars["AMSAGENT_ROOT"] = m.root
			e := &testEnv{vars: m.vars}
			env := e.env()
			env.Signals = sig.source
			env.Executable = func() (string, error) { return exec.LookPath("amsagent") } // TestMain puts it there: support runs it
			if code := Main(strings.Fields(tt.args), env); code != codeInterrupted || e.stdout.String() != "" {
				t.Errorf("exit %d, stdout:\n%s\nstderr:\n%s", code, e.stdout.String(), e.stderr.String())
			}
		})
	}
}

// No change begins after a signal or the command's time.
func TestNoChangeAfterASignal(t *testing.T) {
	g := plainGlobals(&testEnv{})
	m, err := g.bootstrapMachine(false)
	must.OK(t, err)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(&interruptedError{syscall.SIGTERM})
	var sig *interruptedError
	if err := m.Begin(ctx); !errors.As(err, &sig) {
		t.Errorf("%v", err)
	}
}
