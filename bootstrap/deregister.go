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

// ErrServing says that AMS still runs: it would write its document again at once.
var ErrServing = errors.New("Ant Media Server still runs") //nolint:staticcheck // a name

// DeregisterRequest is what a machine that goes down tells the cluster last.
type DeregisterRequest struct {
	Mongo  cluster.Target
	Reason string
	// LeftBy is that of [cluster.Node]; "" is the stop of the server.
	LeftBy string
	// Cut is how many sessions the stop of AMS has cut; nil is not known.
	Cut *int
	// RepairStreams ends the streams that this address leaves "broadcasting".
	RepairStreams bool
	// MongoWait is how long a MongoDB that does not answer is waited for; 0 is until
	// the context ends. A machine that shuts down waits for none that is away: what
	// it could not write, the next start of this machine does.
	MongoWait time.Duration
	// GoesDown: so does this machine. What tells of the server may have ended before us, as
	// docker does; then the server has ended where nobody listens at its port.
	GoesDown bool
}

// Deregister takes this node out of the cluster's lists after AMS has stopped. It
// changes nothing on the disk: a machine that is only restarted joins again by
// itself. A machine that never joined has nothing to say.
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
	if err == nil && st.Known() && !st.Dead() { // one that crashed may be about to be started again
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
	// Nobody on this machine writes AMS's document any more, so all that is there
	// of this address is from before.
	done, err := m.Depart(ctx, c, Departure{
		ID: s.InstanceID, Address: s.Address, StoppedAt: time.Now(), Reason: req.Reason, LeftBy: cmp.Or(req.LeftBy, cluster.LeftByStop), Cut: req.Cut, RepairStreams: req.RepairStreams,
	})
	if err == nil {
		err = c.AddEvent(ctx, cluster.Event{Node: s.InstanceID, Kind: "leave", Who: "amsagent", Why: req.Reason})
	}
	return &done, err
}

// refuses reports whether nobody listens at the server's port.
func (m *Machine) refuses(ctx context.Context) bool {
	in, err := m.open()
	return err == nil && ams.Refused(ctx, in.BaseURL())
}

// firstAnswer waits for MongoDB for so long; 0 waits for nothing.
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
