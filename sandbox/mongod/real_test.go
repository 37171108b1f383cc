// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mongod_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"

	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// A real mongod behind the proxy: its users, its set of one with a transaction, and
// faults that strike its commands.
func TestUsersAndSet(t *testing.T) {
	t.Parallel()
	s := start(t, mongod.Options{
		Binary: realmongo.Require(t), Users: map[string]string{"cluster": "secret"}, ReplicaSet: realmongo.SetName,
	})
	patient := options.Client().SetServerSelectionTimeout(time.Minute).SetConnectTimeout(time.Minute)
	c := connect(t, "mongodb://cluster:secret@"+s.Addr()+"/?authSource=admin&replicaSet=rs0", patient)
	ctx := t.Context()
	coll := c.Database("d").Collection("c")

	session, err := c.StartSession()
	if err != nil {
		t.Fatal(err)
	}
	defer session.EndSession(context.Background())
	if _, err := session.WithTransaction(ctx, func(ctx context.Context) (any, error) {
		return coll.InsertOne(ctx, bson.M{"_id": 1, "n": 1})
	}); err != nil {
		t.Errorf("a transaction: %v", err)
	}

	unacknowledged := c.Database("d").Collection("c", options.Collection().SetWriteConcern(writeconcern.Unacknowledged()))
	if _, err := unacknowledged.UpdateOne(ctx, bson.M{"_id": 1}, bson.M{"$inc": bson.M{"n": 1}}); err != nil {
		t.Errorf("an unacknowledged write: %v", err)
	}

	if err := s.Faults().Set(mongod.Fault{Mode: mongod.Error, Code: 13, Name: "Unauthorized", Message: "no", Commands: []string{"find"}, Times: 1}); err != nil {
		t.Fatal(err)
	}
	var command mongo.CommandError
	if err := coll.FindOne(ctx, bson.M{"_id": 1}).Err(); !errors.As(err, &command) || command.Code != 13 {
		t.Errorf("a find under a fault: %v", err)
	}
	if err := coll.FindOne(ctx, bson.M{"_id": 1}).Err(); err != nil {
		t.Errorf("a find after the fault: %v", err)
	}

	wrong := connect(t, "mongodb://cluster:wrong@"+s.Addr()+"/?authSource=admin&directConnection=true", patient)
	if err := wrong.Ping(ctx, nil); err == nil {
		t.Error("a wrong password was accepted")
	}
	if _, err := connect(t, s.URI()+"?directConnection=true", patient).Database("d").Collection("c").CountDocuments(ctx, bson.M{}); err == nil {
		t.Error("a client without a user could read")
	}
}
