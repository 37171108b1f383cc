// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realams"
)

// realShutdown shuts down and boots a machine whose real server runs under its own unit: without sessions, with a publisher and
// viewers, and with MongoDB away (S1, S6).
func realShutdown(t *testing.T) {
	t.Parallel()
	w := realams.New(t, realams.Options{Users: map[string]string{realUser: realPassword}})
	b := newRealBooted(t, w, realRelease())
	// The journal must survive the shutdown.
	b.onDisk(t, `mkdir -p "$1/var/log/journal"`)
	s := &realGoingDown{&goingDown{machine: b.machine}, b}
	b.boot(t)
	if err := os.WriteFile(b.Path("/run/mongo"), []byte(w.URI()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.must(t, "dpkg", "-i", "/opt/amsagent.deb")
	b.must(t, "amsagent", "join", "--mongo", "file:/run/mongo", "--address", realBootedAddress, "--provider", "generic")
	s.steps(t, []downStep{
		{"Reboot", s.reboot},
		{"UntilTheyEnd", s.untilTheyEnd},
		{"NoMongo", s.noMongo},
		{"MongoIsBack", s.mongoIsBack},
	})
}

// realGoingDown is such a machine.
type realGoingDown struct {
	*goingDown
	booted *realBooted
}

// back boots the machine: the node serves after one start of the server, and its files are correct.
func (s *realGoingDown) back(t *testing.T) {
	t.Helper()
	begin := time.Now()
	s.boot(t)
	s.booted.served(t)
	figure(t, "from the boot to a node that serves: %s", time.Since(begin).Round(100*time.Millisecond))
	if row := s.record(t); row["state"] != "active" {
		t.Errorf("after a boot the row is %v", row)
	}
	said := s.lines(t, "-o", "cat")
	if n := strings.Count(said, "Started "+nodeUnit); n != 1 {
		t.Errorf("the server was started %d times", n)
	}
	if strings.Contains(said, "repaired") || strings.Contains(said, "AMS-DRIFT") {
		t.Errorf("files were written again after a boot, although the server alone had written them:\n%s", said)
	}
}

// record is the machine's row.
func (s *realGoingDown) record(t *testing.T) (row bson.M) {
	t.Helper()
	c, err := s.booted.world.Mongo.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Disconnect(t.Context()) }()
	if err := c.Database("amsagent").Collection("nodes").FindOne(t.Context(), bson.D{{Key: "ip", Value: realBootedAddress}}).Decode(&row); err != nil {
		t.Fatal(err)
	}
	return row
}

// gone checks that the node has left the cluster, and that no session was cut.
func (s *realGoingDown) gone(t *testing.T) {
	t.Helper()
	row := s.record(t)
	if row["state"] != "left" || row["cut"] != nil && row["cut"] != int32(0) && row["cut"] != int64(0) {
		t.Errorf("the row is %v, %v, cut %v", row["state"], row["reason"], row["cut"])
	}
	c, err := s.booted.world.Mongo.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Disconnect(t.Context()) }()
	if n, err := c.Database("clusterdb").Collection("clusternode").CountDocuments(t.Context(), bson.D{}); err != nil || n != 0 {
		t.Errorf("there are %d documents of the server, %v", n, err)
	}
}

// share is what going down took besides the server's own stop.
func (s *realGoingDown) share(t *testing.T) time.Duration {
	t.Helper()
	at := s.moments(t)
	return at["amsagent-node stopped"] - at["amsagent stopping"] - (at["antmedia stopped"] - at["antmedia stopping"])
}

// empty waits until the agent counts no sessions. The test's own connections count until the next count, within 10 s.
func (s *realGoingDown) empty(t *testing.T) {
	t.Helper()
	since := time.Now().Add(10 * time.Second)
	must.Until(t, "a count of no sessions", func() bool {
		v, err := s.status()
		if err != nil {
			return false
		}
		n, known := v.Sessions.Total()
		return known && n == 0 && v.Beat.Round.After(since)
	})
}

// reboot reboots an idle machine, as after an upgrade of the kernel.
func (s *realGoingDown) reboot(t *testing.T) {
	s.booted.served(t)
	s.empty(t)
	was := s.record(t)
	s.goDown(t, "reboot")
	s.off(t)
	more := s.share(t)
	figure(t, "besides the server's own stop: %s", more.Round(time.Millisecond))
	if more > 5*time.Second {
		t.Errorf("without sessions the shutdown takes %s more than the server's own stop", more)
	}
	s.gone(t)
	s.back(t)
	if now := s.record(t); now["boot_id"] == was["boot_id"] || now["_id"] != was["_id"] {
		t.Errorf("the row is %v, before %v", now, was)
	}
}

