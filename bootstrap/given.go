// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/json"
	"errors"
	"maps"

	"github.com/amsagent/amsagent/conf"
)

// GivenPath keeps settings from join's command line and environment: the daemon has neither, and would return the node to
// the defaults.
const GivenPath = StateDir + "/given.json"

// GoodConfigPath keeps a node's last good settings file, empty if there was no file: a typing error must not stop its agent.
const GoodConfigPath = StateDir + "/config.yaml.good"

// LoadGoodConfig returns nil without such a file.
func LoadGoodConfig(root string) ([]byte, error) {
	f, err := (&conf.Store{Root: root, Dir: StateDir}).Read(GoodConfigPath)
	return f.Bytes, err
}

// KeepGoodConfig keeps text if this machine is a node, and reports whether it did.
func (m *Machine) KeepGoodConfig(text []byte) (bool, error) {
	s, err := m.StateFile()
	if err != nil || s == nil || s.Phase != PhaseJoined {
		return false, err
	}
	err = keepConfig(m.store(), text)
	return err == nil, err
}

func keepConfig(store *conf.Store, text []byte) error {
	if text == nil {
		return nil
	}
	return store.WriteFile(GoodConfigPath, text, 0o600, 0o700)
}

// givenAddress is the setting that a copy of the disk must not use.
const givenAddress = "address"

// Given is the content of [GivenPath]. It contains no secret.
type Given struct {
	Version  int               `json:"version"` // of the format: 1
	Settings map[string]string `json:"settings"`
	// ForcedAddress was used although no interface has it.
	ForcedAddress string `json:"forced_address,omitempty"`
}

const givenVersion = 1

// LoadGiven returns nil if there is no file below root, and a [conf.DamagedError] or a [conf.VersionError] if it
// is unusable.
func LoadGiven(root string) (*Given, error) {
	return loadGiven(&conf.Store{Root: root, Dir: StateDir})
}

func loadGiven(store *conf.Store) (*Given, error) {
	f, err := store.Read(GivenPath)
	if err != nil || !f.Exists() {
		return nil, err
	}
	g := &Given{}
	if err := json.Unmarshal(f.Bytes, g); err != nil {
		return nil, &conf.DamagedError{Path: GivenPath, Err: err}
	}
	switch g.Version {
	case givenVersion:
		return g, nil
	case 0:
		return nil, &conf.DamagedError{Path: GivenPath, Err: errors.New("it does not say its format")}
	}
	return nil, &conf.VersionError{Path: GivenPath, Version: g.Version}
}

// saveGiven removes an empty file.
func saveGiven(store *conf.Store, g *Given) error {
	if g == nil || len(g.Settings) == 0 && g.ForcedAddress == "" {
		return store.RemoveFile(GivenPath)
	}
	data, err := json.MarshalIndent(Given{Version: givenVersion, Settings: g.Settings, ForcedAddress: g.ForcedAddress}, "", "  ")
	if err != nil {
		return err
	}
	return store.WriteFile(GivenPath, append(data, '\n'), 0o600, 0o700)
}

func (g *Given) equal(o *Given) bool {
	var a, b Given
	if g != nil {
		a = *g
	}
	if o != nil {
		b = *o
	}
	return maps.Equal(a.Settings, b.Settings) && a.ForcedAddress == b.ForcedAddress
}

func (g *Given) withoutAddress() *Given {
	if g == nil {
		return nil
	}
	rest := maps.Clone(g.Settings)
	delete(rest, givenAddress)
	return &Given{Settings: rest}
}

func (j *joiner) keepGiven() (changed bool, err error) {
	if j.req.Given == nil || j.req.Given.equal(j.facts.given) {
		return false, nil
	}
	return true, saveGiven(j.store, j.req.Given)
}

func (j *joiner) restoreGiven() error {
	if j.req.Given == nil || j.req.Given.equal(j.facts.given) {
		return nil
	}
	return saveGiven(j.store, j.facts.given)
}

// isCopy reports whether the disk was copied.
func isCopy(s *State, id string) bool {
	return s != nil && s.InstanceID != "" && id != "" && s.InstanceID != id
}
