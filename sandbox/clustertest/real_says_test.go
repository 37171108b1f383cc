// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package clustertest

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// TestRealMembersSay: a real set has names that only its own machines know, is not initiated, or has no member to write to.
// Each time the error is what its members say.
func TestRealMembersSay(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("a hosts file for mongod alone needs root")
	}
	const name = "mongo1.cluster.local"
	hosts := filepath.Join(t.TempDir(), "hosts")
	must.OK(t, os.WriteFile(hosts, []byte("127.0.0.1 localhost "+name+"\n"), 0o644))
	o := realmongo.Options{Prefix: []string{"unshare", "-m", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts}}
	plain := startReal(t, o)
	o.Members = 3
	s := startReal(t, o)
	o.Members, o.Args = 0, []string{"--replSet", "rs0"}
	empty := startReal(t, o)

	says := func(uri string, kind cluster.Kind, text string) {
		t.Helper()
		c := connect(t, uri, cluster.Options{Timeout: 5 * time.Second})
		var err error
		t.Cleanup(func() { t.Log(err) })
		must.Until(t, string(kind)+": "+text, func() bool {
			err = c.CheckAccess(t.Context())
			return cluster.KindOf(err) == kind && strings.Contains(err.Error(), text)
		})
	}
	first := "mongodb://" + s.Member(0).Addr() + "/"
	third := "mongodb://" + s.Member(2).Addr() + "/"
	for _, query := range []string{"", "?replicaSet=rs0"} {
		says("mongodb://"+empty.Member(0).Addr()+"/"+query, cluster.KindNotPrimary, "not initiated")
	}
	says(first+"?replicaSet=rs1", cluster.KindConfig, "of replica set rs0")
	says("mongodb://"+plain.Member(0).Addr()+"/?replicaSet=rs0", cluster.KindConfig, "a single server")

	admin := func(uri string, command bson.D) error {
		return openURI(t, uri+"?directConnection=true").Database("admin").RunCommand(t.Context(), command).Err()
	}
	must.OK(t, admin(third, bson.D{{Key: "replSetMaintenance", Value: 1}}))
	says(third, cluster.KindNotPrimary, "a starting or recovering member")
	must.OK(t, admin(third, bson.D{{Key: "replSetMaintenance", Value: 0}}))

	reconfigure := func(change func(member bson.M, i int)) {
		t.Helper()
		must.Until(t, "the set has another configuration", func() bool {
			var got struct{ Config bson.M }
			if openURI(t, first+"?directConnection=true").Database("admin").RunCommand(t.Context(), bson.D{{Key: "replSetGetConfig", Value: 1}}).Decode(&got) != nil {
				return false
			}
			members, _ := got.Config["members"].(bson.A)
			for i, m := range members {
				change(m.(bson.M), i)
			}
			got.Config["version"] = got.Config["version"].(int32) + 1
			err := admin(first, bson.D{{Key: "replSetReconfig", Value: got.Config}, {Key: "force", Value: true}})
			if err != nil && !mongo.IsNetworkError(err) {
				t.Log(err)
			}
			return err == nil
		})
	}
	reconfigure(func(m bson.M, i int) {
		if i == 2 {
			m["priority"], m["hidden"] = 0, true
		}
	})
	says(third, cluster.KindNotPrimary, "a hidden member")
	reconfigure(func(m bson.M, i int) {
		_, port, err := net.SplitHostPort(s.Member(i).Addr())
		must.OK(t, err)
		m["host"] = net.JoinHostPort(name, port)
	})
	for _, seed := range []string{first, third} {
		says(seed+"?replicaSet=rs0", cluster.KindDNS, "calls itself "+name)
	}
	must.OK(t, connect(t, first, cluster.Options{}).CheckAccess(t.Context())) // as AMS's driver: directly

	must.OK(t, s.Member(1).Kill())
	must.OK(t, s.Member(2).Kill())
	// After a forced configuration a primary without a majority was seen to remain one for minutes. This one may have stepped down.
	_ = admin(first, bson.D{{Key: "replSetStepDown", Value: 120}, {Key: "force", Value: true}})
	says(first+"?replicaSet=rs0", cluster.KindNotPrimary, "which has no primary")
}
