// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package realmongo_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

func start(t *testing.T, o realmongo.Options) *realmongo.Set {
	t.Helper()
	o.Binary = realmongo.Require(t)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	s, err := realmongo.Start(ctx, o)
	must.OK(t, err)
	t.Cleanup(func() {
		must.OK(t, s.Close())
	})
	return s
}

func insert(t *testing.T, uri string, doc any) error {
	t.Helper()
	c, err := mongo.Connect(options.Client().ApplyURI(uri))
	must.OK(t, err)
	defer func() { _ = c.Disconnect(context.Background()) }()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	_, err = c.Database("d").Collection("c").InsertOne(ctx, doc)
	return err
}

func TestOneServer(t *testing.T) {
	t.Parallel()
	s := start(t, realmongo.Options{})
	// Only what is in the journal is promised to be there after a kill.
	must.OK(t, insert(t, s.URI()+"?journal=true", bson.M{"_id": 1}))
	must.OK(t, s.Member(0).Kill())
	must.OK(t, s.Member(0).Start(t.Context()))
	if err := insert(t, s.URI(), bson.M{"_id": 1}); !mongo.IsDuplicateKeyError(err) {
		t.Errorf("after a kill and a start the document is not there: %v", err)
	}
}

// A user whose password needs escaping can write, a client without a user cannot.
func TestUsers(t *testing.T) {
	t.Parallel()
	s := start(t, realmongo.Options{Users: map[string]string{"cluster": "p@ss:w/rd?#%41"}})
	must.OK(t, insert(t, s.URI(), bson.M{"_id": 1}))
	if err := insert(t, "mongodb://"+s.Addrs()+"/", bson.M{"_id": 2}); err == nil {
		t.Error("a client without a user could write")
	}
}

// The script that fetches a mongod puts it where Binary looks.
func TestVersion(t *testing.T) {
	t.Parallel()
	script, err := os.ReadFile("mongod.sh")
	if err != nil || !strings.Contains(string(script), "\nversion="+realmongo.Version+"\n") {
		t.Errorf("mongod.sh does not fetch %s, %v", realmongo.Version, err)
	}
}
