// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"golang.org/x/sys/unix"
)

// open connects to the MongoDB of a database's settings and waits until it answers. Its errors contain no password.
func (s *Server) open(ctx context.Context, db database, clusterStore bool) (*mongo.Client, error) {
	uri := mongoURI(s.in.release, clusterStore, db.host, db.user, db.password)
	c, err := s.connect(ctx, uri)
	if err != nil {
		// The driver quotes the string it could not read.
		text := strings.ReplaceAll(err.Error(), uri, "(connection string)")
		for _, secret := range []string{db.password, passwordOf(uri)} {
			if secret != "" {
				text = strings.ReplaceAll(text, secret, "***")
			}
		}
		return nil, fmt.Errorf("connecting to MongoDB for %s: %w", db.name, errors.New(text))
	}
	return c, nil
}

func (s *Server) connect(ctx context.Context, uri string) (*mongo.Client, error) {
	o := options.Client().ApplyURI(uri).SetAppName("stand-in").
		SetServerSelectionTimeout(s.o.MongoTimeout).SetConnectTimeout(s.o.MongoTimeout)
	if err := o.Validate(); err != nil {
		return nil, err
	}
	c, err := mongo.Connect(o)
	if err != nil {
		return nil, err
	}
	// A ping needs no authentication; reading the list of databases does.
	ctx, cancel := context.WithTimeout(ctx, s.o.MongoTimeout+time.Second)
	defer cancel()
	_, err = c.ListDatabaseNames(ctx, bson.M{}, options.ListDatabases().SetAuthorizedDatabases(true))
	const badValue = 2
	if refused, ok := errors.AsType[mongo.CommandError](err); ok && refused.Code == badValue {
		_, err = c.ListDatabaseNames(ctx, bson.M{}) // FerretDB 2 does not know that option
	}
	if err != nil {
		_ = c.Disconnect(context.WithoutCancel(ctx))
		return nil, err
	}
	return c, nil
}

func passwordOf(uri string) string {
	_, rest, ok := strings.Cut(uri, "://")
	if !ok {
		return ""
	}
	at := strings.LastIndex(rest, "@")
	if at < 0 {
		return ""
	}
	_, password, _ := strings.Cut(rest[:at], ":")
	return password
}

// node is the document that the server keeps in clusterdb.clusternode.
func (s *Server) node(now time.Time) bson.D {
	doc := bson.D{{Key: "_id", Value: s.nodeID}}
	if s.in.release.atLeast(release{2, 4, 2}) { // Morphia 2
		doc = append(doc, bson.E{Key: "_t", Value: "ClusterNode"})
	} else {
		doc = append(doc, bson.E{Key: "className", Value: "io.antmedia.cluster.ClusterNode"})
	}
	doc = append(doc,
		bson.E{Key: "ip", Value: s.address},
		bson.E{Key: "lastUpdateTime", Value: now.UnixMilli()},
		bson.E{Key: "memory", Value: memory()},
		bson.E{Key: "cpu", Value: "4"},
	)
	if s.in.release.atLeast(release{2, 13, 0}) {
		doc = append(doc, bson.E{Key: "dbQueryAveargeTimeMs", Value: int32(1)})
	}
	return doc
}

// memory is "used/total" in megabytes.
func memory() string {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return "0/0"
	}
	unit := uint64(si.Unit)
	return fmt.Sprintf("%d/%d", (si.Totalram-si.Freeram)*unit>>20, si.Totalram*unit>>20)
}

// beat registers the node. It replaces the whole document, as old releases do; the test beans of package realams
// update it by field, as new ones are documented to do.
func (s *Server) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Period+time.Second)
	defer cancel()
	_, err := s.cluster.Database("clusterdb").Collection("clusternode").ReplaceOne(ctx,
		bson.M{"_id": s.nodeID}, s.node(s.now()), options.Replace().SetUpsert(true))
	if err != nil {
		return fmt.Errorf("registering the node: %w", err)
	}
	return nil
}

// prepare makes an application's database ready, as its first use does.
func prepare(ctx context.Context, c *mongo.Client, name string) error {
	index := mongo.IndexModel{Keys: bson.D{{Key: "streamId", Value: 1}}, Options: options.Index().SetUnique(true)}
	if _, err := c.Database(name).Collection("broadcast").Indexes().CreateOne(ctx, index); err != nil {
		return fmt.Errorf("preparing database %s: %w", name, err)
	}
	return nil
}

