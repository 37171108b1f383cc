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
	"github.com/amsagent/amsagent/internal/must"
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
func Run(ctx context.Context, o Options) error {
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
	d := &demo{harness: newHarness(ctx), o: o, dir: dir, agent: agent, words: words, begin: time.Now()}
	switch err = d.run(d.story); {
	case ctx.Err() != nil:
		err = fmt.Errorf("the demo was interrupted: %w", context.Cause(ctx))
		return errors.Join(err, d.close(), os.RemoveAll(dir))
	case err == nil:
		return errors.Join(d.close(), os.RemoveAll(dir))
	}
	failed := d.close() // and the daemons' logs are said
	return errors.Join(fmt.Errorf("the demo failed: %w%s", err, d.said()), failed, os.RemoveAll(dir))
}

// maxParent is what a path may have before ours: that of a socket has 107 bytes.
const maxParent = 40

type demo struct {
	*harness
	o     Options
	dir   string
	agent string
	begin time.Time
	step  int

	words  words
	place  place
	client *cluster.Client
	cloud  *fakecloud.Cloud
	nodes  []*node // the origin, the edge
	viewer viewer
	// balancer is where HAProxy sends viewers on, and page where the agent's page is: URLs.
	balancer, page string
	checks         int
	// untouched are the files of the origin before anything happened to them.
	untouched []string
}

func (d *demo) story() {
	d.print("amsagent makes a machine with Ant Media Server (AMS, a server for live video) a node of a")
	d.print("cluster, and removes it from the cluster without cutting sessions. This demo has two machines:")
	d.print("origin-1 receives streams, edge-1 delivers them to viewers.")
	d.print("")
	if d.o.Real {
		d.place = newRealWorld(d)
	} else {
		d.place = newStandIns(d)
	}
	for _, line := range d.place.intro() {
		d.print("%s", line)
	}
	d.print("%s.", d.words.title)
	if others := d.words.others(); others != "" {
		d.print("(make demo CLOUD=NAME runs it on another cloud: %s.)", others)
	}
	for _, step := range []func(){d.setUp, d.before, d.plan, d.refused, d.join, d.audience, d.scaleIn, d.finish, d.others, d.joinAgain, d.leave} {
		step()
	}
	d.print("")
	d.print("Done in %.0f s; %d claims were checked. On a real machine, one line in the user data joins", time.Since(d.begin).Seconds(), d.checks)
	d.print("(amsagent join --mongo ADDRESS), and systemd runs the daemon (amsagent.service).")
	d.print("Next: build/amsagent --help, and README.md.")
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

// check counts a claim and ends the demo if it does not hold.
func (d *demo) check(ok bool, format string, args ...any) {
	d.checks++
	if !ok {
		d.Fatalf(format, args...)
	}
}

func (d *demo) setUp() {
	target, err := cluster.ParseTarget(d.place.dialed())
	must.OK(d, err)
	d.client, err = cluster.Connect(d.ctx, target, cluster.Options{AppName: "demo"})
	must.OK(d, err)
	d.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(d.ctx), 5*time.Second)
		defer cancel()
		_ = d.client.Close(ctx)
	})
	d.cloud, err = fakecloud.Open(d.ctx, d.o.Cloud, fakecloud.Options{Lead: d.words.lead})
	must.OK(d, err)
	d.Cleanup(func() { must.OK(d, d.cloud.Close()) })
	for i, m := range []fakecloud.Machine{
		{Name: "origin-1", Role: "origin", MAC: "0e:49:61:0f:c3:11"},
		{Name: "edge-1", Role: "edge", MAC: "0e:49:61:0f:c3:12"},
	} {
		m.ID, m.Address = fakecloud.ID(d.o.Cloud, i+1), d.place.addresses()[i]
		d.add(m)
	}
	d.openPage()
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

func (d *demo) before() {
	n := d.nodes[0]
	d.heading("A machine after AMS's installer: standalone, not in a cluster")
	for _, f := range []struct{ path, grep string }{
		{home + "/conf/jee-container.xml", "cluster start"},
		{home + "/conf/red5.properties", "clusterdb.host"},
		{settingsOf(app), "db.type"},
	} {
		b, err := os.ReadFile(n.Path(f.path))
		must.OK(d, err)
		for line := range strings.SplitSeq(string(b), "\n") {
			if strings.Contains(line, f.grep) {
				d.print("     %-64s %s", f.path, strings.TrimSpace(line))
				break
			}
		}
	}
	d.untouched = n.files()
	d.print("   %d files and folders; checksum of all bytes, modes and owners: %s", len(d.untouched), sumOf(d.untouched))
}

