// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/sandbox/fakecloud"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
)

// place is where the machines of a story are.
type place interface {
	// intro says what is real here and what is not.
	intro() []string
	// mongo is the address of MongoDB that machines know, and dialed that from here.
	mongo() string
	dialed() string
	// stopMongo makes MongoDB refuse connections, until startMongo.
	stopMongo() error
	startMongo(ctx context.Context) error
	// addresses are those of the two machines.
	addresses() [2]string
	// machine makes a machine with a standalone AMS that runs.
	machine(ctx context.Context, m fakecloud.Machine, meta *fakecloud.Metadata) (machine, error)
	// fed reports whether an edge gets its streams from a publisher of its own.
	fed() bool
	// restored says how exactly a leave restores files here.
	restored() string
	// patience is far more than any step takes, on a busy machine, too.
	patience() time.Duration
	close(ctx context.Context) error
}

// machine is what a story needs of a machine and of the AMS on it.
type machine interface {
	// file is where a file of the machine lies, as seen from here.
	file(name string) string
	// command is a command line of the agent that has not been started.
	command(args ...string) *exec.Cmd
	// client asks from the machine itself.
	client() *http.Client
	// files lists everything that decides how AMS starts: mode, owner, content, path.
	files() ([]string, error)
	// givenBack compares files after a leave with those before the join, and says
	// what holds.
	givenBack(was, is []string) ([]string, error)
	// running identifies the current run of AMS; empty: it does not run.
	running() (string, error)
	publish(ctx context.Context) error
	endStream(ctx context.Context) error
	watch(ctx context.Context) (viewer, error)
	// stillPublished returns an error where AMS has lost its publisher, and leftAlone
	// where the viewer who has left did not do so by itself.
	stillPublished(ctx context.Context) error
	leftAlone() error
	stop(ctx context.Context) error
	// balanced returns where AMS and the agent check answer, for a load balancer here.
	balanced() (serves, check string)
}

// viewer watches a stream.
type viewer interface {
	served() bool
	leave() error
}

// node is a machine in the story.
type node struct {
	machine
	name, id, address, role string
	// serves is where AMS answers, and check is where the agent answers HAProxy's agent check, host:port; "" if they
	// cannot be reached from here.
	serves, check string

	meta    *fakecloud.Metadata
	control *http.Client
	agent   *proc.Program // its daemon; nil if none was started
	last    string        // what the agent logged before it ended
}

// add adds a machine to the story.
func (d *demo) add(m fakecloud.Machine) error {
	n := &node{name: m.Name, id: m.ID, address: m.Address, role: m.Role}
	var err error
	if n.meta, err = d.cloud.Machine(d.ctx, m); err != nil {
		return err
	}
	if n.machine, err = d.place.machine(d.ctx, m, n.meta); err != nil {
		return errors.Join(err, n.meta.Close())
	}
	n.serves, n.check = n.machine.balanced()
	n.control = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", n.file("/run/amsagent/control.sock"))
		},
	}}
	d.nodes = append(d.nodes, n) // from here on there is something to close
	return nil
}

// digest is what sumOf makes of the machine's files.
func (n *node) digest() (string, error) {
	lines, err := n.files()
	return sumOf(lines), err
}

// sumOf is one line for every byte, mode and owner.
func sumOf(files []string) string {
	h := sha256.Sum256([]byte(strings.Join(files, "\n")))
	return hex.EncodeToString(h[:8])
}

// agentRun runs the agent on a machine, shows the command, and returns what it said.
func (d *demo) agentRun(n *node, args ...string) (string, error) {
	stdout, stderr, err := d.agentEnds(n, args...)
	if err != nil {
		return "", fmt.Errorf("amsagent %s: %w\n%s%s", strings.Join(args, " "), err, stdout, stderr)
	}
	return strings.ReplaceAll(stdout, d.dir+"/", ""), nil
}

// agentFails runs the agent as agentRun does, for a command that must fail, and returns
// its errors and its exit code.
func (d *demo) agentFails(n *node, args ...string) (stderr string, code int, err error) {
	stdout, stderr, err := d.agentEnds(n, args...)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return stderr, exit.ExitCode(), nil
	}
	if err == nil {
		err = fmt.Errorf("amsagent %s did not fail:\n%s", strings.Join(args, " "), stdout)
	}
	return "", 0, err
}

