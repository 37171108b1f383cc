// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/conf"
)

// Paths of the agent's own files, below the root.
const (
	StateDir   = "/var/lib/amsagent"
	statePath  = StateDir + "/state.json"
	undoPath   = StateDir + "/undo.json"
	lockPath   = "/run/amsagent/lock"
	resultPath = "/run/amsagent/result.json"
	// drainPath is the daemon's: what it is about when this node goes. A node that
	// left by hand has nothing more to remember of it.
	drainPath = StateDir + "/drain.json"
)

// Phase is how far a machine is with joining or leaving.
type Phase string

// The phases. A machine without a state file never joined, or left completely.
const (
	PhaseJoining Phase = "joining"
	PhaseJoined  Phase = "joined"
	PhaseLeaving Phase = "leaving"
)

// State is what the agent remembers between two runs. It holds no secret.
type State struct {
	Version    int    `json:"version"` // of this format: 1
	Phase      Phase  `json:"phase"`
	InstanceID string `json:"instance_id"`
	Address    string `json:"address"`
	Role       string `json:"role,omitempty"`
	Group      string `json:"group,omitempty"`
	// RestartPending: files were changed and AMS has not been restarted since.
	RestartPending bool `json:"restart_pending,omitempty"`
	// WasRunning: AMS ran when the command began, and is to run when it ends.
	WasRunning bool `json:"was_running,omitempty"`
	// WasJoined: this machine was a proven node when a join began.
	WasJoined bool `json:"was_joined,omitempty"`
	// Standalone: a leave that is not finished makes the server standalone, whatever join found.
	Standalone bool `json:"standalone,omitempty"`
	// Provider and Release are the cloud's and the server's as of the last time the
	// files were right. A release that differs means that the server was upgraded.
	Provider string `json:"provider,omitempty"`
	Release  string `json:"release,omitempty"`
	// Restart says more of the restart that RestartPending asks for, or of one that
	// nobody asked for yet: files were written while the server ran.
	Restart *PendingRestart `json:"restart,omitempty"`
	// Restarts are those that the daemon made.
	Restarts *RestartLog `json:"restarts,omitempty"`
	Since    time.Time   `json:"since"`

	// forgotten stands for a state file that was damaged.
	forgotten bool
}

// Equal reports whether both say the same; nil is no state file.
func (s *State) Equal(o *State) bool {
	if s == nil || o == nil {
		return s == o
	}
	x, y := *s, *o
	// Behind a pointer, and a time in another zone is the same.
	x.Restart, x.Restarts, x.Since = nil, nil, time.Time{}
	y.Restart, y.Restarts, y.Since = nil, nil, time.Time{}
	return x == y && s.Since.Equal(o.Since) && s.Restart.equal(o.Restart) && s.Restarts.equal(o.Restarts)
}

// PendingRestart is a restart of the server that has not happened yet.
type PendingRestart struct {
	By    string    `json:"by"` // the command
	Since time.Time `json:"since"`
	// Values are what the server takes up by it, with secrets masked.
	Values []conf.Difference `json:"values,omitempty"`
	// Cause names the last of them.
	Cause string `json:"cause,omitempty"`
}

func (p *PendingRestart) equal(o *PendingRestart) bool {
	if p == nil || o == nil {
		return p == o
	}
	return p.By == o.By && p.Cause == o.Cause && p.Since.Equal(o.Since) && slices.Equal(p.Values, o.Values)
}

// RestartLog is what the daemon restarted the server for. One cause is acted on
// once, and all of them together not more often than every [restartEvery].
type RestartLog struct {
	Last   time.Time `json:"last"`
	Causes []string  `json:"causes,omitempty"` // of those without a command; the latest last
}

func (l *RestartLog) equal(o *RestartLog) bool {
	if l == nil || o == nil {
		return l == o
	}
	return l.Last.Equal(o.Last) && slices.Equal(l.Causes, o.Causes)
}

// restartEvery is the least time between two restarts by the daemon: whatever
// goes wrong, viewers are not cut more often.
const restartEvery = time.Hour

// maxCauses bounds the memory of causes.
const maxCauses = 16

// next is when the daemon may restart the server again; zero where it may now.
func (l *RestartLog) next(now time.Time) time.Time {
	if l == nil || l.Last.After(now) || now.Sub(l.Last) >= restartEvery {
		return time.Time{} // a clock that was set back holds up nothing
	}
	return l.Last.Add(restartEvery)
}

func (l *RestartLog) knows(cause string) bool { return l != nil && slices.Contains(l.Causes, cause) }

// with is the log after one more restart; cause is "" for a command's.
func (l *RestartLog) with(now time.Time, cause string) *RestartLog {
	n := &RestartLog{Last: now.UTC().Truncate(time.Second)}
	if l != nil {
		n.Causes = slices.Clone(l.Causes)
	}
	if cause != "" {
		n.Causes = append(n.Causes, cause)
	}
	if extra := len(n.Causes) - maxCauses; extra > 0 {
		n.Causes = n.Causes[extra:]
	}
	return n
}

const stateVersion = 1

// loadState reads the state file; nil when there is none. One that cannot be used
// is a [conf.DamagedError] or a [conf.VersionError].
func loadState(store *conf.Store) (*State, error) {
	f, err := store.Read(statePath)
	if err != nil || !f.Exists() {
		return nil, err
	}
	s := &State{}
	if err := json.Unmarshal(f.Bytes, s); err != nil {
		return nil, &conf.DamagedError{Path: statePath, Err: err}
	}
	switch s.Version {
	case stateVersion:
		s.Role = strings.ToLower(s.Role) // as settings are; earlier versions kept what they were given
		return s, nil
	case 0:
		return nil, &conf.DamagedError{Path: statePath, Err: errors.New("it does not say its format")}
	}
	return nil, &conf.VersionError{Path: statePath, Version: s.Version}
}

// KnownProvider is the cloud in which the machine below root was last known to be; ""
// where it never joined, or where the state file cannot be read.
func KnownProvider(root string) string {
	s, err := loadState((&Machine{Root: root}).store())
	if err != nil || s == nil {
		return ""
	}
	return s.Provider
}

func saveState(store *conf.Store, s State) error {
	s.Version = stateVersion
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return store.WriteFile(statePath, append(data, '\n'), 0o600, 0o700)
}
