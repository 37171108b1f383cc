// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/fakeams"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/realmongo"
	"github.com/amsagent/amsagent/sandbox/rig"
)

const (
	shutdownStats    = "/var/log/antmedia/stats.json"
	shutdownPatience = "/etc/systemd/system/amsagent.service.d/50-patience.conf"
	shutdownDropIn   = "/etc/systemd/system/amsagent.service.d/90-short.conf"
)

// TestSystemdShutdown shuts down a machine with sessions, repeatedly with one disk. Each step begins (except the first) and ends with
// a machine that is off.
func TestSystemdShutdown(t *testing.T) {
	s := &goingDown{machine: newMachine(t), id: nodeID}
	// The daemon counts viewers by the server's statistics; --stats keeps the counts after the server has ended. The journal must
	// survive the shutdown.
	s.onDisk(t, `mkdir -p "$1/var/log/journal"
`+nodeReports+`"$1`+nodeHome+`/conf/red5.properties"`)
	s.write(t, nodeFlags, "--control="+serverControl+"\n--period=1s\n--mongo-timeout=1s\n--stats="+shutdownStats+"\n")
	// The unit's own 15 minutes would delay the end of a failed test.
	s.write(t, shutdownPatience, "[Service]\nTimeoutStopSec=60s\n")
	s.steps(t, []downStep{
		{"NoLeave", s.noLeave},
		{"NoSessions", s.noSessions},
		{"UntilTheyEnd", s.untilTheyEnd},
		{"ServiceCommand", s.serviceCommand},
		{"UntilTheDeadline", s.untilTheDeadline},
		{"InTheMiddleOfADrain", s.inTheMiddle},
		{"KilledAgent", s.killedAgent},
		{"NoMongo", s.noMongo},
		{"NoMongoNoSessions", s.noMongoNoSessions},
		{"Reboot", s.reboots},
		{"Hook", s.hook},
		{"GoogleCloud", s.googleCloud},
	})
}

// downStep is a shutdown under one condition.
type downStep struct {
	name string
	do   func(*testing.T)
}

// steps runs the steps in order, up to the first that fails.
func (s *goingDown) steps(t *testing.T, steps []downStep) {
	t.Helper()
	for _, step := range steps {
		if !t.Run(step.name, step.do) {
			// Also the previous boot, which has the shutdown.
			t.Logf("the journal:\n%s\nof all units:\n%s", s.lines(t, "-o", "short-monotonic"), s.journal("-o", "short-monotonic", "-p", "notice", "-n", "200"))
			t.FailNow()
		}
	}
}

// goingDown is a machine that shuts down.
type goingDown struct {
	*machine
	id    string    // of the instance
	begun time.Time // of the shutdown
}

// up boots the machine and waits until its node serves.
func (s *goingDown) up(t *testing.T) bson.M {
	t.Helper()
	s.onDisk(t, `rm -f "$1`+nodeStarts+`"`)
	s.boot(t)
	r := s.active(t, s.id, nodeAddress)
	must.Until(t, "readiness", func() bool { v, err := s.status(); return err == nil && v.Ready })
	return r
}

// goDown starts a systemctl poweroff or reboot.
func (s *goingDown) goDown(t *testing.T, verb string) {
	t.Helper()
	s.begun = time.Now()
	s.run(t, "systemctl", verb).expect(t, 0)
}

// off waits until the machine is off.
func (s *goingDown) off(t *testing.T) {
	t.Helper()
	s.offWithin(t, 90*time.Second)
}

func (s *goingDown) offWithin(t *testing.T, most time.Duration) {
	t.Helper()
	for limit := time.Now().Add(most); syscall.Kill(s.leader, 0) == nil; {
		if time.Now().After(limit) {
			t.Fatal("the machine does not go down")
		}
		<-time.After(20 * time.Millisecond)
	}
	t.Logf("off %s after the order", time.Since(s.begun).Round(time.Millisecond))
	s.tell(t, "poweroff")
	s.leader = 0
}

// status asks the daemon, which answers for as long as it drains.
func (s *goingDown) status() (daemon.View, error) {
	return viewAt(s.Path("/run/amsagent/control.sock"))
}

// viewAt asks a daemon at its socket how things are.
func viewAt(socket string) (daemon.View, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	v, _, err := (&rig.Daemon{Socket: socket}).Ask(ctx)
	return v, err
}

