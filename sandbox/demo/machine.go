// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
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

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/fakecloud"
	"github.com/amsagent/amsagent/sandbox/internal/port"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
	"github.com/amsagent/amsagent/sandbox/rig"
)

// place is where the machines of a story are. A method that cannot do what it says ends the demo.
type place interface {
	// intro says what is real here and what is not.
	intro() []string
	// mongo is the address of MongoDB that machines know, and dialed that from here.
	mongo() string
	dialed() string
	// stopMongo makes MongoDB refuse connections, until startMongo.
	stopMongo()
	startMongo()
	// addresses are those of the two machines.
	addresses() [2]string
	// machine makes a machine with a standalone AMS that runs.
	machine(m fakecloud.Machine, environ []string) *node
	// fed reports whether an edge gets its streams from a publisher of its own.
	fed() bool
	// restored says how exactly a leave restores files here.
	restored() string
}

// node is a machine in the story.
type node struct {
	*rig.Node
	server
	name, role string
	// serves is where AMS answers, and check is where the agent answers HAProxy's agent check, host:port; "" if they
	// cannot be reached from here.
	serves, check string
	client        *http.Client // asks from the machine itself
	daemon        *rig.Daemon
}

// server is what a story needs of the AMS on a machine.
type server interface {
	// files lists everything that decides how AMS starts: mode, owner, content, path.
	files() []string
	// givenBack compares files after a leave with those before the join, and says what holds.
	givenBack(was, is []string) []string
	// running identifies the current run of AMS; empty: it does not run.
	running() string
	publish()
	endStream()
	watch() viewer
	// stillPublished returns an error if AMS has lost its publisher, and leftAlone one if the viewer who has left did not do so
	// by itself.
	stillPublished() error
	leftAlone() error
}

// viewer watches a stream.
type viewer interface {
	served() bool
	leave()
}

// add adds a machine to the story.
func (d *demo) add(m fakecloud.Machine) {
	meta, err := d.cloud.Machine(d.ctx, m)
	must.OK(d, err)
	d.Cleanup(func() { _ = meta.Close() })
	n := d.place.machine(m, meta.Environ)
	n.name, n.role, n.ID, n.Address, n.Client = m.Name, m.Role, m.ID, m.Address, d.client
	d.nodes = append(d.nodes, n)
}

// free is a loopback address without a listener.
func (d *demo) free() string {
	number, err := port.Free()
	must.OK(d, err)
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(number))
}

// start starts a program that runs until the end of the demo.
func (d *demo) start(cmd *exec.Cmd) {
	p, err := proc.Start(cmd)
	must.OK(d, err)
	d.Cleanup(func() { p.Signal(syscall.SIGKILL) })
}

// digest is one line for every byte, mode and owner of the machine's files.
func (n *node) digest() string { return sumOf(n.files()) }

func sumOf(files []string) string {
	h := sha256.Sum256([]byte(strings.Join(files, "\n")))
	return hex.EncodeToString(h[:8])
}

// agentRun runs the agent on a machine, shows the command, and returns what it said.
func (d *demo) agentRun(n *node, args ...string) string {
	stdout, stderr, err := d.agentEnds(n, args...)
	if err != nil {
		d.Fatalf("amsagent %s: %v\n%s%s", strings.Join(args, " "), err, stdout, stderr)
	}
	return strings.ReplaceAll(stdout, d.dir+"/", "")
}

// agentFails runs the agent as agentRun does, for a command that must fail, and returns its errors and its exit code.
func (d *demo) agentFails(n *node, args ...string) (stderr string, code int) {
	stdout, stderr, err := d.agentEnds(n, args...)
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		d.Fatalf("amsagent %s did not fail: %v\n%s", strings.Join(args, " "), err, stdout)
	}
	return stderr, exit.ExitCode()
}

// agentEnds shows a command of the agent and waits for its end.
func (d *demo) agentEnds(n *node, args ...string) (stdout, stderr string, err error) {
	d.print("   %s$ amsagent %s", n.name, strings.Join(args, " "))
	cmd := n.Cmd(args...)
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
		select {
		case <-p.Done():
			err = p.Err()
		case <-d.ctx.Done():
			p.Signal(syscall.SIGKILL)
			err = context.Cause(d.ctx)
		}
	}
	err = errors.Join(err, shown())
	return strings.ReplaceAll(out.String(), "\r\n", "\n"), errs.String(), err
}

// screenWidth is what is shown of a line, besides the margin: one that wraps is hard to read.
const screenWidth = 95

// terminal makes one of that many columns: what is written to tty is read from screen.
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

// daemon starts the daemon.
func (d *demo) daemon(n *node, args ...string) {
	d.print("   %s$ amsagent run %s &", n.name, strings.Join(args, " "))
	n.daemon = n.Daemon(args...)
}

// ready asks as a load balancer does, and returns the status it is answered with; 0: none.
func (d *demo) ready(n *node) int {
	_, code, err := rig.Fetch(d.ctx, n.client, "http://"+n.daemon.View().Metrics+"/readyz")
	if err != nil {
		return 0
	}
	return code
}

// until waits until something holds. why says what is missing; "" nothing.
func (d *demo) until(what string, why func() string) {
	limit, tick := time.After(rig.Patience), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for {
		missing := why()
		if missing == "" {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			d.Fatalf("waiting until %s: %s", what, missing)
		case <-d.ctx.Done():
			d.FailNow()
		}
	}
}
