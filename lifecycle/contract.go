// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/seconds"
)

// Node is this machine as a cluster node. Its methods return when ctx ends, and may be called again after any outcome.
type Node interface {
	// SetState writes the state with majority write concern.
	SetState(ctx context.Context, s cluster.State, reason string, stopFailed bool) error
	// Sessions counts the sessions now. It must not return an earlier result.
	Sessions(ctx context.Context) (cluster.Sessions, error)
	// StopServer returns when the server has ended.
	StopServer(ctx context.Context) error
	StartServer(ctx context.Context) error
	// Deregister removes the AMS document of this node's address and sets the node record to left.
	Deregister(ctx context.Context, d Departure) error
	// Joined reports whether this machine was ever seen in the cluster. It must not block.
	Joined() bool
	// JoinedAt returns the end of the last join, or zero if none has ended or one is in progress. It must not block.
	JoinedAt() time.Time
}

// Departure describes a node that has left.
type Departure struct {
	Reason string `json:"reason,omitempty"`
	// LeftBy has the values of [cluster.Node].LeftBy.
	LeftBy string `json:"left_by,omitempty"`
	// Cut is how many sessions the stop cut; nil if not countable.
	Cut *int `json:"cut,omitempty"`
	// RepairStreams ends the streams that this node leaves "broadcasting".
	RepairStreams bool `json:"repair_streams,omitempty"`
}

// ErrNotManaged means that nothing on this machine can stop the server or check whether it runs.
var ErrNotManaged = errors.New("the server is not managed here")

// Peers reports on other nodes of the cluster.
type Peers interface {
	// Serving returns those machines that run the agent and are neither left nor gone. A machine is given by its id or by its
	// name in the cloud's signals.
	Serving(ctx context.Context, machines []string) ([]string, error)
}

// DrainRequest is the operator's request for a drain.
type DrainRequest struct {
	// Deadline limits the wait for sessions; 0 means the configured time.
	Deadline seconds.Duration `json:"deadline_seconds,omitempty"`
	Now      bool             `json:"now,omitempty"`
	Reason   string           `json:"reason,omitempty"`
	Who      string           `json:"asked_by,omitempty"`
	// RepairStreams ends the streams that this node leaves "broadcasting".
	RepairStreams bool `json:"repair_streams,omitempty"`
}
