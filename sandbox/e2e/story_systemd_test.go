// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/must"
)

// TestSystemdStory is the life of a cluster of an origin and an edge on booted machines, from their first boot by cloud-init
// to the purge, beside a MongoDB with a password and a load balancer that asks the agents. Each step begins where the one
// before it ended.
func TestSystemdStory(t *testing.T) {
	s := &story{
		a:    &storyNode{name: "a", role: "edge", address: "10.77.0.11", goingDown: &goingDown{id: "i-0a1b2c3d4e5f60001"}},
		b:    &storyNode{name: "b", role: "origin", address: "10.77.0.12", goingDown: &goingDown{id: "i-0a1b2c3d4e5f60002"}},
		copy: &storyNode{name: "copy", role: "origin", address: "10.77.0.13", goingDown: &goingDown{id: "i-0a1b2c3d4e5f60003"}},
	}
	s.world = newStoryWorld(t, s.a, s.b, s.copy)
	s.set = packages(t)
	s.world.offer(t, map[string][]byte{"amsagent.deb": s.file(t, s.set.deb[packageNew]), "secret": []byte(storyURI + "\n")})
	s.a.raise(t, s.world, "")
	s.b.raise(t, s.world, "")
	// The agent counts the viewers of this server by its statistics, and those of the other one by connections.
	s.b.onDisk(t, nodeReports+`"$1`+nodeHome+`/conf/red5.properties"
rm -r "$1/opt/cloud/vendor"; cp -a "$1`+nodeHome+`" "$1/opt/cloud/vendor"`)
	for _, step := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"Image", s.image},
		{"GoldenImage", s.goldenImage},
		{"BareImage", s.bareImage},
		{"Reboot", s.reboot},
		{"OtherAddress", s.otherAddress},
		{"AgentUpgrade", s.agentUpgrade},
		{"ServerUpgrade", s.serverUpgrade},
		{"PoweroffWithViewers", s.poweroffWithViewers},
		{"Clone", s.clone},
		{"Purge", s.purge},
	} {
		begin := time.Now()
		ok := t.Run(step.name, step.do)
		t.Logf("%s took %s", step.name, time.Since(begin).Round(100*time.Millisecond))
		if !ok {
			t.Fatalf("%s%s%s%s", s.a.tells(t), s.b.tells(t), s.copy.tells(t), s.world.tells())
		}
	}
}

type story struct {
	world      *storyWorld
	set        packageSet
	a, b, copy *storyNode
	pure       []string // what was on the edge's disk before any agent came
}

func (s *story) file(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	must.OK(t, err)
	return b
}

// image makes a golden image of the edge's disk, as packaging/image does: on a machine of its own, whose server has run.
func (s *story) image(t *testing.T) {
	n, id, address := s.a, s.a.id, s.a.address
	s.pure = n.listing(t)
	n.write(t, nodeFlags, storyFlags+"--litter\n")
	n.instance(t, "i-0a1b2c3d4e5f60009", "10.77.0.19")
	nodeCopy(t, s.set.deb[packageOld], n.disk+"/opt/packages/agent.deb")
	n.boots(t)
	must.Until(t, "a standalone server", func() bool { return n.mode(t) == "standalone" })
	n.sh(t, `dpkg -i /opt/packages/agent.deb
mkdir -p /etc/amsagent
printf '# Written when the image was made.\nmetrics_address: 0.0.0.0:9771\nbeat_interval: 1s\n' >/etc/amsagent/config.yaml
systemctl stop antmedia`)
	r := n.agent(t, 0, "seal", "--yes")
	r.says(t, "sealed: ")
	for _, item := range []string{"markers", "databases", "logs", "machine-id"} {
		if !strings.Contains(r.stdout, "\n  "+item+" ") {
			t.Errorf("a server that has run had nothing of the kind %s: %s", item, r)
		}
	}
	n.sh(t, "cloud-init clean --logs --seed; rm /opt/packages/agent.deb")
	n.goDown(t, "poweroff")
	n.off(t)
	if rows := s.rows(t); len(rows) != 0 {
		t.Errorf("the image's machine has joined: %v", rows)
	}
	n.write(t, nodeFlags, storyFlags)
	n.instance(t, id, address)
}

// rows are all of the registry.
func (s *story) rows(t *testing.T) map[string]bson.M {
	t.Helper()
	return s.a.rows(t)
}

