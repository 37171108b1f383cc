// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/amsagent/amsagent/sandbox/amsctl"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/fakecloud"
	"github.com/amsagent/amsagent/sandbox/internal/port"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/realmongo"
	"github.com/amsagent/amsagent/sandbox/standin"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// standIns are folders of this machine with the sandbox's stand-in for AMS, and its
// MongoDB.
type standIns struct {
	dir, agent, sandbox, cloud string

	db       *mongod.Server
	database string        // what it is
	release  func() error  // of a server that runs already
	embedded *proc.Program // FerretDB
}

func newStandIns(ctx context.Context, dir, agent string, o Options) (_ *standIns, err error) {
	p := &standIns{dir: dir, agent: agent, sandbox: o.Sandbox, cloud: o.Cloud}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close(ctx))
		}
	}()
	options, err := p.chooseDatabase(ctx, o)
	if err != nil {
		return nil, err
	}
	p.db, err = mongod.Start(ctx, options)
	return p, err
}

// chooseDatabase is the server of the operator, else the embedded one if the caller has
// built it, else a mongod.
func (p *standIns) chooseDatabase(ctx context.Context, o Options) (mongod.Options, error) {
	switch {
	case o.Mongo != "":
		address, release, err := realmongo.Borrow(ctx, o.Mongo)
		p.release, p.database = release, "MongoDB at "+o.Mongo
		return mongod.Options{Backend: address}, err
	case o.Embedded != "":
		address, err := p.startEmbedded(o.Embedded)
		p.database = "a database that speaks MongoDB's protocol (FerretDB)"
		return mongod.Options{Backend: address}, err
	default:
		binary, err := realmongo.Fetch(ctx, o.Log)
		p.database = "MongoDB (a mongod)"
		return mongod.Options{Binary: binary}, err
	}
}

