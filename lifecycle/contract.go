// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"time"

	"github.com/amsagent/amsagent/cluster"
)

// Node is this machine as a node of the cluster. Its methods return when their context ends, and may be called again after any
// outcome.
type Node interface {
	// SetState writes the state of our row, by majority. stopFailed reports that the server
	// does not end.
	SetState(ctx context.Context, s cluster.State, reason string, stopFailed bool) error
	// Sessions counts the sessions of this node now. An answer kept from the call before would prove nothing.
	Sessions(ctx context.Context) (cluster.Sessions, error)
	// StopServer stops Ant Media Server and returns when it has ended.
	StopServer(ctx context.Context) error
	StartServer(ctx context.Context) error
	// Deregister removes AMS's own document of our address and makes our row say left.
	Deregister(ctx context.Context, d Departure) error
	// Joined reports whether this machine ever was proved to be in the cluster. It must not block.
	Joined() bool
	// JoinedAt returns when the last join ended; zero if none did, or one is under way. It must not block.
	JoinedAt() time.Time
}

// Departure is what others can read of a node that has left.
type Departure struct {
	Reason string `json:"reason,omitempty"`
	Who    string `json:"who,omitempty"`
	// LeftBy is that of [cluster.Node].
	LeftBy string `json:"left_by,omitempty"`
	// Sessions are those that were there when AMS was stopped, Cut how many of
	// them were cut by that; nil where nobody could count.
	Sessions *cluster.Sessions `json:"sessions,omitempty"`
	Cut      *int              `json:"cut,omitempty"`
	// RepairStreams asks to end the streams that our address left "broadcasting".
	RepairStreams bool `json:"repair_streams,omitempty"`
}

// ErrNotManaged says that nothing on this machine can stop the server, or tell whether it runs.
var ErrNotManaged = errors.New("the server is not managed here")

// Peers knows the other nodes of the cluster.
type Peers interface {
	// Serving returns those of the machines, named by id or as their cloud's signals call them, that run the agent and have
	// neither left nor gone.
	Serving(ctx context.Context, machines []string) ([]string, error)
}

// DrainRequest asks for a drain by hand.
type DrainRequest struct {
	// Deadline is how long sessions are waited for; 0 is what is configured.
	Deadline time.Duration `json:"deadline_ns,omitempty"`
	// Now waits for none.
	Now    bool   `json:"now,omitempty"`
	Reason string `json:"reason,omitempty"`
	Who    string `json:"who,omitempty"`
	// RepairStreams ends the streams that this node leaves "broadcasting".
	RepairStreams bool `json:"repair_streams,omitempty"`
}