// viewers adds (POST) or removes (DELETE) n viewers, and returns how many there are. A server whose database is away reports an error
// and removes them all the same.
func (s *goingDown) viewers(t *testing.T, method string, n int) int {
	t.Helper()
	ask := func(method, path string) []byte {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+serverControl+path, nil)
		must.OK(t, err)
		resp, err := s.http.Do(req)
		must.OK(t, err)
		defer func() { _ = resp.Body.Close() }()
		var b json.RawMessage
		_ = json.NewDecoder(resp.Body).Decode(&b)
		return b
	}
	if n > 0 {
		ask(method, "/viewers?app=LiveApp&stream=s1&n="+strconv.Itoa(n))
	}
	var st fakeams.Stats
	must.OK(t, json.Unmarshal(ask(http.MethodGet, "/stats"), &st))
	return st.Live.Viewers
}

// watched lets viewers come and waits until the agent knows of them.
func (s *goingDown) watched(t *testing.T, n int) {
	t.Helper()
	if got := s.viewers(t, http.MethodPost, n); got != n {
		t.Fatalf("%d viewers, want %d", got, n)
	}
	s.counted(t, n)
}

// counted waits until the daemon knows how many watch: what it counts while the server starts is unknown.
func (s *goingDown) counted(t *testing.T, n int) {
	t.Helper()
	must.Until(t, "the count of the viewers", func() bool {
		v, err := s.status()
		return err == nil && v.Sessions.Viewers != nil && *v.Sessions.Viewers == n
	})
}

// draining waits until the node gets no new sessions.
func (s *goingDown) draining(t *testing.T) {
	t.Helper()
	must.Until(t, "readiness off", func() bool { v, err := s.status(); return err == nil && !v.Ready })
	ready := time.Since(s.begun)
	must.Until(t, "a draining row", func() bool { return s.rows(t)[s.id]["state"] == "draining" })
	t.Logf("readiness off within %s, the row draining within %s", ready.Round(time.Millisecond), time.Since(s.begun).Round(time.Millisecond))
}

// sessions returns the statistics of the server that has ended.
func (s *goingDown) sessions(t *testing.T) fakeams.Stats {
	t.Helper()
	st, err := fakeams.ReadStats(s.disk + shutdownStats)
	must.OK(t, err)
	return st
}

// remains is what the cluster's memory holds when the machine is off.
func (s *goingDown) remains(t *testing.T) (row bson.M, documents int64, events []string) {
	t.Helper()
	srv, err := mongod.Start(t.Context(), mongod.Options{Binary: realmongo.Require(t), Dir: s.disk + "/opt/cloud/database"})
	must.OK(t, err)
	defer func() { _ = srv.Close() }()
	c, err := mongo.Connect(options.Client().ApplyURI(srv.URI()))
	must.OK(t, err)
	defer func() { _ = c.Disconnect(context.Background()) }()
	must.OK(t, c.Database("amsagent").Collection("nodes").FindOne(t.Context(), bson.D{{Key: "_id", Value: s.id}}).Decode(&row))
	if documents, err = c.Database("clusterdb").Collection("clusternode").CountDocuments(t.Context(), bson.D{}); err != nil {
		t.Fatal(err)
	}
	found, err := c.Database("amsagent").Collection("events").Find(t.Context(), bson.D{{Key: "at", Value: bson.D{{Key: "$gte", Value: s.begun}}}})
	var all []bson.M
	if err == nil {
		err = found.All(t.Context(), &all)
	}
	must.OK(t, err)
	for _, e := range all {
		events = append(events, fmt.Sprint(e["kind"]))
	}
	return row, documents, events
}

// left: the cluster knows that this machine has gone, and how many were cut.
func (s *goingDown) left(t *testing.T, cut any) {
	t.Helper()
	row, documents, events := s.remains(t)
	t.Logf("row: %v, %v, cut %v; events %v", row["state"], row["reason"], row["cut"], events)
	if row["state"] != "left" || documents != 0 {
		t.Errorf("the row is %v, and there are %d documents of the server", row, documents)
	}
	if fmt.Sprint(row["cut"]) != fmt.Sprint(cut) {
		t.Errorf("the record has %v cut sessions, want %v", row["cut"], cut)
	}
}

