// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
)

const (
	Bad     = bootstrap.Bad
	Warning = bootstrap.Warning
	Unknown = bootstrap.Unknown
	Good    = bootstrap.Good
)

// treesDir holds the project's own installations, written by hand.
const treesDir = "../../sandbox/tree/files"

const (
	container = "usr/local/antmedia/conf/jee-container.xml"
	server    = "usr/local/antmedia/conf/red5.properties"
	liveApp   = "usr/local/antmedia/webapps/LiveApp/WEB-INF/red5-web.properties"
)

// clinic is a machine to be looked at: a tree, and whatever the rest of the world would say.
type clinic struct {
	t       *testing.T
	root    string
	running bool // looked at as the running machine, although it is a tree
	o       Options
	service fakeService

	// What stands in the place of an answer, where a test has one.
	mongo  *future[reached]
	look   *future[cluster.Look]
	status *future[*bootstrap.Status]
	dial   func(context.Context, string) error
}

type fakeService struct {
	state ams.State
	err   error
}

func (s *fakeService) Name() string                             { return ams.DefaultUnit }
func (s *fakeService) State(context.Context) (ams.State, error) { return s.state, s.err }

// errTouched: the doctor never starts or stops a server.
var errTouched = errors.New("the doctor touches the server")

func (s *fakeService) Start(context.Context) error   { return errTouched }
func (s *fakeService) Stop(context.Context) error    { return errTouched }
func (s *fakeService) Restart(context.Context) error { return errTouched }
func (s *fakeService) Reload(context.Context) error  { return errTouched }

func newClinic(t *testing.T) *clinic {
	t.Helper()
	c := &clinic{t: t, root: t.TempDir()}
	must.OK(t, os.CopyFS(filepath.Join(c.root, ams.DefaultDir), os.DirFS(filepath.Join(treesDir, "3.0"))))
	release, err := ams.ParseRelease("3.0.3")
	must.OK(t, err)
	c.put("etc/hostname", "node-1\n")
	c.put("etc/hosts", "127.0.0.1 localhost\n10.0.0.5 node-1\n")
	c.o = Options{
		Machine: &bootstrap.Machine{Root: c.root, Service: &c.service, Release: release, Version: "test"},
		Join: bootstrap.JoinRequest{Identify: func(context.Context) (metadata.Instance, error) {
			return metadata.Instance{ID: "i-1", Provider: "aws", Address: netip.MustParseAddr("10.0.0.5")}, nil
		}},
		Connect: cluster.Options{Timeout: 1},
		Drain:   func() time.Duration { return 1 },
	}
	c.o.Machine.Connect = func(context.Context, cluster.Target) (*cluster.Client, error) {
		return nil, &cluster.Error{Kind: cluster.KindRefused, Op: "asking", Err: errors.New("refused")}
	}
	return c
}

func (c *clinic) at(path string) string { return filepath.Join(c.root, path) }

func (c *clinic) put(path, content string) {
	c.t.Helper()
	must.OK(c.t, errors.Join(os.MkdirAll(filepath.Dir(c.at(path)), 0o755), os.WriteFile(c.at(path), []byte(content), 0o644)))
}

func (c *clinic) link(path, to string) {
	c.t.Helper()
	must.OK(c.t, errors.Join(os.MkdirAll(filepath.Dir(c.at(path)), 0o755), os.Symlink(to, c.at(path))))
}

func (c *clinic) edit(path, old, repl string) {
	c.t.Helper()
	c.replace(path, old, repl, -1)
}

// replace is [strings.Replace] in a file.
func (c *clinic) replace(path, old, repl string, n int) {
	c.t.Helper()
	b, err := os.ReadFile(c.at(path))
	if err != nil || !strings.Contains(string(b), old) {
		c.t.Fatalf("%s does not hold %q: %v", path, old, err)
	}
	c.put(path, strings.Replace(string(b), old, repl, n))
}

func (c *clinic) mode(path string, mode os.FileMode) {
	c.t.Helper()
	must.OK(c.t, os.Chmod(c.at(path), mode))
}

func (c *clinic) remove(path string) {
	c.t.Helper()
	must.OK(c.t, os.RemoveAll(c.at(path)))
}

func (c *clinic) target(s string) {
	c.t.Helper()
	t, err := cluster.ParseTarget(s)
	must.OK(c.t, err)
	c.o.Join.Mongo = t
}

// join makes the files those of a node, as a join does, and the state file that of a proved one.
func (c *clinic) join(mongo string) {
	c.t.Helper()
	c.target(mongo)
	m := *c.o.Machine
	m.Service, m.Euid, m.DropIn = ams.None{}, os.Geteuid(), c.o.Machine.DropIn
	if _, err := m.Join(c.t.Context(), bootstrap.JoinRequest{Mongo: c.o.Join.Mongo, Address: "10.0.0.5", Offline: true}); err != nil {
		c.t.Fatal(err)
	}
	c.state("joined")
}

func (c *clinic) state(phase string) {
	c.put("var/lib/amsagent/state.json", fmt.Sprintf(`{"version":1,"phase":%q,"instance_id":"i-1","address":"10.0.0.5"}`, phase))
}

func finished[T any](v T, err error) *future[T] {
	done := make(chan struct{})
	close(done)
	return &future[T]{done: done, value: v, err: err}
}

// check makes one check.
func (c *clinic) check(id string) []Result {
	c.t.Helper()
	p := newPatient(c.o)
	p.running, p.mongo, p.look, p.status = c.running, c.mongo, c.look, c.status
	if c.dial != nil {
		p.dial = c.dial
	}
	p.start(c.t.Context())
	for _, row := range checks() {
		if row.id != id {
			continue
		}
		var out []Result
		for _, r := range row.run(c.t.Context(), p) {
			out = append(out, row.complete(r, c.o))
		}
		return out
	}
	c.t.Fatalf("no check %s", id)
	return nil
}

// aCase is one machine and what a check says of it.
type aCase struct {
	check, name string
	make        func(c *clinic)
	verdict     bootstrap.Severity
	id          string // "" is the check's
	seen        string // part of it
}

func runCases(t *testing.T, cases []aCase) {
	t.Helper()
	for _, tt := range cases {
		t.Run(tt.check+"/"+tt.name, func(t *testing.T) {
			c := newClinic(t)
			if tt.make != nil {
				tt.make(c)
			}
			want := tt.id
			if want == "" {
				want = tt.check
			}
			results := c.check(tt.check)
			if len(results) == 0 {
				t.Fatal("no result at all")
			}
			i := slices.IndexFunc(results, func(r Result) bool { return r.ID == want && r.Severity == tt.verdict })
			if i < 0 {
				i = slices.IndexFunc(results, func(r Result) bool { return r.ID == want })
			}
			if i < 0 {
				t.Fatalf("no %s in %+v", want, results)
			}
			r := results[i]
			if r.Severity != tt.verdict || !strings.Contains(r.Text, tt.seen) {
				t.Errorf("%s: %q, want %s: %q", r.Severity, r.Text, tt.verdict, tt.seen)
			}
			if r.Title == "" || r.Group == "" || r.Text == "" || r.Page != "amsagent doctor --explain "+want || !slices.Contains(IDs(), r.ID) {
				t.Errorf("incomplete: %+v", r)
			}
			if (r.Severity == Bad || r.Severity == Warning) && r.Hint == "" && r.Err == nil {
				t.Errorf("no hint: %+v", r)
			}
		})
	}
}
