// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/amsagent/amsagent/conf"
)

// Paths of the agent's own files below the root.
const (
	StateDir   = "/var/lib/amsagent"
	statePath  = StateDir + "/state.json"
	undoPath   = StateDir + "/undo.json"
	lockPath   = "/run/amsagent/lock"
	resultPath = "/run/amsagent/result.json"
	// drainPath is the daemon's, for a drain. It is obsolete after a leave.
	drainPath = StateDir + "/drain.json"
)

// Phase is the progress of a join or a leave.
type Phase string

// The phases. Without a state file, this machine never joined or has left.
const (
	PhaseJoining Phase = "joining"
	PhaseJoined  Phase = "joined"
	PhaseLeaving Phase = "leaving"
)

// State is the agent's state between two runs.
type State struct {
	Version    int    `json:"version"` // of the format: 1
	Phase      Phase  `json:"phase"`
	InstanceID string `json:"instance_id"`
	Address    string `json:"address"`
	// Hardware is that of the machine that joined; "" is unknown.
	Hardware string `json:"hardware,omitempty"`
	Role     string `json:"role,omitempty"`
	Group    string `json:"group,omitempty"`
	// RestartPending reports an address or files that changed since the server's start.
	RestartPending bool `json:"restart_pending,omitempty"`
	// Start reports that the agent stopped the server, which must run, and has not started it again.
	Start bool `json:"start,omitempty"`
	// Boot is that of the command, for Start; "" is unknown.
	Boot string `json:"boot,omitempty"`
	// WasJoined reports that the join began on a verified node.
	WasJoined bool `json:"was_joined,omitempty"`
	// Standalone reports that an unfinished leave makes the server standalone.
	Standalone bool `json:"standalone,omitempty"`
	// Provider and Release are from the last time when the files were right. A new release means an upgrade.
	Provider string `json:"provider,omitempty"`
	Release  string `json:"release,omitempty"`
	// Given are the settings that the join was given, or nil.
	Given *Given `json:"given,omitempty"`
	// Own are the undo records of the agent's own files. A former content may be a secret.
	Own   []*conf.FileRecord `json:"own,omitempty"`
	Since time.Time          `json:"since"`

	// forgotten reports a damaged file.
	forgotten bool
}

// Equal reports whether both have the same content; nil is no file.
func (s *State) Equal(o *State) bool {
	if s == nil || o == nil {
		return s == o
	}
	x, y := *s, *o
	x.Since, y.Since = x.Since.UTC(), y.Since.UTC()
	a, err := x.encode()
	b, berr := y.encode()
	return err == nil && berr == nil && bytes.Equal(a, b)
}

func (s State) encode() ([]byte, error) { return json.MarshalIndent(s, "", "  ") }

const stateVersion = 1

// loadState returns nil without a join or a leave, and a [conf.DamagedError] or a [conf.VersionError] if the file is unusable.
func loadState(store *conf.Store) (*State, error) {
	s, err := readState(store)
	if err != nil || s == nil || s.Phase == "" {
		return nil, err
	}
	return s, nil
}

// readState also returns the state of a join with --offline, which has no phase.
func readState(store *conf.Store) (*State, error) {
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
		if slices.ContainsFunc(s.Own, func(f *conf.FileRecord) bool { return f == nil || !agentsOwn(f.Path) }) {
			return nil, &conf.DamagedError{Path: statePath, Err: errors.New("it names a file that is not the agent's")}
		}
		return s, nil
	case 0:
		return nil, &conf.DamagedError{Path: statePath, Err: errors.New("it does not say its format")}
	}
	return nil, &conf.VersionError{Path: statePath, Version: s.Version}
}

// KnownProvider returns the last known cloud of the machine below root, or "".
func KnownProvider(root string) string {
	s, err := loadState((&Machine{Root: root}).store())
	if err != nil || s == nil {
		return ""
	}
	return s.Provider
}

// forgetState removes the state file, unless it has the records of a join with --offline, or that join has no own files: without
// a state file they are known by name.
func forgetState(store *conf.Store, own []*conf.FileRecord) error {
	record, err := store.Record()
	if err != nil || record != nil || len(own) > 0 {
		return saveState(store, State{Own: own})
	}
	return store.RemoveFile(statePath)
}

// stamp notes the boot and the time of a command that changes the phase.
func (m *Machine) stamp(s *State) {
	s.Boot, s.Since = m.bootID(), time.Now().UTC().Truncate(time.Microsecond)
}

func saveState(store *conf.Store, s State) error {
	s.Version = stateVersion
	data, err := s.encode()
	if err != nil {
		return err
	}
	return store.WriteFile(statePath, append(data, '\n'), 0o600, 0o700)
}
