// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// Balancer is what a load balancer last did with a node.
type Balancer struct {
	Uses bool      `bson:"uses" json:"uses"` // false if it sends no new sessions to the node
	At   time.Time `bson:"at" json:"at"`     // when it last confirmed that, by MongoDB's clock
}

const (
	// BalancerInterval is the longest time between two confirmations.
	BalancerInterval = time.Minute
	// balancerLimit is the age after which a confirmation is ignored: that balancer no longer runs.
	balancerLimit = 3 * BalancerInterval
	balancersKey  = "balancers"
	maxBalancer   = 40 // bytes of a name
)

// BalancersAt returns the load balancers that confirmed recently what they do with the node, by name.
func (n Node) BalancersAt(serverNow time.Time) map[string]Balancer {
	recent := map[string]Balancer{}
	for name, b := range n.Balancers {
		if serverNow.Sub(b.At) < balancerLimit {
			recent[name] = b
		}
	}
	if serverNow.Sub(n.UpdatedAt) < balancerLimit {
		for name, uses := range n.Checks {
			recent[name] = Balancer{uses, n.UpdatedAt}
		}
	}
	return recent
}

// BalancerName makes a name of a load balancer from a host name: letters, digits and hyphens.
func BalancerName(host string) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(host))
	return name[:min(len(name), maxBalancer)]
}

// SetBalancer writes into the records that the load balancer sends new sessions to the nodes of these ids, and to no other
// node. name is a [BalancerName]. It is written again within [BalancerInterval]. What balancers wrote that ended is removed.
func (c *Client) SetBalancer(ctx context.Context, name string, uses []string) error {
	if uses == nil {
		uses = []string{}
	}
	field := balancersKey + "." + name
	write := func(filter bson.D, is bool) error {
		update := bson.D{
			{Key: "$set", Value: bson.D{{Key: field + ".uses", Value: is}}},
			{Key: "$currentDate", Value: bson.D{{Key: field + ".at", Value: true}}},
		}
		return c.call(ctx, "confirming what a load balancer uses", func(ctx context.Context) error {
			_, err := c.nodes().UpdateMany(ctx, filter, update)
			return err
		})
	}
	if err := write(bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: uses}}}}, true); err != nil {
		return err
	}
	err := write(bson.D{
		{Key: "_id", Value: bson.D{{Key: "$nin", Value: uses}}},
		{Key: "state", Value: bson.D{{Key: "$ne", Value: StateLeft}}},
		{Key: field, Value: bson.D{{Key: "$exists", Value: true}}},
	}, false)
	if err == nil {
		c.forgetBalancers(ctx)
	}
	return err
}

// mostForgotten bounds the names that one call removes.
const mostForgotten = 8

// forgetBalancers removes old confirmations: a load balancer in a container has another name after each start, and a record is
// bounded. The next call retries after a failure.
func (c *Client) forgetBalancers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	now, err := c.ServerTime(ctx)
	if err != nil {
		return
	}
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return
	}
	old := map[string]bool{}
	for _, n := range nodes {
		for name, b := range n.Balancers {
			if name != "" && name == BalancerName(name) && now.Sub(b.At) >= balancerLimit && len(old) < mostForgotten {
				old[name] = true
			}
		}
	}
	for name := range old {
		field := balancersKey + "." + name
		filter := bson.D{{Key: field + ".at", Value: bson.D{{Key: "$lte", Value: now.Add(-balancerLimit)}}}}
		_ = c.call(ctx, "removing old confirmations of a load balancer", func(ctx context.Context) error {
			_, err := c.nodes().UpdateMany(ctx, filter, bson.D{{Key: "$unset", Value: bson.D{{Key: field, Value: ""}}}})
			return err
		})
	}
}
