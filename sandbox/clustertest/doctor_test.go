// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"context"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/bootstrap/doctor"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// patience is the doctor's limit where MongoDB must answer: on a busy test machine that takes longer than the usual 15 s.
const patience = 10 * time.Minute

// examine lets the doctor look at a machine before its join, with this MongoDB.
func examine(t *testing.T, uri string, limit time.Duration, now func() time.Time) map[string]doctor.Result {
	t.Helper()
	root := filepath.Join(t.TempDir(), "node")
	if _, err := tree.Write(root, tree.Options{Host: "node-1", HostResolves: true}); err != nil {
		t.Fatal(err)
	}
	target, err := cluster.ParseTarget(uri)
	must.OK(t, err)
	o := cluster.Options{AppName: "doctor", Timeout: limit / 3, Now: now}
	results := doctor.Run(t.Context(), doctor.Options{
		Machine: &bootstrap.Machine{Root: root, Service: ams.None{}, Version: "test", Connect: func(ctx context.Context, t cluster.Target) (*cluster.Client, error) {
			return cluster.Connect(ctx, t, o)
		}},
		Join: bootstrap.JoinRequest{Mongo: target, Identify: func(context.Context) (metadata.Instance, error) {
			return metadata.Instance{ID: "i-1", Address: netip.MustParseAddr(own)}, nil
		}},
		Connect: o,
		Limit:   limit,
	})
	all := map[string]doctor.Result{}
	for _, r := range results {
		if all[r.Check].ID == "" || r.Verdict == doctor.Bad {
			all[r.Check] = r
		}
	}
	return all
}

func diagnosis(t *testing.T, all map[string]doctor.Result, check string, want doctor.Verdict, seen string) {
	t.Helper()
	if r := all[check]; r.Verdict != want || !strings.Contains(r.Seen, seen) {
		t.Errorf("%s: %s: %q, want %s: %q", check, r.Verdict, r.Seen, want, seen)
	}
}

// A server that is open to all: everything works, and the doctor says what that means.
func TestDoctorOpen(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{})
	b := open(t, s)
	b.write("a-10.0.0.9", "10.0.0.9", time.Now())
	before := databases(b)
	all := examine(t, s.URI(), patience, nil)
	diagnosis(t, all, "AMS-MONGO", doctor.Good, "answers")
	diagnosis(t, all, "AMS-MONGO-AUTH", doctor.Good, "without a user")
	diagnosis(t, all, "AMS-MONGO-NOT-PRIMARY", doctor.Good, "a single server")
	// On the loopback that is nobody else's matter.
	diagnosis(t, all, "AMS-MONGO-OPEN", doctor.Good, "loopback")
	diagnosis(t, all, "AMS-MONGO-LOCAL", doctor.Warning, "no other node")
	// How long it takes is the test machine's matter.
	if r := all["AMS-MONGO-SLOW"]; r.Verdict != doctor.Good && r.Verdict != doctor.Warning || !strings.Contains(r.Seen, "round trip") {
		t.Errorf("%+v", r)
	}
	diagnosis(t, all, "AMS-CLOCK", doctor.Good, "")
	diagnosis(t, all, "AMS-ROWS", doctor.Good, "nobody else has "+own)
	// From a tree no node is tried.
	diagnosis(t, all, "AMS-PEERS", doctor.Unknown, "does not run")
	if d := cmp.Diff(before, databases(b)); d != "" {
		t.Errorf("the doctor wrote in MongoDB:\n%s", d)
	}
}

// databases is what the server holds: collections, and how many documents.
func databases(b backdoor) map[string]int64 {
	b.t.Helper()
	names, err := b.ListDatabaseNames(b.t.Context(), bson.D{})
	must.OK(b.t, err)
	all := map[string]int64{}
	for _, db := range names {
		if slices.Contains([]string{"admin", "config", "local"}, db) {
			continue
		}
		colls, err := b.Database(db).ListCollectionNames(b.t.Context(), bson.D{})
		must.OK(b.t, err)
		for _, c := range colls {
			n, err := b.Database(db).Collection(c).CountDocuments(b.t.Context(), bson.D{})
			must.OK(b.t, err)
			all[db+"."+c] = n
		}
	}
	return all
}

func TestDoctorClosed(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{Users: map[string]string{"amsagent": "right"}, ReplicaSet: "rs0"})
	uri := func(password string) string {
		return "mongodb://amsagent:" + password + "@" + s.Addr() + "/?replicaSet=rs0"
	}
	all := examine(t, uri("right"), patience, nil)
	diagnosis(t, all, "AMS-MONGO-AUTH", doctor.Good, `user "amsagent"`)
	diagnosis(t, all, "AMS-MONGO-OPEN", doctor.Good, "nothing is shown")
	diagnosis(t, all, "AMS-MONGO-NOT-PRIMARY", doctor.Good, "replica set rs0")

	all = examine(t, uri("wrong"), patience, nil)
	diagnosis(t, all, "AMS-MONGO-AUTH", doctor.Bad, "refused the user name or the password")
	// It is there, and who it does not let in still learns that strangers are kept out.
	diagnosis(t, all, "AMS-MONGO", doctor.Good, "answers")
	diagnosis(t, all, "AMS-MONGO-OPEN", doctor.Good, "nothing is shown")
	diagnosis(t, all, "AMS-MONGO-SLOW", doctor.Unknown, "could not be asked")
}

// A clock that is off, a server far away, a second node with our address.
func TestDoctorTrouble(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{})
	b := open(t, s)
	b.insert(b.nodes(), bson.M{"_id": "i-0", "ip": own, "state": "active", "seq": int64(7), "interval_ms": int64(5000), "updated_at": time.Now().Add(-time.Hour)})
	fault(t, s, mongod.Fault{Mode: mongod.Delay, Delay: 80 * time.Millisecond, Commands: []string{"ping"}})
	all := examine(t, s.URI(), patience, func() time.Time { return time.Now().Add(30 * time.Second) })
	diagnosis(t, all, "AMS-CLOCK", doctor.Warning, "ahead of MongoDB's; other nodes will take this one for dead")
	diagnosis(t, all, "AMS-MONGO-SLOW", doctor.Warning, "for a round trip")
	diagnosis(t, all, "AMS-ROWS", doctor.Warning, "i-0 is registered under "+own)

	must.OK(t, s.Close())
	all = examine(t, s.URI(), 15*time.Second, nil)
	diagnosis(t, all, "AMS-MONGO", doctor.Bad, "refused the connection")
	diagnosis(t, all, "AMS-MONGO-OPEN", doctor.Unknown, "could not be asked")
}