// firstBoot makes a machine a node by its user data, which is the last of so many.
func (s *story) firstBoot(t *testing.T, n *storyNode, nodes int) {
	t.Helper()
	n.slowly(t, func() { n.boots(t) })
	n.isNode(t)
	s.world.serves(t, n)
	n.startedWith(t, "", n.address)
	if rows := s.rows(t); len(rows) != nodes {
		t.Errorf("rows %v", rows)
	}
	n.joinTime(t)
}

// goldenImage: a machine of the image boots for the first time; its user data is that of the template.
func (s *story) goldenImage(t *testing.T) {
	n := s.a
	n.seed(t, storyTemplate(t))
	s.firstBoot(t, n, 1)
}

// bareImage: the package comes with the user data.
func (s *story) bareImage(t *testing.T) {
	n := s.b
	n.seed(t, `#!/bin/sh
set -e
mkdir -p /etc/amsagent
printf 'metrics_address: 0.0.0.0:9771\nbeat_interval: 1s\n' >/etc/amsagent/config.yaml
curl -fsS -o /run/amsagent.deb http://`+storyServices+`/amsagent.deb
apt-get install -y /run/amsagent.deb
echo `+packageThere+`
curl -fsS http://`+storyServices+`/secret | amsagent join --mongo file:-
`)
	s.firstBoot(t, n, 2)
}

// reboot: the edge comes back by itself.
func (s *story) reboot(t *testing.T) {
	n := s.a
	was, undo := n.isNode(t), n.read(t, storyUndo)
	n.goDown(t, "reboot")
	s.world.sees(t, n.name, "DOWN")
	n.off(t)
	if r := n.own(t); r["state"] != "left" {
		t.Errorf("while it was off the row said %v", r["state"])
	}
	n.boots(t)
	now := n.isNode(t)
	if now["boot_id"] == was["boot_id"] || len(s.rows(t)) != 2 {
		t.Errorf("rows %v, before %v", s.rows(t), was)
	}
	if got := n.read(t, storyUndo); got != undo || undo == "" {
		t.Errorf("the undo record was\n%s\nand is\n%s", undo, got)
	}
	n.startedWith(t, n.address)
	if got := strings.Count(n.read(t, "/var/log/cloud-init.log"), userDataStarts); got != 1 {
		t.Errorf("user data was run %d times", got)
	}
	s.world.serves(t, n)
}

// otherAddress: the origin was stopped, and the cloud gives it another address when it boots.
func (s *story) otherAddress(t *testing.T) {
	n := s.b
	was, former := n.isNode(t), n.address
	n.goDown(t, "poweroff")
	n.off(t)
	n.address = "10.77.0.22"
	n.instance(t, n.id, n.address)
	// As a cloud does with its target groups.
	if said, err := s.world.balancer(fmt.Sprintf("set server %ss/%s addr %s port 5080", n.role, n.name, n.address)); err != nil || strings.Contains(said, "No such") {
		t.Fatalf("%v: %s", err, said)
	}
	n.boots(t)
	now := n.isNode(t)
	if now["boot_id"] == was["boot_id"] || len(s.rows(t)) != 2 {
		t.Errorf("rows %v, before %v", s.rows(t), was)
	}
	// The agent repaired the files before the server's first start.
	n.startedWith(t, n.address)
	if d := n.documents(t, former); len(d) != 0 {
		t.Errorf("the server is still at its former address: %v", d)
	}
	if got := n.read(t, nodeDropIn); !strings.Contains(got, n.address) || strings.Contains(got, former) {
		t.Errorf("the drop-in:\n%s", got)
	}
	if out := n.run(t, "grep", "-rlF", former, nodeHome+"/conf", nodeHome+"/webapps", "/etc/hosts", "/etc/systemd/system", "/var/lib/amsagent").stdout; out != "" {
		t.Errorf("the former address is still in\n%s", out)
	}
	if got := n.lines(t, "-o", "cat"); !strings.Contains(got, "AGENT-MOVED") {
		t.Error("AGENT-MOVED is not logged")
	}
	s.world.serves(t, n)
}