// Stream is a live stream that the stand-in claims to serve.
type Stream struct {
	App    string `json:"app"`
	ID     string `json:"id"`
	WebRTC int32  `json:"webrtc"` // viewers
	HLS    int32  `json:"hls"`
	DASH   int32  `json:"dash"`
	RTMP   int32  `json:"rtmp"`
	// Announced: its document existed before the stream began. Such a document stays at the
	// end, as finished; any other is deleted.
	Announced bool `json:"announced,omitempty"`
}

// AddStream lets a stream begin, or changes the number of its viewers. It is written
// to the application's database, if that is a MongoDB, and kept fresh.
func (s *Server) AddStream(ctx context.Context, st Stream) error {
	rt, ok := s.app(st.App)
	if !ok {
		return fmt.Errorf("adding a stream: no application %q", st.App)
	}
	if st.ID == "" {
		return errors.New("adding a stream: it has no id")
	}
	key := [2]string{st.App, st.ID}
	if !s.change(func() {
		st.Announced = st.Announced || s.streams[key].Announced
		s.streams[key] = st
	}) {
		return errors.New("adding a stream: the server takes none any more")
	}
	if rt.client == nil {
		return nil
	}
	now := s.now().UnixMilli()
	_, err := rt.broadcasts().UpdateOne(ctx, bson.M{"streamId": st.ID}, bson.M{
		"$set": bson.M{
			"status": "broadcasting", "originAdress": s.address, "updateTime": now,
			"webRTCViewerCount": st.WebRTC, "hlsViewerCount": st.HLS,
			"dashViewerCount": st.DASH, "rtmpViewerCount": st.RTMP,
		},
		"$setOnInsert": bson.M{"type": "liveStream", "startTime": now, "zombi": !st.Announced, "virtual": false},
	}, options.UpdateOne().SetUpsert(true))
	if err != nil {
		return fmt.Errorf("adding a stream: %w", err)
	}
	return nil
}

// EndStream ends a stream: the server deletes its document unless it was announced. Its viewers
// of AddViewers stay, and wait for the stream to come back.
func (s *Server) EndStream(ctx context.Context, app, id string) error {
	rt, ok := s.app(app)
	var st Stream
	var known bool
	s.leave(func() {
		st, known = s.streams[[2]string{app, id}]
		delete(s.streams, [2]string{app, id})
	})
	if !ok || !known {
		return fmt.Errorf("ending a stream: no stream %q in application %q", id, app)
	}
	if rt.client == nil {
		return nil
	}
	ours := bson.M{"streamId": id, "originAdress": s.address}
	var err error
	if st.Announced {
		_, err = rt.broadcasts().UpdateOne(ctx, ours, bson.M{"$set": bson.M{
			"status": "finished", "updateTime": s.now().UnixMilli(),
			"webRTCViewerCount": int32(0), "hlsViewerCount": int32(0), "dashViewerCount": int32(0), "rtmpViewerCount": int32(0),
		}})
	} else {
		_, err = rt.broadcasts().DeleteOne(ctx, ours)
	}
	if err != nil {
		return fmt.Errorf("ending a stream: %w", err)
	}
	return nil
}

// refresh keeps the documents of our streams from looking dead.
func (s *Server) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Period+time.Second)
	defer cancel()
	for _, st := range s.Streams() {
		rt, _ := s.app(st.App)
		if rt.client == nil {
			continue
		}
		_, err := rt.broadcasts().UpdateOne(ctx, bson.M{"streamId": st.ID, "originAdress": s.address},
			bson.M{"$set": bson.M{"updateTime": s.now().UnixMilli()}})
		if err != nil {
			return fmt.Errorf("refreshing a stream: %w", err)
		}
	}
	return nil
}

// abandon is what a stop does with streams that did not end in time.
func (s *Server) abandon(ctx context.Context, app string) error {
	rt, _ := s.app(app)
	if rt.client == nil {
		return nil
	}
	_, err := rt.broadcasts().UpdateMany(ctx, bson.M{"originAdress": s.address, "status": "broadcasting"},
		bson.M{"$set": bson.M{"status": "terminated_unexpectedly"}})
	if err != nil {
		return fmt.Errorf("closing the streams of %s: %w", rt.name, err)
	}
	return nil
}