// startEmbedded starts the program of sandbox/embedded, which prints its address.
func (p *standIns) startEmbedded(program string) (address string, err error) {
	cmd := exec.Command(program, filepath.Join(p.dir, "embedded"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if _, err := cmd.StdinPipe(); err != nil { // it ends when this is closed
		return "", err
	}
	if p.embedded, err = proc.Start(cmd); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("starting the embedded database: %w", err)
	}
	return strings.TrimSpace(line), nil
}

func (p *standIns) close(context.Context) error {
	var err error
	if p.db != nil {
		err = p.db.Close()
	}
	if p.release != nil {
		err = errors.Join(err, p.release())
	}
	if p.embedded != nil {
		p.embedded.Signal(syscall.SIGKILL)
	}
	return err
}

func (p *standIns) intro() []string {
	return []string{
		"Real: the agent, everything it does to files, and " + p.database + ".",
		"Emulated: the machines, AMS (a stand-in that reads the same files and behaves as AMS does; as",
		"root, make demo REAL=1 runs the real one), and the cloud:",
	}
}

func (p *standIns) mongo() string           { return p.db.Addr() }
func (p *standIns) dialed() string          { return p.db.Addr() }
func (p *standIns) addresses() [2]string    { return [2]string{"10.0.1.11", "10.0.2.12"} }
func (p *standIns) fed() bool               { return false }
func (p *standIns) restored() string        { return "byte for byte" }
func (p *standIns) patience() time.Duration { return 2 * time.Minute }

func (p *standIns) stopMongo() error { return p.db.Faults().Set(mongod.Fault{Mode: mongod.Refuse}) }

func (p *standIns) startMongo(context.Context) error {
	p.db.Faults().Clear()
	return nil
}

// standIn is one fake machine.
type standIn struct {
	*standin.Machine
	agent string
	meta  *fakecloud.Metadata

	http  string // where its AMS answers
	check string // where its agent answers HAProxy
}

func (p *standIns) machine(ctx context.Context, m fakecloud.Machine, meta *fakecloud.Metadata) (machine, error) {
	r, err := standin.New(standin.Options{
		Dir: filepath.Join(p.dir, m.Name+".d"), Root: filepath.Join(p.dir, m.Name), Command: "ams-service", Sandbox: p.sandbox,
		Tree: tree.Options{Host: m.Name, HostResolves: true, DMI: p.cloud},
		Args: []string{"--period", "1s", "--request-timeout", "5s", "--save-at-start=false"},
		// AMS is asked for its viewers. If it does not answer they are unknown, and a drain waits.
		Reports: true, BootID: "00000000-0000-4000-8000-" + strings.ReplaceAll(m.MAC, ":", ""),
	})
	if err != nil {
		return nil, err
	}
	n := &standIn{
		Machine: r, agent: p.agent, meta: meta,
		http: net.JoinHostPort("127.0.0.1", strconv.Itoa(r.HTTPPort)),
	}
	number, err := port.Free()
	if err != nil {
		return nil, err
	}
	n.check = net.JoinHostPort("127.0.0.1", strconv.Itoa(number))
	return n, n.Service.Start(ctx, nil)
}

func (n *standIn) balanced() (serves, check string) { return n.http, n.check }

func (n *standIn) file(name string) string { return n.Path(name) }

func (n *standIn) client() *http.Client { return http.DefaultClient }

func (n *standIn) files() ([]string, error) {
	return tree.Snapshot(n.Tree.Root, "var/lib", "var", "run", "proc")
}

func (n *standIn) givenBack(was, is []string) ([]string, error) {
	if !slices.Equal(was, is) {
		return nil, errors.New("files are not what they were")
	}
	return []string{fmt.Sprintf("%d files and folders; checksum of all bytes, modes and owners: %s, as in step 1", len(is), sumOf(is))}, nil
}

func (n *standIn) running() (string, error) {
	switch status, err := n.Service.Status(); {
	case err != nil:
		return "", err
	case status == amsctl.Inactive:
		return "", nil
	case status != amsctl.Active:
		return "", fmt.Errorf("AMS is %s", status)
	}
	info, err := n.Service.Info()
	return string(info), err
}

// stats are the sessions of the machine's AMS, also after its end.
func (n *standIn) stats() (fakeams.Stats, error) {
	st, err := n.Live(context.Background())
	if errors.Is(err, amsctl.ErrNotRunning) {
		return fakeams.ReadStats(n.Service.StatsFile())
	}
	return st, err
}

func (n *standIn) publish(ctx context.Context) error {
	_, err := n.Service.Control(ctx, http.MethodPost, "/stream", url.Values{"app": {app}, "id": {stream}, "announced": {"true"}})
	return err
}

func (n *standIn) endStream(ctx context.Context) error {
	_, err := n.Service.Control(ctx, http.MethodDelete, "/stream", url.Values{"app": {app}, "id": {stream}})
	return err
}

func (n *standIn) stillPublished(context.Context) error {
	st, err := n.stats()
	if err == nil && (st.Live.Publishers != 1 || st.Cut != (fakeams.Counts{})) {
		err = fmt.Errorf("it has lost its publisher: %+v", st)
	}
	return err
}

func (n *standIn) leftAlone() error {
	st, err := n.stats()
	if err == nil && (st.State != fakeams.Stopped || st.Served.Viewers != 1 || st.Left.Viewers != 1 || st.Cut != (fakeams.Counts{})) {
		err = fmt.Errorf("AMS was %s with %+v", st.State, st)
	}
	return err
}

func (n *standIn) stop(ctx context.Context) error { return n.Service.Stop(ctx) }

// connection is a viewer with a connection of its own.
type connection struct {
	conn net.Conn
	r    *bufio.Reader
}

func (n *standIn) watch(ctx context.Context) (viewer, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", n.http)
	if err != nil {
		return nil, err
	}
	v := &connection{conn: conn, r: bufio.NewReader(conn)}
	_, err = fmt.Fprintf(conn, "GET /%s/play/%s?kind=hls HTTP/1.1\r\nHost: edge\r\n\r\n", app, stream)
	line := ""
	for err == nil && line != "\r\n" { // to the end of the answer's head
		if line, err = v.r.ReadString('\n'); strings.HasPrefix(line, "HTTP/") && !strings.Contains(line, " 200 ") {
			err = fmt.Errorf("the viewer gets %q", strings.TrimSpace(line))
		}
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return v, nil
}

// served reports whether the viewer's connection is still open.
func (v *connection) served() bool {
	if err := v.conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		return false
	}
	_, err := v.r.ReadByte()
	return err == nil || errors.Is(err, os.ErrDeadlineExceeded)
}

func (v *connection) leave() error { return v.conn.Close() }

// command returns a command of the agent on the fake machine.
func (n *standIn) command(args ...string) *exec.Cmd {
	cmd := n.Command(append([]string{n.agent}, args...)...)
	cmd.Env = append(cmd.Env,
		"TERM=xterm", "LANG="+os.Getenv("LANG"), "LC_ALL="+os.Getenv("LC_ALL"), "LC_CTYPE="+os.Getenv("LC_CTYPE"),
		"AMSAGENT_METRICS_ADDRESS=127.0.0.1:0", "AMSAGENT_AGENT_CHECK_ADDRESS="+n.check)
	cmd.Env = append(cmd.Env, n.meta.Environ...)
	return cmd
}