// audience starts a stream with so many viewers and waits until the agent counts them.
func (s *realGoingDown) audience(t *testing.T, node *realams.Node, viewers int) []*realams.Process {
	t.Helper()
	w := s.booted.world
	people := []*realams.Process{w.Publish(t, node, "LiveApp", "stream1")}
	viewer := w.HTTP(2 * time.Second)
	must.Until(t, "a viewer gets the playlist", func() bool {
		return realams.Status(viewer, realams.PlaylistURL(node, "LiveApp", "stream1")) == http.StatusOK
	})
	viewer.CloseIdleConnections() // else it is counted, too
	for range viewers {
		people = append(people, w.Play(t, node, "LiveApp", "stream1"))
	}
	must.Until(t, "the publisher and the viewers are counted", func() bool {
		v, err := s.status()
		return err == nil && v.Sessions.Publishers != nil && *v.Sessions.Publishers == 1 && v.Sessions.Viewers != nil && *v.Sessions.Viewers >= viewers
	})
	return people
}

// untilTheyEnd: a shutdown waits for a publisher and two viewers. The machine runs since the step before.
func (s *realGoingDown) untilTheyEnd(t *testing.T) {
	node := &realams.Node{Address: realBootedAddress}
	people := s.audience(t, node, 2)
	viewer := s.booted.world.HTTP(2 * time.Second)

	s.goDown(t, "poweroff")
	must.Until(t, "a node that is not ready and drains", func() bool {
		v, err := s.status()
		return err == nil && !v.Ready && s.record(t)["state"] == "draining"
	})
	figure(t, "not ready, and draining, within %s", time.Since(s.begun).Round(time.Millisecond))
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); wait(time.Second) {
		if code := realams.Status(viewer, realams.PlaylistURL(node, "LiveApp", "stream1")); code != 200 {
			t.Fatalf("while the machine waits a viewer gets %d", code)
		}
	}
	for _, p := range people {
		p.Signal(syscall.SIGTERM)
	}
	viewer.CloseIdleConnections()
	last := time.Now()
	s.off(t)
	figure(t, "off %s after the last session", time.Since(last).Round(time.Millisecond))
	s.moments(t)
	s.gone(t)
}

// noMongo: without sessions the agent does not wait for MongoDB. The server itself takes almost two minutes to end without
// MongoDB.
func (s *realGoingDown) noMongo(t *testing.T) {
	s.back(t)
	s.empty(t)
	mongo := s.booted.world.Mongo.Member(0)
	if err := mongo.Kill(); err != nil {
		t.Fatal(err)
	}
	wait(10 * time.Second) // both have noticed
	s.goDown(t, "poweroff")
	s.off(t)
	more := s.share(t)
	figure(t, "besides the server's own stop: %s", more.Round(time.Millisecond))
	if more > 5*time.Second {
		t.Errorf("without MongoDB going down takes %s more than the server's own stop", more)
	}
	if err := mongo.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// mongoIsBack: the machine shuts down and drains while MongoDB is away, and the daemon writes that to the registry as soon as
// MongoDB is back.
func (s *realGoingDown) mongoIsBack(t *testing.T) {
	s.back(t)
	people := s.audience(t, &realams.Node{Address: realBootedAddress}, 1)
	mongo := s.booted.world.Mongo.Member(0)
	if err := mongo.Kill(); err != nil {
		t.Fatal(err)
	}
	s.goDown(t, "poweroff")
	wait(15 * time.Second) // the connection of before is given up
	if v, err := s.status(); err != nil || v.Ready {
		t.Errorf("ready %v: %v", v.Ready, err)
	}
	if err := mongo.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	must.Until(t, "a row that drains", func() bool { return s.record(t)["state"] == "draining" })
	figure(t, "the row says so %s after MongoDB is back", time.Since(back).Round(100*time.Millisecond))
	for _, p := range people {
		p.Signal(syscall.SIGTERM)
	}
	s.off(t)
	s.moments(t)
	s.gone(t)
	if lines := s.lines(t, "-o", "cat"); strings.Contains(lines, "interrupted by signal") {
		t.Errorf("the signal interrupted the deregistration:\n%s", lines)
	}
}
