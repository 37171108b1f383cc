// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"fmt"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

// TestBalancers: what load balancers confirm stays over writes of the node, and ends with its boot.
func TestBalancers(t *testing.T) {
	onBoth(t, func(t *testing.T, b backdoor, c *cluster.Client) {
		for _, id := range []string{"i-1", "i-2", "i-3"} {
			n := node()
			n.ID = id
			register(t, c, n)
		}
		uses := func(id string) map[string]bool {
			t.Helper()
			n, err := c.Node(t.Context(), id)
			must.OK(t, err)
			now, err := c.ServerTime(t.Context())
			must.OK(t, err)
			found := map[string]bool{}
			for name, b := range n.BalancersAt(now) {
				found[name] = b.Uses
			}
			if late := n.BalancersAt(now.Add(time.Hour)); len(late) > 0 {
				t.Errorf("an hour later: %v", late)
			}
			return found
		}
		must.OK(t, c.SetBalancer(t.Context(), "lb-1", []string{"i-1", "i-2"}))
		must.OK(t, c.SetBalancer(t.Context(), "lb-2", []string{"i-1"}))
		must.OK(t, c.SetBalancer(t.Context(), "lb-2", nil))
		first := node()
		first.ID = "i-1"
		must.OK(t, c.SetOwnState(t.Context(), first, cluster.StateActive, "verified", cluster.Details{}))
		for id, want := range map[string]map[string]bool{"i-1": {"lb-1": true, "lb-2": false}, "i-2": {"lb-1": true}, "i-3": {}} {
			must.NoDiff(t, id, uses(id), want)
		}
		must.OK(t, c.SetBalancer(t.Context(), "lb-1", []string{"i-2"}))
		must.NoDiff(t, "i-1 is taken out", uses("i-1"), map[string]bool{"lb-1": false, "lb-2": false})

		// Old confirmations are removed.
		_, err := b.nodes().UpdateMany(t.Context(), bson.M{"balancers.lb-2": bson.M{"$exists": true}},
			bson.M{"$set": bson.M{"balancers.lb-2.at": time.Now().Add(-time.Hour)}})
		must.OK(t, err)
		must.OK(t, c.SetBalancer(t.Context(), "lb-1", []string{"i-2"}))
		if n, err := c.Node(t.Context(), "i-1"); err != nil || len(n.Balancers) != 1 {
			t.Errorf("after an hour: %v, %v", n.Balancers, err)
		}

		again := node()
		again.ID, again.BootID = "i-1", "another boot"
		register(t, c, again)
		must.NoDiff(t, "i-1 after a boot", uses("i-1"), map[string]bool{})
	})
}

func TestBalancerName(t *testing.T) {
	for host, want := range map[string]string{
		"lb-1": "lb-1", "LB1.example.com": "lb1-example-com", "a$b.ö": "a-b--", "": "",
	} {
		must.Equal(t, fmt.Sprintf("name of %q", host), cluster.BalancerName(host), want)
	}
}
