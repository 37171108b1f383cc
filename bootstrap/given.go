// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"encoding/json"
	"errors"
	"maps"

	"github.com/amsagent/amsagent/conf"
)

// GivenPath keeps the settings that an operator gave to join on its command line
// or in its environment. Without it the daemon, which has neither, would take the
// node back to the defaults.
const GivenPath = StateDir + "/given.json"

// GivenAddress is the setting that belongs to one machine: the copy of a disk does
// not take it over.
const GivenAddress = "address"

// Given is the content of [GivenPath]. It holds no secret.
type Given struct {
	Version  int                     `json:"version"` // of this format: 1
	Settings map[string]GivenSetting `json:"settings"`
	// ForcedAddress was joined with although no interface has it.
	ForcedAddress string `json:"forced_address,omitempty"`
}

// GivenSetting is one setting that was given to join.
type GivenSetting struct {
	Value string `json:"value"`
	// Replaced is what the settings file said at that time. Once the file says
	// something else, that is the later word of the operator, and it counts.
	Replaced string `json:"replaced,omitempty"`
}

const givenVersion = 1

// LoadGiven reads the file below root. It is nil where there is none. A file that
// cannot be used is a [conf.DamagedError] or a [conf.VersionError].
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

// saveGiven writes the file, or removes it where there is nothing to keep.
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

// equal reports whether both keep the same settings.
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

// withoutAddress is g for the copy of a disk, whose address is another one.
func (g *Given) withoutAddress() *Given {
	if g == nil {
		return nil
	}
	rest := maps.Clone(g.Settings)
	delete(rest, GivenAddress)
	return &Given{Settings: rest}
}

// keepGiven writes what this join keeps, and reports whether that was something
// else before.
func (j *joiner) keepGiven() (changed bool, err error) {
	if j.req.Given == nil || j.req.Given.equal(j.facts.given) {
		return false, nil
	}
	return true, saveGiven(j.store, j.req.Given)
}

// restoreGiven puts back what an earlier join kept.
func (j *joiner) restoreGiven() error {
	if j.req.Given == nil || j.req.Given.equal(j.facts.given) {
		return nil
	}
	return saveGiven(j.store, j.facts.given)
}

// isCopy reports whether the state is that of another machine: the disk was
// copied.
func isCopy(s *State, id string) bool {
	return s != nil && s.InstanceID != "" && id != "" && s.InstanceID != id
}
