// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

func listenLoopback() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }

// broadcast DB STREAM ADDRESS: a stream is published to the node, as AMS
// writes it.
func (w *world) broadcast(_ *testscript.TestScript, _ bool, args []string) error {
	c, err := mongo.Connect(options.Client().ApplyURI("mongodb://" + w.mongo.Addr() + "/?directConnection=true"))
	if err != nil {
		return err
	}
	defer func() { _ = c.Disconnect(w.ctx) }()
	_, err = c.Database(args[0]).Collection("broadcast").InsertOne(w.ctx, bson.D{
		{Key: "streamId", Value: args[1]},
		{Key: "status", Value: "broadcasting"},
		{Key: "originAdress", Value: args[2]},
		{Key: "updateTime", Value: time.Now().Add(time.Minute).UnixMilli()},
	})
	return err
}
