// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/fakes/fakemongo"
	"github.com/amsagent/amsagent/internal/must"
)

func TestReplicaSet(t *testing.T) {
	s := fakemongo.Start(t, nil)
	s.SetHello(bson.E{Key: "isWritablePrimary", Value: true}, bson.E{Key: "setName", Value: "rs0"},
		bson.E{Key: "hosts", Value: bson.A{"a:1", "b:1", "c:1"}}, bson.E{Key: "me", Value: s.Addr()})
	s.Answer = func(string, bson.Raw) (bson.D, error) { return fakemongo.OK(), nil }
	c := connect(t, "mongodb://"+s.Addr()+"/?directConnection=true", Options{})
	must.OK(t, c.Ping(t.Context()))
	must.NoDiff(t, "replica set", c.ReplicaSet(), ReplicaSet{Name: "rs0", Hosts: []string{"a:1", "b:1", "c:1"}})
}

// OpenToAll sends no password, even if the connection string has one.
func TestOpenToAll(t *testing.T) {
	for _, tt := range []struct {
		name  string
		reply bson.D
		open  bool
		kind  Kind
		one   bool // member of a set, and not its primary
	}{
		{"open", fakemongo.OK(bson.E{Key: "databases", Value: bson.A{}}), true, "", false},
		{"closed", fakemongo.Failure(13, "Unauthorized", "command listDatabases requires authentication"), false, "", false},
		{"a closed secondary", fakemongo.Failure(13, "Unauthorized", "command listDatabases requires authentication"), false, "", true},
		{"odd", fakemongo.Failure(8, "UnknownError", "no"), false, KindOther, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := fakemongo.Start(t, nil)
			s.Answer = func(name string, _ bson.Raw) (bson.D, error) {
				if name == "saslStart" {
					t.Error("it logs in")
				}
				return tt.reply, nil
			}
			if tt.one {
				primary := fakemongo.Start(t, nil)
				primary.Answer = s.Answer
				for kind, m := range map[string]*fakemongo.Server{"secondary": s, "isWritablePrimary": primary} {
					m.SetHello(bson.E{Key: kind, Value: true}, bson.E{Key: "setName", Value: "rs0"}, bson.E{Key: "setVersion", Value: 1},
						bson.E{Key: "hosts", Value: bson.A{s.Addr(), primary.Addr()}}, bson.E{Key: "me", Value: m.Addr()})
				}
			}
			target, err := ParseTarget("mongodb://amsagent:secret@" + s.Addr() + "/?authSource=admin")
			must.OK(t, err)
			open, err := OpenToAll(t.Context(), target, Options{Timeout: 5 * time.Second})
			if open != tt.open || KindOf(err) != tt.kind {
				t.Errorf("%v, %v", open, err)
			}
		})
	}
}

func TestLatency(t *testing.T) {
	s := fakemongo.Start(t, nil)
	pings := 0
	s.Answer = func(name string, _ bson.Raw) (bson.D, error) {
		if name == "ping" {
			pings++
		}
		return fakemongo.OK(), nil
	}
	d, err := connect(t, "mongodb://"+s.Addr(), Options{}).Latency(t.Context(), 3)
	if err != nil || d <= 0 || pings != 4 {
		t.Errorf("%v, %v after %d pings", d, err, pings)
	}
}

func TestHostNames(t *testing.T) {
	for text, want := range map[string][]string{
		"10.0.0.1": {"10.0.0.1"}, "db:27018": {"db"}, "mongodb://u:p@[2001:db8::1]:27018,h2/": {"2001:db8::1", "h2"},
		"mongodb+srv://c.example.net/": {"c.example.net"},
	} {
		target, err := ParseTarget(text)
		must.OK(t, err)
		must.NoDiff(t, text, target.HostNames(), want)
		must.Equal(t, text+": TLS", target.UsesTLS(), target.SRV())
	}
}
