// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mongod_test

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// Faults that come and go under load must neither hang the server nor lose what
// it acknowledged.
func TestChaos(t *testing.T) {
	t.Parallel()
	s := start(t, mongod.Options{})
	setUp := connect(t, s.URI()).Database("d").Collection("c")
	if _, err := setUp.InsertOne(t.Context(), bson.M{"_id": 1, "n": 0}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var tried, acknowledged atomic.Int64
	var wg sync.WaitGroup
	for range 6 {
		c := connect(t, s.URI()+"?retryWrites=false").Database("d").Collection("c")
		wg.Go(func() {
			for ctx.Err() == nil {
				one, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
				tried.Add(1)
				if _, err := c.UpdateOne(one, bson.M{"_id": 1}, bson.M{"$inc": bson.M{"n": 1}}); err == nil {
					acknowledged.Add(1)
				}
				cancel()
			}
		})
	}
	modes := []mongod.Fault{
		{Mode: mongod.None},
		{Mode: mongod.Delay, Delay: 5 * time.Millisecond},
		{Mode: mongod.Cut},
		{Mode: mongod.Cut, After: 7, Then: mongod.Refuse},
		{Mode: mongod.CutReply, Times: 3},
		{Mode: mongod.Refuse},
		{Mode: mongod.BlackHole},
		{Mode: mongod.HalfClose, Times: 2},
		{Mode: mongod.Truncate, Times: 5},
		{Mode: mongod.Error, Times: 5, Then: mongod.Delay, Delay: time.Millisecond},
	}
	// Three seconds, and longer where the machine is too busy for an update between two faults.
	const least = 3 * time.Second
	begun := time.Now()
	for ctx.Err() == nil && (time.Since(begun) < least || acknowledged.Load() == 0 || acknowledged.Load() == tried.Load()) {
		if err := s.Faults().Set(modes[rand.IntN(len(modes))]); err != nil {
			t.Fatal(err)
		}
		lasts := 30 * time.Millisecond
		if time.Since(begun) >= least {
			lasts *= 10
		}
		select {
		case <-time.After(lasts):
		case <-ctx.Done():
		}
	}
	cancel()
	s.Faults().Clear()
	wg.Wait()
	var got struct{ N int64 }
	if err := connect(t, s.URI()).Database("d").Collection("c").FindOne(t.Context(), bson.M{"_id": 1}).Decode(&got); err != nil {
		t.Fatalf("after the chaos: %v", err)
	}
	t.Logf("%d tried, %d acknowledged, %d executed", tried.Load(), acknowledged.Load(), got.N)
	if got.N < acknowledged.Load() || got.N > tried.Load() {
		t.Errorf("%d updates executed, of %d tried and %d acknowledged", got.N, tried.Load(), acknowledged.Load())
	}
	if acknowledged.Load() == 0 || acknowledged.Load() == tried.Load() {
		t.Error("the faults did everything, or nothing")
	}
}

// Not parallel: it counts goroutines of the whole process.
func TestNothingIsLeftBehind(t *testing.T) {
	binary := realmongo.Require(t)
	once := func() {
		s, release, err := servers.Take(t.Context(), mongod.Options{Binary: binary, Control: "127.0.0.1:0"})
		if err != nil {
			t.Fatal(err)
		}
		c, err := mongo.Connect(options.Client().ApplyURI(s.URI()))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Ping(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		_ = s.Faults().Set(mongod.Fault{Mode: mongod.BlackHole})
		if err := release(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_ = c.Disconnect(ctx) // nobody is there to say good-bye to
	}
	once()
	before := runtime.NumGoroutine()
	const rounds = 10
	for range rounds {
		once()
	}
	// They end a moment later.
	for begin := time.Now(); runtime.NumGoroutine() >= before+rounds; {
		if time.Since(begin) > time.Minute {
			t.Fatalf("%d goroutines before, %d after %d servers", before, runtime.NumGoroutine(), rounds)
		}
		<-time.After(10 * time.Millisecond)
	}
}
