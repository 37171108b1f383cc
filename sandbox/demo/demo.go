// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package demo shows a newcomer what the agent does: two machines join a cluster
// and are seen, one goes by a scale-in without cutting its viewer off, the other
// leaves as it came. The agent is the real binary; MongoDB, the cloud and Ant Media
// Server are those of the sandbox, or a real mongod and real servers. Every claim on the screen is checked while it is
// made, and a demo that is not as it says fails.
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
	// Mongo is a server that runs already, host:port; it must be empty. Embedded is the
	// program of sandbox/embedded. Without either a mongod is started, and fetched first if
	// there is none.
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
	// Whoever closes the window, or reads the first lines only, finds all tidied up.
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
	cloud  fakecloud.Cloud
	nodes  []*node // the origin, the edge
	viewer viewer
	checks int
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
	for _, n := range d.nodes {
		errs = append(errs, n.stopAgent(ctx), n.stop(ctx), n.meta.Close())
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
	d.print("amsagent makes a machine with Ant Media Server (AMS), a server for live video, a node of a")
	d.print("cluster, and takes it out again without cutting anybody off. This shows it on two machines:")
	d.print("origin-1 takes streams in, edge-1 passes them on to viewers.")
	d.print("")
	if err := d.open(); err != nil {
		return err
	}
	for _, line := range d.place.intro() {
		d.print("%s", line)
	}
	d.print("%s.", d.words.title)
	if others := d.words.others(); others != "" {
		d.print("(make demo CLOUD=NAME tells the same of others: %s.)", others)
	}
	for _, step := range []func() error{d.setUp, d.before, d.plan, d.join, d.audience, d.scaleIn, d.finish, d.others, d.again, d.leave} {
		if err := step(); err != nil {
			if d.ctx.Err() != nil {
				return fmt.Errorf("the demo was ended: %w", context.Cause(d.ctx))
			}
			for _, n := range d.nodes {
				err = fmt.Errorf("%w%s", err, n.diary())
			}
			return fmt.Errorf("the demo is not as it should be: %w", err)
		}
	}
	d.print("")
	d.print("That was all of it, in %.0f s; %d claims were checked on the way. On a real machine it is one line", time.Since(d.start).Seconds(), d.checks)
	d.print("in the script that a cloud runs at boot (user-data):   amsagent join --mongo ADDRESS")
	d.print("and the daemon as a service:                           amsagent run")
	d.print("Next: amsagent --help, and README.md.")
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
	// A screen that cannot be written to is found out by whoever reads it.
	_, _ = fmt.Fprintf(d.o.Out, format+"\n", args...)
}

func (d *demo) heading(text string) {
	d.step++
	d.print("")
	d.print("%d. %s", d.step, text)
}

// check counts a claim and fails the demo where it does not hold.
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
	return nil
}

// show indents what a command printed, at most so many lines of it, and of them
// what a screen has room for.
func (d *demo) show(out string, most int) {
	lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
	for i, l := range lines {
		if i == most {
			d.print("     … and %d more lines", len(lines)-most)
			break
		}
		if r := []rune(l); len(r) > screenWidth {
			l = string(r[:screenWidth-1]) + "…"
		}
		d.print("     %s", l)
	}
}

func (d *demo) before() error {
	n := d.nodes[0]
	d.heading("A machine as AMS's installer leaves it: standalone, it knows of no cluster")
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
	d.print("   %d files and folders; one sum over every byte, mode and owner: %s", len(d.untouched), sumOf(d.untouched))
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
	d.heading("What a join would change. A dry run touches nothing")
	out, err := d.agentRun(n, "join", "--mongo", d.place.mongo(), "--dry-run")
	if err != nil {
		return err
	}
	d.print("     (of the diffs, the changed lines alone are shown here)")
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

func (d *demo) join() error {
	d.heading("Both machines join, each at its own boot. A join ends well only when AMS itself was seen in the")
	d.print("   cluster: its own entry in MongoDB, written after its start, under this machine's address")
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

func (d *demo) again() error {
	n := d.nodes[0]
	was, err := n.digest()
	if err != nil {
		return err
	}
	before, err := n.running()
	if err != nil {
		return err
	}
	d.heading("Joining again: nothing is written, nothing is restarted, the concert goes on")
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
	d.heading("The concert is over. Leaving by hand: the machine is what it was before, " + d.place.restored())
	if err := n.endStream(d.ctx); err != nil {
		return err
	}
	// A leave refuses while the last count knows of somebody.
	if err := d.until("the origin counts nobody", func() string {
		row, err := d.client.Node(d.ctx, n.id)
		if s := row.Sessions; err != nil || s == nil || s.Publishers == nil || s.Viewers == nil || *s.Publishers+*s.Viewers > 0 {
			return fmt.Sprintf("%+v, %v", s, err)
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