// agentUpgrade: an upgrade of the agent's package on the edge does not disturb its viewers.
func (s *story) agentUpgrade(t *testing.T) {
	n := s.a
	was := n.isNode(t)
	viewers := []*storyViewer{s.world.watch(t, n), s.world.watch(t, n)}
	server, daemon, node := n.unit(t, nodeUnit), n.unit(t, daemonUnit), n.unit(t, convergeUnit)
	nodeCopy(t, s.set.deb[packageNew], n.Path("/opt/packages/agent.deb"))
	stop := s.follow(t, n)
	n.run(t, "dpkg", "-i", "/opt/packages/agent.deb").expect(t, 0)
	must.Until(t, "the new agent in the row", func() bool { return n.own(t)["agent_version"] == "v0.2.0-rc.1" })
	states, unready := stop()
	now := n.isNode(t)
	n.beats(t, n.id, 2)
	if len(states) != 1 || states["active"] == 0 {
		t.Errorf("while it was upgraded the row said %v", states)
	}
	t.Logf("the agent was not ready for %s", unready.Round(10*time.Millisecond))
	for _, k := range []string{"state", "state_since", "boot_id", "ip"} {
		if now[k] != was[k] {
			t.Errorf("the row's %s was %v and is %v", k, was[k], now[k])
		}
	}
	if u := n.unit(t, nodeUnit); u["InvocationID"] != server["InvocationID"] {
		t.Error("the server was restarted")
	}
	if u := n.unit(t, convergeUnit); u["InvocationID"] != node["InvocationID"] || u["ActiveState"] != "active" {
		t.Errorf("%s was %v and is %v", convergeUnit, node, u)
	}
	if u := n.unit(t, daemonUnit); u["InvocationID"] == daemon["InvocationID"] || u["ActiveState"] != "active" || u["NRestarts"] != "0" {
		t.Errorf("%s was %v and is %v", daemonUnit, daemon, u)
	}
	for _, v := range viewers {
		if v.cut() {
			t.Error("a viewer was cut")
		}
		v.leave()
	}
	s.world.serves(t, n)
}

