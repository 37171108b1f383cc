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
	Uses bool      `bson:"uses" json:"uses"` // false if it sends no new sessions
	At   time.Time `bson:"at" json:"at"`     // last confirmation, by MongoDB's clock
}

const (
	// BalancerInterval is the longest time between two confirmations.
	BalancerInterval = time.Minute
	// After balancerLimit, a load balancer no longer runs.
	balancerLimit = 3 * BalancerInterval
	balancersKey  = "balancers"
	maxBalancer   = 40 // bytes
)

// BalancersAt returns recent confirmations by load balancer.
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

// BalancerName makes a name from a host name.
func BalancerName(host string) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(host))
	return name[:min(len(name), maxBalancer)]
}

// SetBalancer records that a load balancer ([BalancerName]) sends new sessions only to the nodes in uses. Repeat it within
// [BalancerInterval].
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
		return c.updateMany(ctx, "confirming what a load balancer uses", c.nodes(), filter, update)
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

// forgetBalancers keeps records small: a load balancer in a container is renamed at each start.
func (c *Client) forgetBalancers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	look, err := c.Look(ctx)
	if err != nil {
		return
	}
	before := look.ServerTime.Add(-balancerLimit)
	old := map[string]bool{}
	for _, n := range look.Nodes {
		for name, b := range n.Balancers {
			if name != "" && name == BalancerName(name) && !b.At.After(before) {
				old[name] = true
			}
		}
	}
	for name := range old {
		field := balancersKey + "." + name
		filter := bson.D{{Key: field + ".at", Value: bson.D{{Key: "$lte", Value: before}}}}
		update := bson.D{{Key: "$unset", Value: bson.D{{Key: field, Value: ""}}}}
		_ = c.updateMany(ctx, "removing old confirmations of a load balancer", c.nodes(), filter, update)
	}
}
