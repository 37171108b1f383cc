// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package demo shows a newcomer what the agent does: a join without MongoDB changes
// nothing, two machines join a cluster, one is terminated by a scale-in without cutting
// its viewer, the other leaves and has its files back. The agent and MongoDB are real;
// the cloud and Ant Media Server are the sandbox's, or real servers. Every claim on the
// screen is checked, and the demo fails if one does not hold.
//
// The API is not stable.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/sandbox/fakecloud"
)

// Options says how to run the demo.
type Options struct {
	Agent   string // the agent's binary
	Sandbox string // the sandbox's own binary
	Cloud   string // one of fakecloud.Names
	// Real takes real Ant Media Servers and a real mongod; it needs root and what
	// `make real-fetch` fetches.
	Real bool
	// Mongo is a running server, host:port; it must be empty. Embedded is the
	// program of sandbox/embedded. Without either the demo starts a mongod, and fetches it
	// first if it is missing.
	Mongo, Embedded string

	Out io.Writer
	Log io.Writer // progress of a fetch
}

// Run runs the demo in a temporary folder and leaves nothing behind.
func Run(ctx context.Context, o Options) (err error) {
	words, err := wordsOf(o.Cloud)
	if err != nil {
		return err
	}
	if o.Real && os.Geteuid() != 0 {
		return ErrNotRoot
	}
	agent, err := filepath.Abs(o.Agent)
	if err != nil {
		return err
	}
	if _, err := os.Stat(agent); err != nil {
		return fmt.Errorf("the agent is not there; `make demo` builds it: %w", err)
	}
	parent := os.TempDir()
	if len(parent) > maxParent {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "amsagent-demo-")
	if err != nil {
		return err
	}
	// Clean up also if the terminal is closed, or the reader of a pipe ends early.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	d := &demo{ctx: ctx, o: o, dir: dir, agent: agent, words: words, start: time.Now()}
	defer func() { err = errors.Join(err, d.close()) }()
	return d.run()
}

// maxParent is what a path may have before ours: that of a socket has 107 bytes.
const maxParent = 40

type demo struct {
	ctx   context.Context
	o     Options
	dir   string
	agent string
	start time.Time
	step  int

	words  words
	place  place
	client *cluster.Client
	cloud  *fakecloud.Cloud
	nodes  []*node // the origin, the edge
	viewer viewer
	// balancer is nil without HAProxy.
	balancer *balancer
	page     *page // nil before it is served
	checks   int
	// untouched are the files of the origin before anything happened to them.
	untouched []string
}