// lines returns the journal since the last boot.
func (s *goingDown) lines(t *testing.T, more ...string) string {
	t.Helper()
	return s.journal(append([]string{"-b", "-u", "amsagent", "-u", "amsagent-node", "-u", "antmedia"}, more...)...)
}

// journal runs journalctl on the machine's disk.
func (s *goingDown) journal(more ...string) string {
	args := append([]string{"-D", s.disk + "/var/log/journal", "--no-pager", "-q"}, more...)
	out, err := exec.Command("journalctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%v: %s", err, out)
	}
	return string(out)
}

// moments are the beginnings and the ends of the last stop of each unit, by the
// kernel's own clock.
type moments map[string]time.Duration

func (s *goingDown) moments(t *testing.T) moments {
	t.Helper()
	at := moments{}
	d := json.NewDecoder(strings.NewReader(s.lines(t, "-o", "json")))
	for d.More() {
		var e struct {
			Unit    string `json:"UNIT"`
			ID      string `json:"MESSAGE_ID"`
			Up      string `json:"__MONOTONIC_TIMESTAMP"`
			Message any    `json:"MESSAGE"`
		}
		must.OK(t, d.Decode(&e))
		up, err := strconv.ParseInt(e.Up, 10, 64)
		must.OK(t, err)
		name := strings.TrimSuffix(e.Unit, ".service")
		switch e.ID {
		case "de5b426a63be47a7b6ac3eaac82e2f6f": // stopping, as systemd's catalog has it
			at[name+" stopping"] = time.Duration(up) * time.Microsecond
		case "9d1aaa27d60140bd96365438aad20286":
			at[name+" stopped"] = time.Duration(up) * time.Microsecond
		}
	}
	order := []string{
		"amsagent stopping", "amsagent stopped", "antmedia stopping", "antmedia stopped", "amsagent-node stopping", "amsagent-node stopped",
	}
	for i, what := range order {
		if _, ok := at[what]; !ok {
			t.Fatalf("the journal has no line for %q", what)
		}
		if i > 0 && at[what] < at[order[i-1]] {
			t.Errorf("%s came before %s", what, order[i-1])
		}
	}
	ms := func(a, b string) time.Duration { return (at[b] - at[a]).Round(time.Millisecond) }
	t.Logf("stop of the daemon %s, of the server %s, deregistering %s", ms("amsagent stopping", "amsagent stopped"),
		ms("antmedia stopping", "antmedia stopped"), ms("amsagent-node stopping", "amsagent-node stopped"))
	return at
}

// noLeave: the stop of a single unit is no shutdown.
func (s *goingDown) noLeave(t *testing.T) {
	was := s.up(t)
	s.watched(t, 1)
	same := func(what string) {
		t.Helper()
		now := s.rows(t)[nodeID]
		for _, k := range []string{"state", "state_since", "boot_id", "ip"} {
			if now[k] != was[k] {
				t.Errorf("after %s the row's %s is %v, was %v", what, k, now[k], was[k])
			}
		}
		if nodes := s.clusternode(t); len(nodes) != 1 {
			t.Errorf("after %s there are the documents %v", what, nodes)
		}
	}
	for _, args := range [][]string{{"restart", "amsagent"}, {"stop", "amsagent"}, {"start", "amsagent"}, {"restart", "amsagent-node"}, {"stop", "amsagent-node"}, {"start", "amsagent-node"}} {
		what := strings.Join(args, " ")
		r := s.run(t, append([]string{"systemctl"}, args...)...)
		r.expect(t, 0)
		t.Logf("%s took %s", what, r.took.Round(time.Millisecond))
		if r.took > 5*time.Second {
			t.Errorf("%s waited for the viewer", what)
		}
		if n := s.viewers(t, "", 0); n != 1 {
			t.Errorf("after %s there are %d viewers", what, n)
		}
		same(what)
	}
	s.beats(t, nodeID, 2)
	same("beats")
	s.run(t, "systemctl", "stop", "antmedia").expect(t, 0)
	s.beats(t, nodeID, 2)
	same("a stop of the server")
	s.run(t, "systemctl", "start", "antmedia").expect(t, 0)
	must.Until(t, "a server that is up", func() bool { return s.mode(t) == "cluster" })
	s.goDown(t, "poweroff")
	s.off(t)
	s.left(t, 0)
}

