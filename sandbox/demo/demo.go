// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package demo shows a newcomer what the agent does: two machines join a cluster,
// are seen, and one leaves as it came. The agent is the real binary; MongoDB, the
// cloud and Ant Media Server are those of the sandbox. Every claim on the screen
// is checked while it is made, and a demo that is not as it says fails.
//
// The API is not stable.
package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/sandbox/amsctl"
	"github.com/amsagent/amsagent/sandbox/fakeaws"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// Options says how to run the demo.
type Options struct {
	Agent   string // the agent's binary
	Sandbox string // the sandbox's own binary
	Out     io.Writer
}

// Run runs the demo in a temporary folder and leaves nothing behind.
func Run(ctx context.Context, o Options) (err error) {
	agent, err := filepath.Abs(o.Agent)
	if err != nil {
		return err
	}
	if _, err := os.Stat(agent); err != nil {
		return fmt.Errorf("the agent is not there; `make demo` builds it: %w", err)
	}
	dir, err := os.MkdirTemp("", "amsagent-demo-")
	if err != nil {
		return err
	}
	d := &demo{ctx: ctx, o: o, dir: dir, agent: agent, start: time.Now()}
	defer func() { err = errors.Join(err, d.close()) }()
	return d.run()
}

type demo struct {
	ctx   context.Context
	o     Options
	dir   string
	agent string
	start time.Time
	step  int

	mongo  *mongod.Server
	client *cluster.Client
	nodes  []*node
	checks int
	// untouched is the digest of the machine before anything happened to it.
	untouched string
}

// node is one pretended machine.
type node struct {
	name, id, address string
	tree              tree.Tree
	aws               *fakeaws.Server
	svc               amsctl.Config
	wrapper           string
}

