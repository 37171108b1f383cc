// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mongotest_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/sandbox/internal/mongotest"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

var servers mongotest.Servers

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

// One test's server is the next one's: the same process, and nothing in it, no user either.
func TestServersAreEmptied(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]mongod.Options{
		"one server":         {},
		"a set":              {ReplicaSet: realmongo.SetName},
		"with a login":       {AuthDB: "d"},
		"a set with a login": {AuthDB: "d", ReplicaSet: realmongo.SetName},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var pids []int32
			for _, user := range []string{"ann", "bob", "cleo"} {
				t.Run(user, func(t *testing.T) {
					uri := ""
					if o.AuthDB != "" {
						o.Users = map[string]string{user: "secret"}
						uri = user + ":secret@"
					}
					s := servers.Start(t, o)
					pids = append(pids, use(t, "mongodb://"+uri+s.Addr()+"/"+o.AuthDB, o.ReplicaSet))
					if o.AuthDB == "" {
						return
					}
					for _, other := range []string{"", "ann:secret@", "bob:secret@", "cleo:secret@"} {
						if other == uri {
							continue
						}
						if err := connect(t, "mongodb://"+other+s.Addr()+"/d").Database("d").Collection("c").FindOne(t.Context(), bson.M{}).Err(); err == nil || errors.Is(err, mongo.ErrNoDocuments) {
							t.Errorf("%q may read: %v", other, err)
						}
					}
				})
			}
			if len(pids) != 3 || pids[0] == 0 || pids[0] != pids[1] || pids[1] != pids[2] {
				t.Errorf("processes %v", pids)
			}
		})
	}
}

func connect(t *testing.T, uri string) *mongo.Client {
	t.Helper()
	c, err := mongo.Connect(options.Client().ApplyURI(uri))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Disconnect(context.Background()) })
	return c
}

// use finds a server empty, leaves something in it, and returns its process.
func use(t *testing.T, uri, set string) int32 {
	t.Helper()
	db := connect(t, uri).Database("d")
	if n, err := db.Collection("c").CountDocuments(t.Context(), bson.M{}); err != nil || n != 0 {
		t.Errorf("%d documents of the test before, %v", n, err)
	}
	if _, err := db.Collection("c").InsertOne(t.Context(), bson.M{"n": 1}); err != nil {
		t.Error(err)
	}
	var profile struct {
		Was int `bson:"was"`
	}
	if err := db.RunCommand(t.Context(), bson.D{{Key: "profile", Value: 2}}).Decode(&profile); err != nil || profile.Was != 0 {
		t.Errorf("the profile is on: %d, %v", profile.Was, err)
	}
	var status struct {
		PID  int32 `bson:"pid"`
		Repl struct {
			SetName string `bson:"setName"`
		} `bson:"repl"`
	}
	if err := db.RunCommand(t.Context(), bson.D{{Key: "serverStatus", Value: 1}}).Decode(&status); err != nil || status.Repl.SetName != set {
		t.Errorf("set %q, %v", status.Repl.SetName, err)
	}
	return status.PID
}

// A server of the operator is borrowed only if it is empty, and is empty afterwards.
func TestBorrow(t *testing.T) {
	t.Parallel()
	address := servers.Start(t, mongod.Options{Binary: realmongo.Require(t)}).Addr()
	collection := connect(t, "mongodb://"+address).Database("theirs").Collection("c")
	if _, err := collection.InsertOne(t.Context(), bson.M{"_id": 1}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := realmongo.Borrow(t.Context(), address); err == nil || !strings.Contains(err.Error(), "theirs") {
		t.Errorf("a server with data: %v", err)
	}
	if n, err := collection.CountDocuments(t.Context(), bson.M{}); err != nil || n != 1 {
		t.Errorf("%d documents left, %v", n, err)
	}
	if err := collection.Database().Drop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		got, release, err := realmongo.Borrow(t.Context(), address)
		if err != nil || got != address {
			t.Fatal(got, err)
		}
		if n, err := collection.CountDocuments(t.Context(), bson.M{}); err != nil || n != 0 {
			t.Errorf("%d documents of the run before, %v", n, err)
		}
		if _, err := collection.InsertOne(t.Context(), bson.M{"_id": 1}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if _, _, err := realmongo.Borrow(ctx, address); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a second borrower: %v", err)
		}
		cancel()
		if err := release(); err != nil {
			t.Fatal(err)
		}
	}
}
