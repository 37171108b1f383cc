// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"net"
	"strings"
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/internal/fakes/fakemongo"
)

// TestMembersSay: why a replica set cannot be used is what its members say of themselves, not that the driver waited.
func TestMembersSay(t *testing.T) {
	t.Parallel()
	const one, two = "mongo1.cluster.local:27017", "mongo2.cluster.local:27017"
	// Only the fake servers can be reached. DNS has none of the names, and nothing answers at an address.
	dial := dialFunc(func(ctx context.Context, network, address string) (net.Conn, error) {
		switch host, _, _ := net.SplitHostPort(address); {
		case host == "127.0.0.1":
			return new(net.Dialer).DialContext(ctx, network, address)
		case net.ParseIP(host) != nil:
			<-ctx.Done()
			return nil, ctx.Err()
		default:
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		}
	})
	e := func(key string, value any) bson.E { return bson.E{Key: key, Value: value} }
	hosts := func(all ...string) bson.E { return e("hosts", all) }
	primary, secondary, set := e("isWritablePrimary", true), e("secondary", true), e("setName", "rs0")
	passive, hidden := e("passive", true), e("hidden", true)

	tests := []struct {
		name, query string
		servers     [][]bson.E // SELF is the server's address
		refused     bool       // the commands, as by a member without the users
		kind        Kind
		host        string // "" is the first server
		text, hint  string
	}{
		{
			"names unknown here", "replicaSet=rs0",
			[][]bson.E{{primary, set, e("me", one), e("primary", one), hosts(one, two)}},
			false,
			KindDNS, one + ", " + two, "it is the primary of replica set rs0, and calls itself " + one, "names or addresses of their own",
		},
		{
			"a secondary of unknown names", "replicaSet=rs0",
			[][]bson.E{{secondary, set, e("me", two), e("primary", one), hosts(one, two)}},
			false,
			KindDNS, one + ", " + two, "a secondary of replica set rs0, whose primary is " + one, "names or addresses of their own",
		},
		{
			"addresses behind a NAT", "replicaSet=rs0",
			[][]bson.E{{primary, set, e("me", "172.17.0.2:27017"), e("primary", "172.17.0.2:27017"), hosts("172.17.0.2:27017")}},
			false,
			KindTimeout, "172.17.0.2:27017", "calls itself 172.17.0.2:27017", "names or addresses of their own",
		},
		{
			"hidden, the others unknown", "replicaSet=rs0",
			[][]bson.E{{secondary, passive, hidden, set, e("me", "SELF"), e("primary", one), hosts(one, two)}},
			false,
			KindDNS, one + ", " + two, "a hidden member of replica set rs0", "names or addresses of their own",
		},
		{
			"no primary", "replicaSet=rs0",
			[][]bson.E{{secondary, set, e("me", "SELF"), hosts("SELF", one)}},
			false,
			KindNotPrimary, "", "a secondary of replica set rs0, which has no primary", "",
		},
		{
			"not initiated", "replicaSet=rs0",
			[][]bson.E{{e("isreplicaset", true)}},
			false,
			KindNotPrimary, "", "not initiated", "",
		},
		{
			"one of two not initiated", "replicaSet=rs0",
			[][]bson.E{{e("isreplicaset", true)}, {primary, e("setName", "rs1"), e("me", "SELF"), hosts("SELF")}},
			false,
			KindNotPrimary, "", "not initiated", "",
		},
		{
			"recovering", "replicaSet=rs0",
			[][]bson.E{{set, e("me", "SELF"), hosts("SELF", one)}},
			false,
			KindNotPrimary, "", "starting or recovering", "",
		},
		{
			"arbiter", "replicaSet=rs0",
			[][]bson.E{{e("arbiterOnly", true), set, e("me", "SELF"), hosts(one), e("arbiters", bson.A{"SELF"})}},
			false,
			KindNotPrimary, "", "an arbiter of replica set rs0", "",
		},
		{
			"another set", "replicaSet=rs0",
			[][]bson.E{{primary, e("setName", "rs1"), e("me", "SELF"), hosts("SELF")}},
			false,
			KindConfig, "", "the primary of replica set rs1", "",
		},
		{
			"no set", "replicaSet=rs0",
			[][]bson.E{{primary}},
			false,
			KindConfig, "", "a single server", "",
		},
		{
			"alone, an arbiter without the users", "appName=x",
			[][]bson.E{{e("arbiterOnly", true), set, e("me", "SELF"), hosts(one), e("arbiters", bson.A{"SELF"})}},
			true,
			KindNotPrimary, "", "an arbiter of replica set rs0", "",
		},
		{
			"alone, not initiated", "appName=x",
			[][]bson.E{{e("isreplicaset", true)}},
			false,
			KindNotPrimary, "", "not initiated", "",
		},
		{
			"alone, recovering", "appName=x",
			[][]bson.E{{set, e("me", "SELF"), hosts("SELF", one)}},
			false,
			KindNotPrimary, "", "starting or recovering", "",
		},
		{
			"alone, hidden", "appName=x",
			[][]bson.E{{secondary, passive, hidden, set, e("me", "SELF"), e("primary", one), hosts(one)}},
			false,
			KindNotPrimary, "", "name the set: mongodb://" + one + "/?replicaSet=rs0", "",
		},
	}
	errs, addrs := make([]error, len(tests)), make([][]string, len(tests))
	atOnce(len(tests), func(i int) {
		tt := tests[i]
		for _, hello := range tt.servers {
			s := fakemongo.Start(t, nil)
			s.SetHello(asSelf(hello, s.Addr())...)
			if tt.refused {
				s.Answer = always(fakemongo.Failure(18, "AuthenticationFailed", "no such user"))
			}
			addrs[i] = append(addrs[i], s.Addr())
		}
		errs[i] = connect(t, "mongodb://"+strings.Join(addrs[i], ",")+"/?"+tt.query, Options{Timeout: quick, Dialer: dial}).Ping(t.Context())
	})
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := checkError(t, errs[i], tt.kind, cmp.Or(tt.host, addrs[i][0]))
			if !strings.Contains(e.Error(), tt.text) || !strings.Contains(e.Hint, tt.hint) || (e.Hint == "") != (tt.hint == "") {
				t.Errorf("got  %s; hint %q\nwant %s; hint %q", e, e.Hint, tt.text, tt.hint)
			}
		})
	}
}

func asSelf(hello []bson.E, addr string) (out []bson.E) {
	for _, e := range hello {
		switch v := e.Value.(type) {
		case string:
			e.Value = strings.Replace(v, "SELF", addr, 1)
		case []string:
			list := bson.A{}
			for _, h := range v {
				list = append(list, strings.Replace(h, "SELF", addr, 1))
			}
			e.Value = list
		case bson.A:
			e.Value = bson.A{addr}
		}
		out = append(out, e)
	}
	return out
}