// noSessions: a shutdown without sessions does not wait.
func (s *goingDown) noSessions(t *testing.T) {
	s.up(t)
	s.beats(t, nodeID, 1)
	s.goDown(t, "poweroff")
	s.off(t)
	at := s.moments(t)
	server := at["antmedia stopped"] - at["antmedia stopping"]
	more := at["amsagent-node stopped"] - at["amsagent stopping"] - server
	t.Logf("from SIGTERM of the daemon to the end of deregistering: %s more than the server's own %s", more.Round(time.Millisecond), server.Round(time.Millisecond))
	// 150 ms on an idle host. Package lifecycle tests that the daemon does not wait for a count.
	if more > time.Minute {
		t.Errorf("going down takes %s more than the stop of the server", more)
	}
	s.left(t, 0)
}

// untilTheyEnd: the shutdown waits until both viewers have left.
func (s *goingDown) untilTheyEnd(t *testing.T) {
	s.up(t)
	s.watched(t, 2)
	s.goDown(t, "poweroff")
	s.draining(t)
	for n := 2; n > 0; n-- {
		s.beats(t, nodeID, 2)
		if got := s.viewers(t, "", 0); got != n || s.unit(t, nodeUnit)["ActiveState"] != "active" {
			t.Fatalf("%d viewers are served, want %d", got, n)
		}
		if v, err := s.status(); err != nil || v.Lifecycle == nil || v.Lifecycle.Sessions == nil || v.Ready {
			t.Errorf("a daemon that drains says %+v, %v", v, err)
		} else {
			t.Logf("status: %s", v.Lifecycle.Progress)
		}
		s.viewers(t, http.MethodDelete, 1)
	}
	last := time.Now()
	s.off(t)
	took := time.Since(last)
	t.Logf("off %s after the last viewer", took.Round(time.Millisecond))
	if took > 15*time.Second {
		t.Error("the machine does not go down")
	}
	s.moments(t)
	if st := s.sessions(t); st.Cut.Viewers != 0 || st.Left.Viewers != 2 {
		t.Errorf("sessions %+v", st)
	}
	s.left(t, 0)
}

// serviceCommand: the same where the agent knows no unit of the server, but a command to ask.
func (s *goingDown) serviceCommand(t *testing.T) {
	const command = "/usr/local/sbin/server"
	s.write(t, command, "#!/bin/sh\ncase $1 in status) exec systemctl is-active antmedia ;; *) exec systemctl \"$1\" antmedia ;; esac\n")
	var dropIns []string
	for _, unit := range []string{daemonUnit, "amsagent-node.service"} {
		dropIns = append(dropIns, "/etc/systemd/system/"+unit+".d/60-command.conf")
		s.write(t, dropIns[len(dropIns)-1], "[Service]\nEnvironment=AMSAGENT_SERVICE_COMMAND="+command+"\n")
	}
	s.onDisk(t, `chmod 755 "$1`+command+`"`)
	s.untilTheyEnd(t)

	// A leave stops the daemon, and a join starts it.
	s.up(t)
	env := []string{"env", "AMSAGENT_SERVICE_COMMAND=" + command, "amsagent"}
	for _, step := range []struct {
		args  []string
		state string
	}{{[]string{"leave", "--now"}, "inactive"}, {[]string{"join", "--mongo", nodeMongo}, "active"}} {
		s.run(t, append(slices.Clone(env), step.args...)...).expect(t, 0)
		if got := s.unit(t, daemonUnit)["ActiveState"]; got != step.state {
			t.Errorf("after %s the daemon is %v", step.args[0], got)
		}
	}
	s.active(t, nodeID, nodeAddress)
	s.goDown(t, "poweroff")
	s.off(t)
	for _, name := range append(dropIns, command) {
		s.onDisk(t, `rm "$1`+name+`"`)
	}
	s.onDisk(t, `sed -i '/^  "given": {$/,/^  }/d' "$1/var/lib/amsagent/state.json"`) // what the join was given
}

// untilTheDeadline: who never ends is cut when systemd's time is over.
func (s *goingDown) untilTheDeadline(t *testing.T) {
	s.write(t, shutdownDropIn, "[Service]\nTimeoutStopSec=12s\n")
	s.up(t)
	s.watched(t, 2)
	s.goDown(t, "poweroff")
	s.draining(t)
	s.off(t)
	at := s.moments(t)
	// 12 s less what is left for the daemon's own end.
	if took := at["amsagent stopped"] - at["amsagent stopping"]; took < 5*time.Second || took > 8*time.Second {
		t.Errorf("they were served for %s", took)
	}
	if st := s.sessions(t); st.Cut.Viewers != 2 || st.State != fakeams.Stopped {
		t.Errorf("sessions %+v", st)
	}
	s.left(t, 2)
	s.onDisk(t, `rm "$1`+shutdownDropIn+`"`)
}