func (d *demo) close() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.ctx), 20*time.Second)
	defer cancel()
	var errs []error
	for _, n := range d.nodes {
		errs = append(errs, n.svc.Stop(ctx), n.aws.Close())
	}
	if d.client != nil {
		errs = append(errs, d.client.Close(ctx))
	}
	if d.mongo != nil {
		errs = append(errs, d.mongo.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

func (d *demo) run() error {
	d.print("amsagent makes a machine with Ant Media Server (AMS) join its cluster on boot, and")
	d.print("leave without a trace. This shows it on two pretended machines of a scaling group.")
	d.print("")
	d.print("Real here: the agent, and all it does to files. Pretended: AMS (a stand-in that")
	d.print("reads its files and behaves as AMS does), MongoDB (FerretDB), and EC2's metadata.")
	for _, step := range []func() error{d.setUp, d.before, d.plan, d.join, d.joinSecond, d.list, d.again, d.status, d.leave, d.after} {
		if err := step(); err != nil {
			return fmt.Errorf("the demo is not as it should be: %w", err)
		}
	}
	d.print("")
	d.print("That was all of it, in %.0f s; %d claims were checked on the way. On a real machine it is", time.Since(d.start).Seconds(), d.checks)
	d.print("one line of user-data:   amsagent join --mongo ADDRESS")
	d.print("Next: amsagent join --help, and README.md.")
	return nil
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
	var err error
	if d.mongo, err = mongod.Start(d.ctx, mongod.Options{Dir: filepath.Join(d.dir, "mongo")}); err != nil {
		return err
	}
	target, err := cluster.ParseTarget(d.mongo.Addr())
	if err != nil {
		return err
	}
	if d.client, err = cluster.Connect(d.ctx, target, cluster.Options{AppName: "demo"}); err != nil {
		return err
	}
	for _, m := range []struct{ name, id, address, role, mac string }{
		{"origin-1", "i-0a1b2c3d4e5f60001", "10.0.1.11", "origin", "0e:49:61:0f:c3:11"},
		{"edge-1", "i-0a1b2c3d4e5f60002", "10.0.2.12", "edge", "0e:49:61:0f:c3:12"},
	} {
		n, err := d.machine(m.name, m.id, m.address, m.role, m.mac)
		if err != nil {
			return err
		}
		d.nodes = append(d.nodes, n)
	}
	return nil
}

func (d *demo) machine(name, id, address, role, mac string) (*node, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	n := &node{name: name, id: id, address: address}
	root := filepath.Join(d.dir, name)
	if n.tree, err = tree.Write(root, tree.Options{Host: name, HostResolves: true, DMI: "aws", HTTPPort: port}); err != nil {
		return nil, err
	}
	i := fakeaws.Sample()
	i.ID, i.Hostname = id, name+".internal"
	i.NICs[0].MAC, i.NICs[0].IPv4s, i.NICs[0].Public = mac, []string{address}, ""
	i.Tags = map[string]string{"amsagent:role": role, "aws:autoscaling:groupName": role + "s"}
	if n.aws, err = fakeaws.Start(d.ctx, fakeaws.Options{Instance: &i}); err != nil {
		return nil, err
	}
	n.svc = amsctl.Config{
		State: filepath.Join(d.dir, name+".service"), Sandbox: d.o.Sandbox, StartWait: 10 * time.Second, StopWait: 10 * time.Second,
		Args: []string{"--root", n.tree.Dir, "--period", "1s", "--mongo-timeout", "5s", "--die-with", strconv.Itoa(os.Getpid())},
	}
	n.wrapper = filepath.Join(d.dir, name+"-service")
	if err := n.svc.WriteWrapper(n.wrapper); err != nil {
		return nil, err
	}
	return n, n.svc.Start(d.ctx, nil)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port := l.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // a TCP listener's address is one
	return port, l.Close()
}

// agentRun runs the agent on a machine, shows the command, and returns what it
// said. The settings that make it look at the pretended machine are in its
// environment.
func (d *demo) agentRun(n *node, args ...string) (string, error) {
	d.print("   %s$ amsagent %s", n.name, strings.Join(args, " "))
	cmd := exec.CommandContext(d.ctx, d.agent, args...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "NO_COLOR=1",
		"AMSAGENT_ROOT=" + n.tree.Root,
		"AMSAGENT_SERVICE_COMMAND=" + n.wrapper,
		"AMSAGENT_AWS_ENDPOINT=" + n.aws.Endpoint(),
		"AMSAGENT_LOG_LEVEL=error",
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("amsagent %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.ReplaceAll(string(out), d.dir+"/", ""), nil
}

// show indents what a command printed, at most so many lines of it.
func (d *demo) show(out string, most int) {
	lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
	for i, l := range lines {
		if i == most {
			d.print("     … and %d more lines", len(lines)-most)
			break
		}
		d.print("     %s", l)
	}
}

// digest is one line for every byte, mode and owner of the installation.
func (n *node) digest() (string, int, error) {
	lines, err := tree.Snapshot(n.tree.Root, "var/lib", "var", "run")
	if err != nil {
		return "", 0, err
	}
	h := sha256.Sum256([]byte(strings.Join(lines, "\n")))
	return hex.EncodeToString(h[:8]), len(lines), nil
}

func (d *demo) before() error {
	n := d.nodes[1]
	d.heading("A machine as AMS's installer leaves it: standalone")
	for _, f := range []struct{ path, grep string }{
		{n.tree.Conf("jee-container.xml"), "cluster start"},
		{n.tree.Conf("red5.properties"), "clusterdb.host"},
		{n.tree.App("LiveApp"), "db.type"},
	} {
		b, err := os.ReadFile(f.path)
		if err != nil {
			return err
		}
		for line := range strings.SplitSeq(string(b), "\n") {
			if strings.Contains(line, f.grep) {
				d.print("     %-64s %s", strings.TrimPrefix(f.path, n.tree.Root), strings.TrimSpace(line))
				break
			}
		}
	}
	sum, files, err := n.digest()
	if err != nil {
		return err
	}
	d.untouched = sum
	d.print("   %d files and folders; every byte, mode and owner of them: %s", files, sum)
	return nil
}

func (d *demo) plan() error {
	n := d.nodes[1]
	was, _, err := n.digest()
	if err != nil {
		return err
	}
	d.heading("What a join would change. A dry run touches nothing")
	out, err := d.agentRun(n, "join", "--mongo", d.mongo.Addr(), "--dry-run")
	if err != nil {
		return err
	}
	d.print("     (of the diffs, the changed lines alone are shown here)")
	d.show(changedLines(out), 60)
	is, _, err := n.digest()
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
	d.heading("The join. It ends well only when AMS itself was seen in the cluster: its own")
	d.print("   document in MongoDB, written after its start, under this machine's address")
	return d.joinNode(d.nodes[1])
}

func (d *demo) joinSecond() error {
	d.heading("A second machine does the same, at its own boot")
	return d.joinNode(d.nodes[0])
}

func (d *demo) joinNode(n *node) error {
	out, err := d.agentRun(n, "join", "--mongo", d.mongo.Addr())
	if err != nil {
		return err
	}
	d.show(out, 6)
	seen, err := d.client.AMSNodesByAddress(d.ctx, n.address)
	return errors.Join(err,
		d.check(strings.HasPrefix(out, "joined: "), "the join did not say that it joined"),
		d.check(len(seen) == 1 && seen[0].Fresh(time.Now()), "AMS has %d documents as %s", len(seen), n.address))
}

// list shows the cluster as MongoDB holds it.
func (d *demo) list() error {
	d.heading("The cluster, as every node reads it from MongoDB")
	return d.printCluster(map[string]string{d.nodes[0].id: "active", d.nodes[1].id: "active"}, 2)
}

func (d *demo) printCluster(states map[string]string, fresh int) error {
	rows, err := d.client.Nodes(d.ctx)
	if err != nil {
		return err
	}
	docs, err := d.client.AMSNodes(d.ctx)
	if err != nil {
		return err
	}
	now, err := d.client.ServerTime(d.ctx)
	if err != nil {
		return err
	}
	d.print("     %-8s %-20s %-11s %-11s %-8s %s", "ROLE", "INSTANCE", "ADDRESS", "ZONE", "STATE", "AMS'S OWN WORD")
	alive := 0
	for _, r := range rows {
		word := "none"
		for _, a := range docs {
			if cluster.SameAddress(a.IP, r.IP) {
				word = fmt.Sprintf("written %.0f s ago", max(now.Sub(a.LastUpdate), 0).Seconds())
				if a.Fresh(time.Now()) {
					alive++
				}
			}
		}
		d.print("     %-8s %-20s %-11s %-11s %-8s %s", r.Role, r.ID, r.IP, r.Zone, r.State, word)
		if err := d.check(string(r.State) == states[r.ID], "%s is %s, not %s", r.ID, r.State, states[r.ID]); err != nil {
			return err
		}
	}
	return errors.Join(
		d.check(len(rows) == len(states), "%d rows, not %d", len(rows), len(states)),
		d.check(alive == fresh, "AMS is seen on %d nodes, not %d", alive, fresh))
}

func (d *demo) again() error {
	n := d.nodes[1]
	was, _, err := n.digest()
	if err != nil {
		return err
	}
	before, err := n.svc.Info()
	if err != nil {
		return err
	}
	d.heading("Joining again: nothing is written, nothing is restarted")
	out, err := d.agentRun(n, "join", "--mongo", d.mongo.Addr())
	if err != nil {
		return err
	}
	d.show(out, 1)
	is, _, err := n.digest()
	if err != nil {
		return err
	}
	after, err := n.svc.Info()
	return errors.Join(err,
		d.check(was == is, "the second join changed the machine"),
		d.check(bytes.Equal(before, after), "the second join restarted AMS"),
		d.check(strings.HasPrefix(out, "nothing to do"), "the second join did something"))
}

func (d *demo) status() error {
	d.heading("The same node from three sides")
	out, err := d.agentRun(d.nodes[1], "status")
	if err != nil {
		return err
	}
	d.show(out, 8)
	return d.check(strings.HasPrefix(out, "active: "), "the node is not active")
}

func (d *demo) leave() error {
	d.heading("Leaving")
	out, err := d.agentRun(d.nodes[1], "leave")
	if err != nil {
		return err
	}
	d.show(out, 4)
	return d.printCluster(map[string]string{d.nodes[0].id: "active", d.nodes[1].id: "left"}, 1)
}

func (d *demo) after() error {
	n := d.nodes[1]
	d.heading("The machine is what it was before the join, byte for byte")
	got, files, err := n.digest()
	if err != nil {
		return err
	}
	d.print("   %d files and folders; every byte, mode and owner of them: %s", files, got)
	status, err := n.svc.Status()
	return errors.Join(err,
		d.check(got == d.untouched, "the digest is %s, and it was %s", got, d.untouched),
		d.check(status == amsctl.Active, "AMS is %s after leaving", status))
}
