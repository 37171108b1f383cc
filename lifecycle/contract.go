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
	// SetState writes the state of the node record with a majority write concern. stopFailed reports that the server does not
	// end.
	SetState(ctx context.Context, s cluster.State, reason string, stopFailed bool) error
	// Sessions counts the sessions of this node now. It must not return an earlier result.
	Sessions(ctx context.Context) (cluster.Sessions, error)
	// StopServer stops Ant Media Server and returns when it has ended.
	StopServer(ctx context.Context) error
	StartServer(ctx context.Context) error
	// Deregister removes the AMS document of this node's address and sets the node record to left.
	Deregister(ctx context.Context, d Departure) error
	// Joined reports whether this machine has ever been seen in the cluster. It must not block.
	Joined() bool
	// JoinedAt returns the end of the last join; zero if no join has ended or one is under way. It must not block.
	JoinedAt() time.Time
}

// Departure describes a node that has left, for other agents and the operator.
type Departure struct {
	Reason string `json:"reason,omitempty"`
	Who    string `json:"who,omitempty"`
	// LeftBy has the values of [cluster.Node].LeftBy.
	LeftBy string `json:"left_by,omitempty"`
	// Sessions is the last count before AMS was stopped, Cut the number of sessions that the stop cut; nil if they could not be
	// counted.
	Sessions *cluster.Sessions `json:"sessions,omitempty"`
	Cut      *int              `json:"cut,omitempty"`
	// RepairStreams requests the end of the streams that this node leaves "broadcasting".
	RepairStreams bool `json:"repair_streams,omitempty"`
}

// ErrNotManaged reports that nothing on this machine can stop the server or check whether it runs.
var ErrNotManaged = errors.New("the server is not managed here")

// Peers reports on the other nodes of the cluster.
type Peers interface {
	// Serving returns those of the machines that run the agent and are neither left nor gone. The machines are given by id, or
	// by the name in the cloud's signals.
	Serving(ctx context.Context, machines []string) ([]string, error)
}

// DrainRequest is the operator's request for a drain.
type DrainRequest struct {
	// Deadline is how long the drain waits for sessions; 0 means the configured time.
	Deadline time.Duration `json:"deadline_ns,omitempty"`
	// Now does not wait for sessions.
	Now    bool   `json:"now,omitempty"`
	Reason string `json:"reason,omitempty"`
	Who    string `json:"who,omitempty"`
	// RepairStreams ends the streams that this node leaves "broadcasting".
	RepairStreams bool `json:"repair_streams,omitempty"`
}