// agentEnds shows a command of the agent and waits for its end.
func (d *demo) agentEnds(n *node, args ...string) (stdout, stderr string, err error) {
	d.print("   %s$ amsagent %s", n.name, strings.Join(args, " "))
	cmd := n.command(args...)
	cmd.Env = append(cmd.Env, "AMSAGENT_LOG_LEVEL=error")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	shown := func() error { return nil }
	if args[0] == "nodes" {
		// A table is as wide as its terminal, and wide without one.
		if screen, tty, err := terminal(screenWidth); err == nil {
			read := make(chan struct{})
			go func() {
				defer close(read)
				_, _ = io.Copy(&out, screen) // ends with an error when the last writer has gone
			}()
			cmd.Stdout = tty
			shown = func() error {
				err := tty.Close()
				<-read
				return errors.Join(err, screen.Close())
			}
		}
	}
	p, err := proc.Start(cmd)
	if err == nil {
		err = d.wait(p)
	}
	err = errors.Join(err, shown())
	return strings.ReplaceAll(out.String(), "\r\n", "\n"), errs.String(), err
}

// wait waits for a command's end, and kills it if the demo is cancelled.
func (d *demo) wait(p *proc.Program) error {
	select {
	case <-p.Done():
		return p.Err()
	case <-d.ctx.Done():
		p.Signal(syscall.SIGKILL)
		return context.Cause(d.ctx)
	}
}

// screenWidth is what is shown of a line, besides the margin: one that wraps is
// hard to read.
const screenWidth = 95

// terminal makes one of that many columns: what is written to tty is read from
// screen.
func terminal(columns uint16) (screen, tty *os.File, err error) {
	if screen, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	fd := int(screen.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: columns})
	}
	if err == nil {
		tty, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, screen.Close())
	}
	return screen, tty, nil
}

// daemon starts the daemon, which ends with us at the latest.
func (d *demo) daemon(n *node, args ...string) error {
	d.print("   %s$ amsagent %s &", n.name, strings.Join(args, " "))
	var err error
	n.agent, err = proc.Start(n.command(args...))
	return err
}

// stopAgent ends the daemon.
func (n *node) stopAgent() error {
	if n.agent == nil {
		return nil
	}
	_, err := n.agent.Stop(20 * time.Second)
	n.agent.Signal(syscall.SIGKILL) // if it has not ended
	n.last, n.agent = n.agent.Output(), nil
	return err
}

// diary is the end of the daemon's log, for who has to find out why.
func (n *node) diary() string {
	text := n.last
	if n.agent != nil {
		text = n.agent.Output()
	}
	if text == "" {
		return ""
	}
	return fmt.Sprintf("\nthe last lines of the daemon of %s:\n%s", n.name, strings.TrimSpace(text[max(0, len(text)-2000):]))
}

// view is what the demo needs of what a daemon says of itself.
type view struct {
	Ready     bool   `json:"ready"`
	State     string `json:"state"`
	Metrics   string `json:"metrics"`
	Lifecycle *struct {
		State    string    `json:"state"`
		Step     string    `json:"step"`
		Reason   string    `json:"reason"`
		Progress string    `json:"progress"`
		Counted  time.Time `json:"counted"`
		Sessions *struct {
			Publishers *int `json:"publishers"`
			Viewers    *int `json:"viewers"`
		} `json:"sessions"`
	} `json:"lifecycle"`
}

// ask asks the daemon on its control socket, as `amsagent status` does.
func (n *node) ask(ctx context.Context) (view, error) {
	var v view
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://amsagent/v1/status", nil)
	if err != nil {
		return v, err
	}
	resp, err := n.control.Do(req)
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	return v, json.NewDecoder(resp.Body).Decode(&v)
}

// ready asks as a load balancer does, and returns the status it is answered with.
func (n *node) ready(ctx context.Context, address string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", nil)
	if err != nil {
		return 0, err
	}
	resp, err := n.client().Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// agentCheck asks as HAProxy does, which expects one line.
func (n *node) agentCheck(ctx context.Context) (line string, err error) {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", n.check)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	line, err = bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line), err
}

// until waits until something holds. why says what is missing; "" nothing.
func (d *demo) until(what string, why func() string) error {
	ctx, cancel := context.WithTimeout(d.ctx, d.place.patience())
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		missing := why()
		if missing == "" {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w: %s", what, ctx.Err(), missing)
		}
	}
}
