// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/json"
	"errors"
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
	// FilesWritten is when files that the server reads were last written while it ran. A
	// server that was started before that has to be restarted. Zero: no such write.
	FilesWritten time.Time `json:"files_written,omitzero"`
	Since        time.Time `json:"since"`

	// forgotten stands for a state file that was damaged.
	forgotten bool
}

// Equal reports whether both say the same; nil is no state file.
func (s *State) Equal(o *State) bool {
	if s == nil || o == nil {
		return s == o
	}
	x, y := *s, *o
	// A time in another zone is the same.
	x.FilesWritten, x.Since = time.Time{}, time.Time{}
	y.FilesWritten, y.Since = time.Time{}, time.Time{}
	return x == y && s.Since.Equal(o.Since) && s.FilesWritten.Equal(o.FilesWritten)
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