func (d *demo) close() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.ctx), 20*time.Second)
	defer cancel()
	var errs []error
	if d.viewer != nil {
		_ = d.viewer.leave() // it may have before
	}
	if d.balancer != nil {
		d.balancer.Signal(syscall.SIGKILL)
	}
	if d.page != nil {
		d.page.Signal(syscall.SIGKILL)
	}
	for _, n := range d.nodes {
		errs = append(errs, n.stopAgent(), n.stop(ctx), n.meta.Close())
	}
	if d.cloud != nil {
		errs = append(errs, d.cloud.Close())
	}
	if d.client != nil {
		errs = append(errs, d.client.Close(ctx))
	}
	if d.place != nil {
		errs = append(errs, d.place.close(ctx))
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

func (d *demo) run() error {
	d.print("amsagent makes a machine with Ant Media Server (AMS, a server for live video) a node of a")
	d.print("cluster, and removes it from the cluster without cutting sessions. This demo has two machines:")
	d.print("origin-1 receives streams, edge-1 delivers them to viewers.")
	d.print("")
	if err := d.open(); err != nil {
		return err
	}
	for _, line := range d.place.intro() {
		d.print("%s", line)
	}
	d.print("%s.", d.words.title)
	if others := d.words.others(); others != "" {
		d.print("(make demo CLOUD=NAME runs it on another cloud: %s.)", others)
	}
	for _, step := range []func() error{d.setUp, d.before, d.plan, d.refused, d.join, d.audience, d.scaleIn, d.finish, d.others, d.joinAgain, d.leave} {
		if err := step(); err != nil {
			if d.ctx.Err() != nil {
				return fmt.Errorf("the demo was interrupted: %w", context.Cause(d.ctx))
			}
			for _, n := range d.nodes {
				err = fmt.Errorf("%w%s", err, n.diary())
			}
			return fmt.Errorf("the demo failed: %w", err)
		}
	}
	d.print("")
	d.print("Done in %.0f s; %d claims were checked. On a real machine, one line in the user data joins", time.Since(d.start).Seconds(), d.checks)
	d.print("(amsagent join --mongo ADDRESS), and systemd runs the daemon (amsagent.service).")
	d.print("Next: build/amsagent --help, and README.md.")
	return nil
}

// open makes the place of the story.
func (d *demo) open() error {
	if d.o.Real {
		w, err := newRealWorld(d.ctx, d.agent)
		if err == nil {
			d.place = w
		}
		return err
	}
	p, err := newStandIns(d.ctx, d.dir, d.agent, d.o)
	if err == nil {
		d.place = p
	}
	return err
}

func (d *demo) print(format string, args ...any) {
	// An error of the terminal is visible to its reader.
	_, _ = fmt.Fprintf(d.o.Out, format+"\n", args...)
}

func (d *demo) heading(text string) {
	d.step++
	d.print("")
	d.print("%d. %s", d.step, text)
}

// check counts a claim and fails the demo if it does not hold.
func (d *demo) check(ok bool, format string, args ...any) error {
	d.checks++
	if !ok {
		return fmt.Errorf(format, args...)
	}
	return nil
}

func (d *demo) setUp() error {
	target, err := cluster.ParseTarget(d.place.dialed())
	if err != nil {
		return err
	}
	if d.client, err = cluster.Connect(d.ctx, target, cluster.Options{AppName: "demo"}); err != nil {
		return err
	}
	if d.cloud, err = fakecloud.Open(d.ctx, d.o.Cloud, fakecloud.Options{Lead: d.words.lead}); err != nil {
		return err
	}
	for i, m := range []fakecloud.Machine{
		{Name: "origin-1", Role: "origin", MAC: "0e:49:61:0f:c3:11"},
		{Name: "edge-1", Role: "edge", MAC: "0e:49:61:0f:c3:12"},
	} {
		m.ID, m.Address = fakecloud.ID(d.o.Cloud, i+1), d.place.addresses()[i]
		if err := d.add(m); err != nil {
			return err
		}
	}
	return d.openPage()
}

// show indents the output of a command, at most so many lines of it. It folds lines that are wider than the screen.
func (d *demo) show(out string, most int) {
	lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
	for i, l := range lines {
		if i == most {
			d.print("     … and %d more lines", len(lines)-most)
			break
		}
		if utf8.RuneCountInString(l) > screenWidth {
			text := strings.TrimLeft(l, " ")
			margin := l[:len(l)-len(text)]
			l = margin + strings.Join(fold(text, screenWidth-len(margin)-2), "\n       "+margin)
		}
		d.print("     %s", l)
	}
}

func (d *demo) before() error {
	n := d.nodes[0]
	d.heading("A machine after AMS's installer: standalone, not in a cluster")
	for _, f := range []struct{ path, grep string }{
		{home + "/conf/jee-container.xml", "cluster start"},
		{home + "/conf/red5.properties", "clusterdb.host"},
		{settingsOf(app), "db.type"},
	} {
		b, err := os.ReadFile(n.file(f.path))
		if err != nil {
			return err
		}
		for line := range strings.SplitSeq(string(b), "\n") {
			if strings.Contains(line, f.grep) {
				d.print("     %-64s %s", f.path, strings.TrimSpace(line))
				break
			}
		}
	}
	var err error
	if d.untouched, err = n.files(); err != nil {
		return err
	}
	d.print("   %d files and folders; checksum of all bytes, modes and owners: %s", len(d.untouched), sumOf(d.untouched))
	return nil
}

// home is where AMS is installed.
const home = "/usr/local/antmedia"

// settingsOf is the file of an application's settings.
func settingsOf(app string) string { return home + "/webapps/" + app + "/WEB-INF/red5-web.properties" }

func (d *demo) plan() error {
	n := d.nodes[0]
	was, err := n.digest()
	if err != nil {
		return err
	}
	d.heading("What a join would change. A dry run writes nothing")
	out, err := d.agentRun(n, "join", "--mongo", d.place.mongo(), "--dry-run")
	if err != nil {
		return err
	}
	d.print("     (of each diff, only the changed lines)")
	d.show(changedLines(out), 16)
	is, err := n.digest()
	if err != nil {
		return err
	}
	return errors.Join(
		d.check(was == is, "the dry run changed the machine"),
		d.check(strings.Contains(out, "+	<!-- cluster start -->"), "the plan does not open the cluster sections"))
}

// changedLines leaves the context out of diffs.
func changedLines(out string) string {
	var b strings.Builder
	inDiff := false
	for line := range strings.Lines(out) {
		inDiff = inDiff || strings.HasPrefix(line, "--- ")
		switch {
		case !inDiff:
			b.WriteString(line)
		case strings.HasPrefix(line, "+++ b/"):
			b.WriteString("  " + strings.TrimPrefix(line, "+++ b"))
		case strings.HasPrefix(line, "--- "):
		case strings.HasPrefix(line, "+"), strings.HasPrefix(line, "-"):
			b.WriteString("    " + line[:1] + " " + strings.TrimLeft(line[1:], "\t "))
		}
	}
	return b.String()
}

// refused shows a join while MongoDB is down.
func (d *demo) refused() error {
	n := d.nodes[0]
	was, err := n.digest()
	if err != nil {
		return err
	}
	before, err := n.running()
	if err != nil {
		return err
	}
	d.heading("MongoDB is down. A join finds that out before it changes anything")
	if err := d.place.stopMongo(); err != nil {
		return err
	}
	out, code, err := d.agentFails(n, "join", "--mongo", d.place.mongo(), "--timeout", "3s")
	if err = errors.Join(err, d.place.startMongo(d.ctx)); err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		d.print("     %s", strings.Join(fold(line, screenWidth), "\n       "))
	}
	is, err := n.digest()
	if err != nil {
		return err
	}
	after, err := n.running()
	d.print("   Exit code %d. Checksum of the files before: %s, after: %s. AMS still runs", code, was, is)
	return errors.Join(err,
		d.check(code == exitRefused, "the join without MongoDB exits with %d", code),
		d.check(was == is, "the join without MongoDB changed the machine"),
		d.check(before == after, "the join without MongoDB restarted AMS"))
}

