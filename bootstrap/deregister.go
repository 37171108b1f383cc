// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/sleep"
)

// ErrServing reports a running server, which would write its AMS document again.
var ErrServing = errors.New("Ant Media Server still runs") //nolint:staticcheck // a name

// DeregisterRequest is the input of [Machine.Deregister].
type DeregisterRequest struct {
	Mongo  cluster.Target
	Reason string
	// LeftBy defaults to [cluster.LeftByStop].
	LeftBy string
	// Cut is as in [Departure].
	Cut *int
	// RepairStreams is as in [Departure].
	RepairStreams bool
	// MongoWait bounds the wait for MongoDB; 0 leaves that to ctx. This machine's next start repeats a failed
	// deregistration.
	MongoWait time.Duration
	// GoesDown reports a shutdown. Docker, for example, may have ended before: a refused port then counts as a
	// stopped server.
	GoesDown bool
}

// Deregister removes this node from the cluster after the server's stop. The files stay, so that a restarted
// machine rejoins. Its errors include [ErrNotMember] and [ErrServing].
func (m *Machine) Deregister(ctx context.Context, req DeregisterRequest) (*Departed, error) {
	s, err := loadState(m.store())
	if err != nil {
		return nil, err
	}
	if s == nil || s.InstanceID == "" {
		return nil, ErrNotMember
	}
	st, err := m.Service.State(ctx)
	if err != nil && (!req.GoesDown || !m.refuses(ctx)) {
		return nil, err
	}
	if err == nil && st.Known() && !st.Dead() { // a crashed server may restart
		return nil, fmt.Errorf("deregistering: %w: %s is %s", ErrServing, m.Service.Name(), st)
	}
	c, err := m.Connect(ctx, req.Mongo)
	if err != nil {
		return nil, err
	}
	defer closeClient(ctx, c)
	if err := firstAnswer(ctx, c, req.MongoWait); err != nil {
		return nil, err
	}
	// Every document of this address is old: the server is stopped.
	done, err := m.Depart(ctx, c, Departure{
		ID: s.InstanceID, Address: s.Address, StoppedAt: time.Now(), Reason: req.Reason, LeftBy: cmp.Or(req.LeftBy, cluster.LeftByStop), Cut: req.Cut, RepairStreams: req.RepairStreams,
	})
	if err == nil {
		err = c.AddEvent(ctx, cluster.Event{Node: s.InstanceID, Kind: "leave", Who: "amsagent", Why: req.Reason})
	}
	return &done, err
}

func (m *Machine) refuses(ctx context.Context) bool {
	in, err := m.open()
	return err == nil && ams.Refused(ctx, in.BaseURL())
}

// firstAnswer waits until MongoDB answers; 0 waits for nothing.
func firstAnswer(ctx context.Context, c *cluster.Client, wait time.Duration) error {
	if wait <= 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		err := c.Ping(ctx)
		if cluster.KindOf(err) != cluster.KindLost || !sleep.For(ctx, watchPoll) {
			return err
		}
	}
}