// inTheMiddle: a shutdown continues the operator's drain with its own deadline.
func (s *goingDown) inTheMiddle(t *testing.T) {
	s.up(t)
	s.watched(t, 1)
	asked := time.Now()
	s.agent(t, 0, "drain", "--deadline", "7s", "--reason", "maintenance", "--detach")
	must.Until(t, "a draining row", func() bool { return s.rows(t)[nodeID]["state"] == "draining" })
	was, err := s.status()
	must.OK(t, err)
	since := s.rows(t)[nodeID]["state_since"]
	s.goDown(t, "poweroff")
	must.Until(t, "both reasons", func() bool { v, err := s.status(); return err == nil && len(v.Lifecycle.Notices) == 2 })
	if now, err := s.status(); err != nil || !now.Lifecycle.Deadline.Equal(was.Lifecycle.Deadline) || !now.Lifecycle.Begun.Equal(was.Lifecycle.Begun) {
		t.Errorf("another drain: %+v, before %+v, %v", now.Lifecycle, was.Lifecycle, err)
	}
	if now := s.rows(t)[nodeID]; now["state"] != "draining" || now["state_since"] != since {
		t.Errorf("the row is %v", now)
	}
	must.Until(t, "the end of the daemon", func() bool { _, err := s.status(); return err != nil })
	if took := time.Since(asked); took < 7*time.Second || took > 10*time.Second {
		t.Errorf("it was served for %s", took)
	}
	s.off(t)
	s.moments(t)
	if st := s.sessions(t); st.Cut.Viewers != 1 {
		t.Errorf("sessions %+v", st)
	}
	s.left(t, 1)
}

// killedAgent: systemd does not restart a daemon that is killed during a shutdown. The shutdown does not wait for the viewer then, and
// deregisters the node all the same.
func (s *goingDown) killedAgent(t *testing.T) {
	s.up(t)
	s.watched(t, 1)
	s.goDown(t, "poweroff")
	s.draining(t)
	pid := s.unit(t, daemonUnit)["MainPID"]
	killed := time.Now()
	s.sh(t, "kill -9 "+pid)
	s.off(t)
	if took := time.Since(killed); took > 15*time.Second {
		t.Errorf("it went down %s after the kill", took)
	}
	if n := strings.Count(s.lines(t, "-o", "cat"), "Started "+daemonUnit); n != 1 {
		t.Errorf("it was started %d times", n)
	}
	s.moments(t)
	s.left(t, nil)
}