// follow looks all the time at the row of a node and at its readiness, until it is stopped. It gives how often it saw each
// state, and for how long the agent was not ready in all.
func (s *story) follow(t *testing.T, n *storyNode) (stop func() (states map[string]int, unready time.Duration)) {
	t.Helper()
	ready := func() bool {
		resp, err := s.world.http(5 * time.Second).Get("http://" + n.address + ":9771/readyz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}
	states, end := map[string]int{}, make(chan struct{})
	var unready time.Duration
	var both sync.WaitGroup
	each := func(do func()) {
		both.Go(func() {
			for {
				do()
				select {
				case <-end:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	each(func() {
		if r := n.own(t); r != nil {
			states[fmt.Sprint(r["state"])]++
		}
	})
	last := time.Now()
	each(func() {
		ok, now := ready(), time.Now()
		if !ok {
			unready += now.Sub(last)
		}
		last = now
	})
	halt := sync.OnceFunc(func() {
		close(end)
		both.Wait()
	})
	t.Cleanup(halt)
	return func() (map[string]int, time.Duration) {
		must.Until(t, "readiness of "+n.name, ready)
		halt()
		return states, unready
	}
}

// serverUpgrade: the vendor's installer ran on the origin without a drain: it moves the server's folder aside, installs its own
// files and starts the server. The agent repairs the files before that start, so the server is a node. Then the machine reboots.
func (s *story) serverUpgrade(t *testing.T) {
	n := s.b
	n.isNode(t)
	undo := n.read(t, storyUndo)
	// The vendor's files here are of the one release there is: the node joined with an older one.
	n.sh(t, `systemctl stop antmedia amsagent
sed -i 's/"release": "[^"]*"/"release": "2.17.1"/' /var/lib/amsagent/state.json
mv `+nodeHome+` `+nodeHome+`-backup
cp -a /opt/cloud/vendor `+nodeHome+`
systemctl start antmedia amsagent`)
	must.Until(t, "a node", func() bool { return n.mode(t) == "cluster" })
	if lines := n.run(t, "journalctl", "--no-pager", "-b", "-o", "cat", "-u", nodeUnit, "-t", "amsagent").stdout; strings.Count(lines, "AMS-DRIFT") != 1 {
		t.Errorf("before the server's start the agent says %q", lines)
	}
	n.goDown(t, "reboot")
	n.off(t)
	n.boots(t)
	n.isNode(t)
	n.startedWith(t, n.address)
	if got := n.read(t, storyUndo); got == "" {
		t.Errorf("no undo record any more; it was\n%s", undo)
	}
	if rows := s.rows(t); len(rows) != 2 {
		t.Errorf("rows %v", rows)
	}
	s.world.serves(t, n)
	n.sh(t, "rm -r "+nodeHome+"-backup")
}

// poweroffWithViewers: two of the origin's three viewers leave in time; the third is served until the deadline.
func (s *story) poweroffWithViewers(t *testing.T) {
	const patience = 30 * time.Second
	n := s.b
	n.write(t, shutdownDropIn, fmt.Sprintf("[Service]\nTimeoutStopSec=%d\n", int(patience.Seconds())))
	n.sh(t, "systemctl daemon-reload")
	n.isNode(t)
	var viewers []*storyViewer
	for range 3 {
		viewers = append(viewers, s.world.watch(t, n))
	}
	must.Until(t, "the count of the viewers", func() bool {
		v, err := n.status()
		return err == nil && v.Sessions.Viewers != nil && *v.Sessions.Viewers == 3
	})
	n.goDown(t, "poweroff")
	s.world.sees(t, n.name, "DOWN")
	t.Logf("the load balancer reports the node down %s after the order", time.Since(n.begun).Round(10*time.Millisecond))
	v, err := n.status()
	if err != nil || v.Lifecycle == nil || v.Ready || n.unit(t, nodeUnit)["ActiveState"] != "active" {
		t.Fatalf("it does not drain any more when the load balancer sees it: %+v, %v", v, err)
	}
	deadline := v.Lifecycle.Deadline
	for i, v := range viewers {
		if v.cut() {
			t.Fatalf("viewer %d was cut", i)
		}
	}
	if r := n.own(t); r["state"] != "draining" {
		t.Errorf("the row says %v", r["state"])
	}
	viewers[0].leave()
	viewers[1].leave()
	<-viewers[2].over
	if early := time.Until(deadline); early > 100*time.Millisecond {
		t.Errorf("the last viewer was cut %s before the deadline", early)
	}
	t.Logf("the last viewer was cut %s after the deadline", time.Since(deadline).Round(10*time.Millisecond))
	n.off(t)
	n.moments(t)
	if r := n.own(t); r["state"] != "left" || fmt.Sprint(r["cut"]) != "1" {
		t.Errorf("the row: %v", r)
	}
	if d := n.documents(t, n.address); len(d) != 0 {
		t.Errorf("the server's documents: %v", d)
	}
	if st := n.sessions(t); st.Cut.Viewers != 1 || st.Left.Viewers != 2 {
		t.Errorf("sessions %+v", st)
	}
	n.onDisk(t, `rm "$1`+shutdownDropIn+`"`)
}

// clone: the cloud starts a machine from an unsealed image of the origin's disk while the origin serves.
func (s *story) clone(t *testing.T) {
	n := s.copy
	n.raise(t, s.world, s.b.disk)
	defer func() {
		if t.Failed() {
			t.Log(n.tells(t)) // the disk is removed after this step
		}
	}()
	n.seed(t, n.onlyDisk(t, storySeed+"/user-data"))
	s.b.boots(t)
	was := s.b.isNode(t)
	n.boots(t)
	row := n.isNode(t)
	if row["boot_id"] == was["boot_id"] {
		t.Errorf("the clone and its origin are treated as the same machine: %v", row)
	}
	// The agent repaired the disk's files before the first start; user data had nothing left to do.
	n.startedWith(t, n.address)
	if got := n.lines(t, "-o", "cat"); !strings.Contains(got, "AGENT-CLONED") {
		t.Error("AGENT-CLONED is not logged")
	}
	now := s.b.isNode(t)
	for _, k := range []string{"state", "state_since", "boot_id", "ip"} {
		if now[k] != was[k] {
			t.Errorf("the clone changed the row of its origin: %s was %v and is %v", k, was[k], now[k])
		}
	}
	s.b.startedWith(t, s.b.address)
	if rows := s.rows(t); len(rows) != 3 {
		t.Errorf("rows %v", rows)
	}
	if d := n.clusternode(t); len(d) != 3 || d[0].ID == d[1].ID || d[1].ID == d[2].ID || d[0].ID == d[2].ID {
		t.Errorf("documents %v", d)
	}
	n.goDown(t, "poweroff")
	n.off(t)
	if r := n.own(t); r["state"] != "left" {
		t.Errorf("the clone's row: %v", r)
	}
}

// purge: the edge leaves and its package is purged: the disk is as the vendor's installer left it.
func (s *story) purge(t *testing.T) {
	n := s.a
	n.isNode(t)
	n.agent(t, 0, "leave").says(t, "left: ")
	must.Until(t, "a standalone server", func() bool { return n.mode(t) == "standalone" })
	n.sh(t, "rm -f /opt/packages/*")
	n.run(t, "dpkg", "-P", "amsagent").expect(t, 0)
	if r := n.own(t); r["state"] != "left" {
		t.Errorf("the row: %v", r)
	}
	if d := n.documents(t, n.address); len(d) != 0 {
		t.Errorf("the server's documents: %v", d)
	}
	s.world.sees(t, n.name, "DOWN")
	if r := n.run(t, "sh", "-c", `ls -d /run/amsagent; pgrep -x amsagent; systemctl list-units --all --no-legend --plain 'amsagent*' | grep -v not-found`); r.stdout != "" {
		t.Errorf("there are still\n%s", r.stdout)
	}
	// What a machine gets at its boots, by systemd and by cloud-init.
	boots := regexp.MustCompile(`^/etc: .* (machine-id|hostname)$`)
	now := slices.DeleteFunc(n.listing(t), boots.MatchString)
	if was := slices.DeleteFunc(slices.Clone(s.pure), boots.MatchString); !slices.Equal(was, now) {
		t.Errorf("not as before\n%s", nodeDifference(was, now))
	}
}

// onlyDisk reads a file of the disk, whether the machine is booted or not.
func (n *storyNode) onlyDisk(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(n.disk, path))
	must.OK(t, err)
	return string(b)
}

const (
	// userDataStarts is what cloud-init writes when it begins to run a script of the user's.
	userDataStarts = "Running command ['/var/lib/cloud/instance/scripts/part-001']"
	// packageThere is what user data says when the package is installed.
	packageThere = "the package is there"
)

// joinTime logs the time from user data to an active node, and its share besides the server's own stop and start. It has no bound:
// the host may be loaded.
func (n *storyNode) joinTime(t *testing.T) {
	t.Helper()
	stamp := regexp.MustCompile(`(?m)^(\S+ \S+) - .*` + regexp.QuoteMeta(userDataStarts)).FindStringSubmatch(n.read(t, "/var/log/cloud-init.log"))
	if stamp == nil {
		t.Fatal("cloud-init.log has no time for user data")
	}
	begin, err := time.Parse("2006-01-02 15:04:05,000", stamp[1])
	must.OK(t, err)
	journal := n.lines(t, "-o", "short-unix", "-u", "cloud-final")
	// The last line with a text.
	at := func(text string) time.Time {
		i := strings.LastIndex(journal, text)
		if i < 0 {
			return time.Time{}
		}
		stamp, _, _ := strings.Cut(journal[strings.LastIndex(journal[:i], "\n")+1:i], " ")
		seconds, err := strconv.ParseFloat(stamp, 64)
		must.OK(t, err)
		return time.UnixMicro(int64(seconds * 1e6))
	}
	ups := regexp.MustCompile(`(?m)^time=(\S+) .* msg=up `).FindAllStringSubmatch(n.read(t, nodeLog), -1)
	stopping := at("Stopping " + nodeUnit)
	active, ok := n.own(t)["state_since"].(bson.DateTime)
	if stopping.IsZero() || !ok || len(ups) != 2 {
		t.Fatalf("the row: %v; the server was up at %v; the journal:\n%s", n.own(t), ups, journal)
	}
	up, err := time.Parse(time.RFC3339Nano, ups[1][1])
	must.OK(t, err)
	if there := at(packageThere); !there.IsZero() {
		t.Logf("%s: fetching and installing the package took %s", n.name, there.Sub(begin).Round(time.Millisecond))
		begin = there
	}
	before, own, after := stopping.Sub(begin), up.Sub(stopping), active.Time().Sub(up)
	t.Logf("%s: from user data to active %s, of which %s were the server's end and start: %s beside it (%s before, %s after)", n.name,
		(before + own + after).Round(time.Millisecond), own.Round(time.Millisecond), (before + after).Round(time.Millisecond),
		before.Round(time.Millisecond), after.Round(time.Millisecond))
}
