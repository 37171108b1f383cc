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
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/amsctl"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/fakecloud"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/realmongo"
	"github.com/amsagent/amsagent/sandbox/rig"
	"github.com/amsagent/amsagent/sandbox/standin"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// standIns are folders of this machine with the sandbox's stand-in for AMS, and its MongoDB.
type standIns struct {
	d        *demo
	db       *mongod.Server
	database string // what it is
}

func newStandIns(d *demo) *standIns {
	p := &standIns{d: d}
	var err error
	// It outlives an interrupt: what is closed then still speaks to it.
	p.db, err = mongod.Start(context.WithoutCancel(d.ctx), p.chooseDatabase())
	must.OK(d, err)
	d.Cleanup(func() { must.OK(d, p.db.Close()) })
	return p
}

// chooseDatabase is the server of the operator, else the embedded one if the caller has built it, else a mongod.
func (p *standIns) chooseDatabase() mongod.Options {
	d := p.d
	switch {
	case d.o.Mongo != "":
		address, release, err := realmongo.Borrow(d.ctx, d.o.Mongo)
		must.OK(d, err)
		d.Cleanup(func() { must.OK(d, release()) })
		p.database = "MongoDB at " + d.o.Mongo
		return mongod.Options{Backend: address}
	case d.o.Embedded != "":
		p.database = "a database that speaks MongoDB's protocol (FerretDB)"
		return mongod.Options{Backend: p.startEmbedded(d.o.Embedded)}
	default:
		binary, err := realmongo.Fetch(d.ctx, d.o.Log)
		must.OK(d, err)
		p.database = "MongoDB (a mongod)"
		return mongod.Options{Binary: binary}
	}
}

// startEmbedded starts the program of sandbox/embedded, which prints its address.
func (p *standIns) startEmbedded(program string) (address string) {
	cmd := exec.Command(program, filepath.Join(p.d.dir, "embedded"))
	out, err := cmd.StdoutPipe()
	must.OK(p.d, err)
	_, err = cmd.StdinPipe() // it ends when this is closed
	must.OK(p.d, err)
	p.d.start(cmd)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		p.d.Fatalf("starting the embedded database: %v", err)
	}
	return strings.TrimSpace(line)
}

func (p *standIns) intro() []string {
	return []string{
		"Real: the agent, everything it does to files, and " + p.database + ".",
		"Emulated: the machines, AMS (a stand-in that reads the same files and behaves as AMS does; as",
		"root, make demo REAL=1 runs the real one), and the cloud:",
	}
}

func (p *standIns) mongo() string        { return p.db.Addr() }
func (p *standIns) dialed() string       { return p.db.Addr() }
func (p *standIns) addresses() [2]string { return [2]string{"10.0.1.11", "10.0.2.12"} }
func (p *standIns) fed() bool            { return false }
func (p *standIns) restored() string     { return "byte for byte" }
func (p *standIns) stopMongo()           { must.OK(p.d, p.db.Faults().Set(mongod.Fault{Mode: mongod.Refuse})) }
func (p *standIns) startMongo()          { p.db.Faults().Clear() }

// standIn is the stand-in on a machine.
type standIn struct {
	*rig.Node
	http string // its address
}

func (p *standIns) machine(m fakecloud.Machine, environ []string) *node {
	check := p.d.free()
	n := rig.New(p.d, rig.Options{
		Options: standin.Options{
			Dir: filepath.Join(p.d.dir, m.Name+".d"), Root: filepath.Join(p.d.dir, m.Name), Command: "ams-service", Sandbox: p.d.o.Sandbox,
			Tree: tree.Options{Host: m.Name, HostResolves: true, DMI: p.d.o.Cloud},
			Args: []string{"--period", "1s", "--request-timeout", "5s", "--save-at-start=false"},
			// AMS is asked for its viewers. If it does not answer they are unknown, and a drain waits.
			Reports: true, BootID: "00000000-0000-4000-8000-" + strings.ReplaceAll(m.MAC, ":", ""),
		},
		Agent: p.d.agent,
		Env: append([]string{
			"TERM=xterm", "LANG=" + os.Getenv("LANG"), "LC_ALL=" + os.Getenv("LC_ALL"), "LC_CTYPE=" + os.Getenv("LC_CTYPE"),
			"AMSAGENT_METRICS_ADDRESS=127.0.0.1:0", "AMSAGENT_AGENT_CHECK_ADDRESS=" + check,
		}, environ...),
	})
	s := &standIn{n, net.JoinHostPort("127.0.0.1", strconv.Itoa(n.StandIn.HTTPPort))}
	return &node{Node: n, server: s, serves: s.http, check: check, client: http.DefaultClient}
}