// exitRefused is the agent's exit code of a command that did nothing, docs/commands.md.
const exitRefused = 3

func (d *demo) join() error {
	d.heading("Both machines join, each at its boot. A join succeeds only when AMS itself is in the cluster:")
	d.print("   it wrote its own entry into MongoDB, after its start, with the address of this machine. The role")
	d.print("   (origin, edge) comes from the metadata of the instance")
	if err := d.joinNode(d.nodes[0]); err != nil {
		return err
	}
	return d.joinNode(d.nodes[1])
}

func (d *demo) joinNode(n *node) error {
	out, err := d.agentRun(n, "join", "--mongo", d.place.mongo())
	if err != nil {
		return err
	}
	d.show(out, 4)
	seen, err := d.client.AMSNodesByAddress(d.ctx, n.address)
	return errors.Join(err,
		d.check(strings.HasPrefix(out, "joined: "), "the join did not say that it joined"),
		d.check(len(seen) == 1 && seen[0].Fresh(time.Now()), "AMS has %d documents as %s", len(seen), n.address))
}

func (d *demo) joinAgain() error {
	n := d.nodes[0]
	was, err := n.digest()
	if err != nil {
		return err
	}
	before, err := n.running()
	if err != nil {
		return err
	}
	d.heading("A second join: nothing is written, nothing is restarted, the stream continues")
	out, err := d.agentRun(n, "join", "--mongo", d.place.mongo())
	if err != nil {
		return err
	}
	d.show(out, 1)
	is, err := n.digest()
	if err != nil {
		return err
	}
	after, err := n.running()
	if err != nil {
		return err
	}
	err = n.stillPublished(d.ctx)
	return errors.Join(
		d.check(err == nil, "the publisher is gone: %v", err),
		d.check(was == is, "the second join changed the machine"),
		d.check(before == after, "the second join restarted AMS"),
		d.check(strings.HasPrefix(out, "nothing to do"), "the second join did something"))
}

func (d *demo) leave() error {
	n := d.nodes[0]
	d.heading("The stream ends. `amsagent leave` restores the machine, " + d.place.restored())
	if err := n.endStream(d.ctx); err != nil {
		return err
	}
	// A leave refuses to cut sessions, and the server's count is a moment late.
	if err := d.until("the registry shows no publisher", func() string {
		row, err := d.client.Node(d.ctx, n.id)
		switch s := row.Sessions; {
		case err != nil:
			return err.Error()
		case s == nil || s.Publishers == nil || *s.Publishers != 0:
			return fmt.Sprintf("%+v", s)
		}
		return ""
	}); err != nil {
		return err
	}
	out, err := d.agentRun(n, "leave")
	if err != nil {
		return err
	}
	d.show(out, 4)
	files, err := n.files()
	if err != nil {
		return err
	}
	holds, back := n.givenBack(d.untouched, files)
	for _, line := range holds {
		d.print("   %s", line)
	}
	run, err := n.running()
	if err != nil {
		return err
	}
	row, err := d.client.Node(d.ctx, n.id)
	if err != nil {
		return err
	}
	docs, err := d.client.AMSNodes(d.ctx)
	return errors.Join(err,
		d.check(back == nil, "after leaving: %v", back),
		d.check(run != "", "AMS does not run after leaving"),
		d.check(row.State == cluster.StateLeft, "the row is %s after leaving", row.State),
		d.check(len(docs) == 0, "AMS's list has %d nodes", len(docs)))
}