// home is where AMS is installed.
const home = "/usr/local/antmedia"

// settingsOf is the file of an application's settings.
func settingsOf(app string) string { return home + "/webapps/" + app + "/WEB-INF/red5-web.properties" }

func (d *demo) plan() {
	n := d.nodes[0]
	was := n.digest()
	d.heading("What a join would change. A dry run writes nothing")
	out := d.agentRun(n, "join", "--mongo", d.place.mongo(), "--dry-run")
	d.print("     (of each diff, only the changed lines)")
	d.show(changedLines(out), 16)
	d.check(was == n.digest(), "the dry run changed the machine")
	d.check(strings.Contains(out, "+	<!-- cluster start -->"), "the plan does not open the cluster sections")
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
func (d *demo) refused() {
	n := d.nodes[0]
	was, before := n.digest(), n.running()
	d.heading("MongoDB is down. A join finds that out before it changes anything")
	d.place.stopMongo()
	out, code := d.agentFails(n, "join", "--mongo", d.place.mongo(), "--timeout", "3s")
	d.place.startMongo()
	for line := range strings.Lines(out) {
		d.print("     %s", strings.Join(fold(line, screenWidth), "\n       "))
	}
	is := n.digest()
	d.print("   Exit code %d. Checksum of the files before: %s, after: %s. AMS still runs", code, was, is)
	d.check(code == exitRefused, "the join without MongoDB exits with %d", code)
	d.check(was == is, "the join without MongoDB changed the machine")
	d.check(before == n.running(), "the join without MongoDB restarted AMS")
}

// exitRefused is the agent's exit code of a command that did nothing, docs/commands.md.
const exitRefused = 3

func (d *demo) join() {
	d.heading("Both machines join, each at its boot. A join succeeds only when AMS itself is in the cluster:")
	d.print("   it wrote its own entry into MongoDB, after its start, with the address of this machine. The role")
	d.print("   (origin, edge) comes from the metadata of the instance")
	for _, n := range d.nodes {
		out := d.agentRun(n, "join", "--mongo", d.place.mongo())
		d.show(out, 4)
		seen := n.Documents()
		d.check(strings.HasPrefix(out, "joined: "), "the join did not say that it joined")
		d.check(len(seen) == 1 && seen[0].Fresh(time.Now()), "AMS has %d documents as %s", len(seen), n.Address)
	}
}

func (d *demo) joinAgain() {
	n := d.nodes[0]
	was, before := n.digest(), n.running()
	d.heading("A second join: nothing is written, nothing is restarted, the stream continues")
	out := d.agentRun(n, "join", "--mongo", d.place.mongo())
	d.show(out, 1)
	err := n.stillPublished()
	d.check(err == nil, "the publisher is gone: %v", err)
	d.check(was == n.digest(), "the second join changed the machine")
	d.check(before == n.running(), "the second join restarted AMS")
	d.check(strings.HasPrefix(out, "nothing to do"), "the second join did something")
}

func (d *demo) leave() {
	n := d.nodes[0]
	d.heading("The stream ends. `amsagent leave` restores the machine, " + d.place.restored())
	n.endStream()
	// A leave refuses to cut sessions, and the server's count is a moment late.
	d.until("the registry shows no publisher", func() string {
		if s := n.Record().Sessions; s == nil || s.Publishers == nil || *s.Publishers != 0 {
			return fmt.Sprintf("%+v", s)
		}
		return ""
	})
	d.show(d.agentRun(n, "leave"), 4)
	d.checks++
	for _, line := range n.givenBack(d.untouched, n.files()) {
		d.print("   %s", line)
	}
	d.check(n.running() != "", "AMS does not run after leaving")
	state := n.Record().State
	d.check(state == cluster.StateLeft, "the row is %s after leaving", state)
	docs, err := d.client.AMSNodes(d.ctx)
	must.OK(d, err)
	d.check(len(docs) == 0, "AMS's list has %d nodes", len(docs))
}