func (s *standIn) files() []string {
	lines, err := tree.Snapshot(s.StandIn.Tree.Root, "var/lib", "var", "run", "proc")
	must.OK(s.T, err)
	return lines
}

func (s *standIn) givenBack(was, is []string) []string {
	if !slices.Equal(was, is) {
		s.T.Fatal("after leaving: files are not what they were")
	}
	return []string{fmt.Sprintf("%d files and folders; checksum of all bytes, modes and owners: %s, as in step 1", len(is), sumOf(is))}
}

func (s *standIn) running() string {
	status, err := s.StandIn.Service.Status()
	must.OK(s.T, err)
	switch status {
	case amsctl.Active:
	case amsctl.Inactive:
		return ""
	default:
		return string(status)
	}
	info, err := s.StandIn.Service.Info()
	if errors.Is(err, amsctl.ErrNotRunning) {
		return ""
	}
	must.OK(s.T, err)
	return string(info)
}

// stats are the sessions of the machine's AMS, also after its end.
func (s *standIn) stats() (fakeams.Stats, error) {
	st, err := s.TryLive()
	if errors.Is(err, amsctl.ErrNotRunning) {
		return fakeams.ReadStats(s.StandIn.Service.StatsFile())
	}
	return st, err
}

func (s *standIn) publish()   { s.People(http.MethodPost, "/stream", "id", stream, "announced", "true") }
func (s *standIn) endStream() { s.People(http.MethodDelete, "/stream", "id", stream) }

func (s *standIn) stillPublished() error {
	st, err := s.stats()
	if err == nil && (st.Live.Publishers != 1 || st.Cut != (fakeams.Counts{})) {
		err = fmt.Errorf("it has lost its publisher: %+v", st)
	}
	return err
}

func (s *standIn) leftAlone() error {
	st, err := s.stats()
	if err == nil && (st.State != fakeams.Stopped || st.Served.Viewers != 1 || st.Left.Viewers != 1 || st.Cut != (fakeams.Counts{})) {
		err = fmt.Errorf("AMS was %s with %+v", st.State, st)
	}
	return err
}

// connection is a viewer with a connection of its own.
type connection struct {
	conn net.Conn
	r    *bufio.Reader
}

func (s *standIn) watch() viewer {
	conn, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", s.http)
	must.OK(s.T, err)
	v := &connection{conn: conn, r: bufio.NewReader(conn)}
	_, err = fmt.Fprintf(conn, "GET /%s/play/%s?kind=hls HTTP/1.1\r\nHost: edge\r\n\r\n", app, stream)
	line := ""
	for err == nil && line != "\r\n" { // to the end of the answer's head
		if line, err = v.r.ReadString('\n'); strings.HasPrefix(line, "HTTP/") && !strings.Contains(line, " 200 ") {
			err = fmt.Errorf("the viewer gets %q", strings.TrimSpace(line))
		}
	}
	must.OK(s.T, err)
	return v
}

// served reports whether the viewer's connection is still open.
func (v *connection) served() bool {
	if err := v.conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		return false
	}
	_, err := v.r.ReadByte()
	return err == nil || errors.Is(err, os.ErrDeadlineExceeded)
}

func (v *connection) leave() { _ = v.conn.Close() }
