// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"maps"

	"github.com/amsagent/amsagent/conf"
)

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

// Given are settings from join's command line and environment: the daemon has neither, and would return the node to the
// defaults. It contains no secret.
type Given struct {
	Settings map[string]string `json:"settings"`
	// ForcedAddress was used although no interface has it.
	ForcedAddress string `json:"forced_address,omitempty"`
}

// LoadGiven returns nil without given settings below root, and a [conf.DamagedError] or a [conf.VersionError] if the state file is
// unusable.
func LoadGiven(root string) (*Given, error) {
	s, err := readState(&conf.Store{Root: root, Dir: StateDir})
	if err != nil || s == nil {
		return nil, err
	}
	return s.Given, nil
}

// orNil returns nil if there is nothing to keep.
func (g *Given) orNil() *Given {
	if g == nil || len(g.Settings) == 0 && g.ForcedAddress == "" {
		return nil
	}
	return g
}

func (g *Given) withoutAddress() *Given {
	if g == nil {
		return nil
	}
	rest := maps.Clone(g.Settings)
	delete(rest, givenAddress)
	return &Given{Settings: rest}
}

// isCopy reports whether the disk was copied.
func isCopy(s *State, id string) bool {
	return s != nil && s.InstanceID != "" && id != "" && s.InstanceID != id
}