// hook: the machine powers off during a scale-in. The agent completes the hook.
func (s *goingDown) hook(t *testing.T) {
	const dropIn, control, api = "/etc/systemd/system/imds.service.d/group.conf", "127.0.0.1:5998", "127.0.0.1:5997"
	s.write(t, dropIn, "[Service]\nExecStart=\nExecStart=/usr/local/bin/sandbox aws --listen 169.254.169.254:80 --id ${ID} --ip ${IP} "+
		"--tag amsagent:role=origin --control "+control+" --autoscaling "+api+" --group edge-asg --hook drain:terminating:10m --verbose\n")
	s.write(t, "/etc/amsagent/config.yaml", "mongo: "+nodeMongo+"\nbeat_interval: 1s\n")
	for _, unit := range []string{daemonUnit, "amsagent-node.service"} {
		s.write(t, "/etc/systemd/system/"+unit+".d/endpoint.conf", "[Service]\nEnvironment=AMSAGENT_AWS_AUTOSCALING_ENDPOINT=http://"+api+"\n")
	}
	s.up(t)
	s.watched(t, 1)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+control+"/asg/terminate", nil)
	must.OK(t, err)
	resp, err := s.http.Do(req)
	must.OK(t, err)
	_ = resp.Body.Close()
	s.begun = time.Now()
	s.draining(t)
	must.Until(t, "a heartbeat of the hook", func() bool {
		v, err := s.status()
		return err == nil && len(v.Lifecycle.Hooks) == 1 && v.Lifecycle.Hooks[0].Beats > 0
	})
	s.goDown(t, "poweroff")
	must.Until(t, "both reasons", func() bool { v, err := s.status(); return err == nil && len(v.Lifecycle.Notices) == 2 })
	s.viewers(t, http.MethodDelete, 1)
	s.off(t)
	s.moments(t)
	s.left(t, 0)
	out, err := exec.Command("journalctl", "-D", s.disk+"/var/log/journal", "-b", "-q", "-o", "cat", "-u", "imds", "-u", "antmedia", "-u", "amsagent-node").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_, end, _ := strings.Cut(string(out), "Stopped "+nodeUnit)
	var lines []string
	for line := range strings.Lines(end) {
		if strings.Contains(line, "CompleteLifecycleAction") || strings.Contains(line, "deregistered: ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	t.Logf("after the server had stopped:\n%s", strings.Join(lines, "\n"))
	if n := strings.Count(string(out), "CompleteLifecycleAction"); n != 1 || !strings.Contains(end, "CompleteLifecycleAction") || !strings.Contains(end, "hook completed") {
		t.Errorf("the hook was completed %d times:\n%s", n, end)
	}
	// After the next boot the node still has to leave. The cloud, now unreachable, delays the shutdown only by the usual time for a
	// completion.
	s.onDisk(t, `rm -r "$1/etc/systemd/system/imds.service.d"`)
	s.boot(t)
	must.Until(t, "a node that completes its hook again", func() bool {
		v, err := s.status()
		return err == nil && v.Lifecycle != nil && v.Lifecycle.Step == "completing"
	})
	s.goDown(t, "poweroff")
	s.off(t)
	if took := time.Since(s.begun); took > 60*time.Second {
		t.Errorf("it went down after %s", took)
	}
	s.left(t, 0)
}

// googleCloud: the cloud stops the machine 30 s after the power button, whatever systemd waits for. The drain leaves the server time
// to stop, and the status names the source of the deadline.
func (s *goingDown) googleCloud(t *testing.T) {
	const shutdownServer = nodeReports + `"$1` + nodeHome + `/conf/red5.properties"`
	s.id = "4567890123456789012"
	s.write(t, "/etc/systemd/system/imds.service.d/gcp.conf", "[Service]\nExecStart=\nExecStart=/usr/local/bin/sandbox gcp --listen 169.254.169.254:80 --id "+s.id+
		" --ip ${IP} --attribute amsagent-role=origin --project-attribute amsagent-mongo="+nodeMongo+"\n")
	// Another machine, which has not joined yet.
	s.onDisk(t, `rm -rf "$1/opt/cloud/firmware" "$1/opt/cloud/database" "$1/var/lib/amsagent" "$1/etc/amsagent/mongo" "$1/etc/systemd/system/antmedia.service.d" "$1`+nodeHome+`"
mkdir -p "$1/opt/cloud/database"
"$1/usr/local/bin/sandbox" tree --dmi gcp "$1/opt/cloud/firmware" >/dev/null
cp -a "$1/opt/cloud/vendor" "$1`+nodeHome+`"
`+shutdownServer)
	s.write(t, "/etc/amsagent/config.yaml", "beat_interval: 1s\n")
	if r := s.up(t); r["provider"] != "gcp" || r["group"] != "edge-mig" {
		t.Errorf("the row: %v", r)
	}
	s.watched(t, 1)
	s.goDown(t, "poweroff")
	s.draining(t)
	v, err := s.status()
	if err != nil || len(v.Lifecycle.Timeline) == 0 {
		t.Fatalf("%+v, %v", v.Lifecycle, err)
	}
	const by = "the stop of the machine (the 30 s that Google Cloud gives a Spot VM)"
	if m := v.Lifecycle.Timeline[0]; !m.Decides || m.By != by || m.Ends.Sub(s.begun) > 12*time.Second {
		t.Errorf("what decides: %+v", v.Lifecycle.Timeline)
	}
	t.Logf("status: %s", v.Lifecycle.Progress)
	s.off(t)
	at := s.moments(t)
	if took := at["amsagent stopped"] - at["amsagent stopping"]; took < 8*time.Second || took > 11*time.Second {
		t.Errorf("the viewer was served for %s", took)
	}
	if took := at["amsagent-node stopped"] - at["amsagent stopping"]; took > 30*time.Second {
		t.Errorf("the cloud would have taken it before it had left, which took %s", took)
	}
	if st := s.sessions(t); st.Cut.Viewers != 1 || st.State != fakeams.Stopped {
		t.Errorf("sessions %+v", st)
	}
	s.left(t, 1)
}

// noMongo: the registry cannot be updated, and the shutdown waits for the viewer that the server alone counts.
func (s *goingDown) noMongo(t *testing.T) {
	was := s.up(t)
	s.watched(t, 1)
	s.run(t, "systemctl", "stop", "mongo").expect(t, 0)
	s.goDown(t, "poweroff")
	must.Until(t, "readiness off", func() bool { v, err := s.status(); return err == nil && !v.Ready })
	s.run(t, "sleep", "6")
	if n := s.viewers(t, "", 0); n != 1 || s.unit(t, daemonUnit)["ActiveState"] != "deactivating" {
		t.Fatalf("%d viewers are served", n)
	}
	v, err := s.status()
	must.OK(t, err)
	t.Logf("status: %s; %v", v.Lifecycle.Progress, v.Lifecycle.Trouble)
	s.viewers(t, http.MethodDelete, 1)
	last := time.Now()
	s.off(t)
	t.Logf("off %s after the last viewer", time.Since(last).Round(time.Millisecond))
	at := s.moments(t)
	if took := at["amsagent-node stopped"] - at["amsagent-node stopping"]; took > 5*time.Second {
		t.Errorf("deregistering took %s", took)
	}
	if st := s.sessions(t); st.Cut.Viewers != 0 || st.Left.Viewers != 1 {
		t.Errorf("sessions %+v", st)
	}
	if said := s.lines(t, "-o", "cat"); !strings.Contains(said, "cannot deregister") || !strings.Contains(said, "step=registry") {
		t.Errorf("the failed registry updates are not logged:\n%s", said)
	}
	if row, documents, _ := s.remains(t); row["state"] != "active" || documents != 1 || row["boot_id"] != was["boot_id"] {
		t.Errorf("the row is %v, with %d documents", row, documents)
	}
}

// noMongoNoSessions: a shutdown without sessions does not wait for MongoDB. It once took 136 s more than the stop of the server.
func (s *goingDown) noMongoNoSessions(t *testing.T) {
	s.up(t)
	s.counted(t, 0)
	s.run(t, "systemctl", "stop", "mongo").expect(t, 0)
	must.Until(t, "a daemon that knows that MongoDB is away", func() bool { v, err := s.status(); return err == nil && v.Beat.Dropped > 0 })
	s.goDown(t, "poweroff")
	s.off(t)
	at := s.moments(t)
	server := at["antmedia stopped"] - at["antmedia stopping"]
	more := at["amsagent-node stopped"] - at["amsagent stopping"] - server
	t.Logf("from SIGTERM of the daemon to the end of deregistering: %s more than the server's own %s", more.Round(time.Millisecond), server.Round(time.Millisecond))
	if more > time.Minute {
		t.Errorf("going down takes %s more than the stop of the server", more)
	}
	if row, documents, _ := s.remains(t); row["state"] != "active" || documents == 0 {
		t.Errorf("the row is %v, with %d documents", row, documents)
	}
}

// reboots: a reboot is a departure and a rejoin. The test boots the machine again, because a container ends with its reboot.
func (s *goingDown) reboots(t *testing.T) {
	was := s.up(t)
	s.watched(t, 1)
	s.goDown(t, "reboot")
	s.draining(t)
	s.viewers(t, http.MethodDelete, 1)
	s.off(t)
	s.moments(t)
	s.left(t, 0)
	now := s.up(t)
	if now["boot_id"] == was["boot_id"] || len(s.rows(t)) != 1 || now["cut"] != nil || now["left_at"] != nil {
		t.Errorf("rows %v, before %v", s.rows(t), was)
	}
	s.startedWith(t, nodeAddress)
	if nodes := s.clusternode(t); len(nodes) != 1 {
		t.Errorf("documents %v", nodes)
	}
	if v, err := s.status(); err != nil || v.Lifecycle.Step != "" || len(v.Lifecycle.Notices) != 0 {
		t.Errorf("after the reboot: %+v, %v", v.Lifecycle, err)
	}
	s.goDown(t, "poweroff")
	s.off(t)
}
