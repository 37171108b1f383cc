// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
)

// Daemon is a daemon of the agent that runs on a node, or has run. A method that waits ends the test after [Patience].
type Daemon struct {
	*proc.Program
	Node *Node
	// Socket is the control socket, as seen from here.
	Socket string

	mu       sync.Mutex
	notified []string
}

// Daemon starts the daemon and waits until it is up. It is killed at the end of the test.
func (n *Node) Daemon(args ...string) *Daemon {
	n.T.Helper()
	d := &Daemon{Node: n, Socket: n.Path("run/amsagent/control.sock")}
	cmd := n.Cmd(append([]string{"run"}, args...)...)
	if n.StandIn != nil { // a program in another mount namespace does not reach a socket of this one
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+d.listen())
	}
	var err error
	d.Program, err = proc.Start(cmd)
	must.OK(n.T, err)
	n.T.Cleanup(func() {
		d.Signal(syscall.SIGKILL)
		if n.T.Failed() {
			n.T.Logf("log of the daemon:\n%s", d.Output())
		}
		if secret := n.secret(); secret != "" && strings.Contains(d.Output()+strings.Join(d.Notified(), "\n"), secret) {
			n.T.Errorf("the password is in what the daemon said:\n%s", d.Output())
		}
	})
	if n.StandIn != nil {
		d.Notifies("it is up", IsReady)
	} else {
		d.ViewIs("it is up", func(daemon.View) bool { return true })
	}
	return d
}

// listen is the service manager. It returns its socket.
func (d *Daemon) listen() string {
	t := d.Node.T
	t.Helper()
	socket := filepath.Join(ShortDir(t), "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	must.OK(t, err)
	var read sync.WaitGroup
	read.Go(func() {
		b := make([]byte, 8<<10)
		for {
			size, err := conn.Read(b)
			if err != nil {
				return
			}
			d.mu.Lock()
			d.notified = append(d.notified, string(b[:size]))
			d.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		_ = conn.Close()
		read.Wait()
	})
	return socket
}

// Serving starts the daemon and waits until the node is ready and nothing is under way.
func (n *Node) Serving() *Daemon {
	n.T.Helper()
	d := n.Daemon()
	d.ViewIs("it serves", func(v daemon.View) bool {
		// If the cloud refuses to list its hooks, it is asked on.
		return v.Ready && v.Lifecycle != nil && (v.Lifecycle.Start == "" || v.Lifecycle.Start == "proved" && v.Lifecycle.Trouble["discover"] != "")
	})
	return d
}

// IsReady reports whether the service manager is notified of a daemon that is up.
func IsReady(message string) bool {
	return message == "READY=1" || strings.HasPrefix(message, "READY=1\n")
}

// End sends a signal and returns how the daemon ended, and how long it took.
func (d *Daemon) End(sig syscall.Signal) (int, time.Duration) {
	d.Node.T.Helper()
	begin := time.Now()
	d.Signal(sig)
	code, err := d.Wait(Patience)
	if err != nil {
		d.Node.T.Fatalf("%s: %v\n%s", sig, err, d.Output())
	}
	return code, time.Since(begin)
}

// Said counts the lines of the log with a text.
func (d *Daemon) Said(text string) int { return strings.Count(d.Output(), text) }

// Says waits for a text in the log.
func (d *Daemon) Says(text string) {
	d.Node.T.Helper()
	Until(d.Node.T, "the log says "+text, func() string {
		if d.Said(text) == 0 {
			return "so far: " + d.Output()
		}
		return ""
	})
}

// Notified lists its messages to the service manager.
func (d *Daemon) Notified() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.notified)
}

// Notifies waits for a message to the service manager. One that the daemon has sent, even if it has ended since, is read by
// another goroutine.
func (d *Daemon) Notifies(what string, is func(string) bool) {
	d.Node.T.Helper()
	Until(d.Node.T, "the service manager is notified: "+what, func() string {
		if messages := d.Notified(); !slices.ContainsFunc(messages, is) {
			return fmt.Sprintf("so far: %q", messages)
		}
		return ""
	})
}

// Ask asks the control socket. The text is the answer.
func (d *Daemon) Ask(ctx context.Context) (v daemon.View, text string, err error) {
	c := &http.Client{Timeout: Patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", d.Socket)
		},
	}}
	text, code, err := Fetch(ctx, c, "http://daemon/v1/status")
	if err != nil || code != http.StatusOK {
		return v, text, fmt.Errorf("%d: %w", code, err)
	}
	return v, text, json.Unmarshal([]byte(text), &v)
}

// Fetch asks for a page, and returns it and the status.
func Fetch(ctx context.Context, c *http.Client, url string) (string, int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", 0, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", 0, err
	}
	b, err := io.ReadAll(resp.Body)
	return string(b), resp.StatusCode, errors.Join(err, resp.Body.Close())
}

// View is what the daemon says of itself.
func (d *Daemon) View() daemon.View {
	d.Node.T.Helper()
	v, text, err := d.Ask(context.Background())
	if err != nil {
		d.Node.T.Fatalf("%v: %s", err, text)
	}
	return v
}

// ViewIs waits until the daemon says something of itself.
func (d *Daemon) ViewIs(what string, ok func(daemon.View) bool) (v daemon.View) {
	d.Node.T.Helper()
	Until(d.Node.T, "the daemon says: "+what, func() string {
		var text string
		var err error
		if v, text, err = d.Ask(context.Background()); err != nil {
			return err.Error()
		}
		if !ok(v) {
			return text
		}
		return ""
	})
	return v
}

// Beats waits for one more heartbeat.
func (d *Daemon) Beats() daemon.View {
	d.Node.T.Helper()
	was := d.View().Beat.Last
	return d.ViewIs("a beat was written", func(v daemon.View) bool { return v.Beat.Last.After(was) })
}

// Life waits until the daemon says something of the node's going.
func (d *Daemon) Life(what string, ok func(lifecycle.View) bool) lifecycle.View {
	d.Node.T.Helper()
	v := d.ViewIs(what, func(v daemon.View) bool { return v.Lifecycle != nil && ok(*v.Lifecycle) })
	return *v.Lifecycle
}

// Step waits for a step of a drain.
func (d *Daemon) Step(s lifecycle.Step) lifecycle.View {
	d.Node.T.Helper()
	return d.Life("step "+string(s), func(v lifecycle.View) bool { return v.Step == s })
}

// Counted waits until so many viewers were counted in the drain under way.
func (d *Daemon) Counted(viewers int) lifecycle.View {
	d.Node.T.Helper()
	return d.Life(fmt.Sprintf("%d viewers are counted", viewers), func(v lifecycle.View) bool {
		return v.Step == lifecycle.StepDraining && v.Sessions != nil && v.Sessions.Viewers != nil && *v.Sessions.Viewers == viewers
	})
}

// Get asks for a page of the metrics' address.
func (d *Daemon) Get(path string) (string, int) {
	d.Node.T.Helper()
	text, code, err := Fetch(context.Background(), http.DefaultClient, "http://"+d.View().Metrics+path)
	must.OK(d.Node.T, err)
	return text, code
}

// Ready reports what a load balancer hears.
func (d *Daemon) Ready() bool {
	d.Node.T.Helper()
	_, code := d.Get("/readyz")
	return code == http.StatusOK
}

// UntilReady waits for readiness: a server that answers late is out of service for a moment.
func (d *Daemon) UntilReady() {
	d.Node.T.Helper()
	Until(d.Node.T, "the node is ready", func() string {
		if text, code := d.Get("/readyz"); code != http.StatusOK {
			return "so far: " + text
		}
		return ""
	})
}
