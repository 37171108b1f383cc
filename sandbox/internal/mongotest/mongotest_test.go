// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mongotest_test

import (
	"context"
	"os"
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/sandbox/internal/mongotest"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

var servers mongotest.Servers

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

// One test's server is the next one's: the same process, and nothing in it.
func TestServersAreEmptied(t *testing.T) {
	t.Parallel()
	binary := realmongo.Require(t)
	for _, set := range []string{"", realmongo.SetName} {
		var pids []int32
		for range 3 {
			t.Run("of "+set, func(t *testing.T) {
				c, err := mongo.Connect(options.Client().ApplyURI(servers.Start(t, mongod.Options{Binary: binary, ReplicaSet: set}).URI()))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = c.Disconnect(context.Background()) })
				db := c.Database("d")
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
				pids = append(pids, status.PID)
			})
		}
		if len(pids) != 3 || pids[0] == 0 || pids[0] != pids[1] || pids[1] != pids[2] {
			t.Errorf("processes %v", pids)
		}
	}
}
