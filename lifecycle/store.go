// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
)

// RecordPath is the file of a drain, below the root.
const RecordPath = "/var/lib/amsagent/drain.json"

const recordVersion = 2

// Files stores the file of a drain. [conf.Store] implements it.
type Files interface {
	Read(path string) (conf.File, error)
	WriteFile(path string, data []byte, mode, dirMode fs.FileMode) error
	RemoveFile(path string) error
}

var _ Files = (*conf.Store)(nil)

// document is drain.json. It holds no secret.
type document struct {
	Version int `json:"version"`
	// Boot is the boot of the instants, Start the wall time of instant 0.
	Boot  string    `json:"boot,omitempty"`
	Start time.Time `json:"boot_time,omitzero"`
	// Hardware is the writer's [Options].Hardware: a machine with a copy of the disk ignores the file.
	Hardware string `json:"hardware,omitempty"`
	state
}

func (d *document) wall() wallClock { return wallClock(d.Start) }

// load returns nil without a file. It also returns the bytes of a damaged one. With a [conf.VersionError], only the boot
// is certain.
func load(files Files) (*document, []byte, error) {
	f, err := files.Read(RecordPath)
	if err != nil || !f.Exists() {
		return nil, nil, err
	}
	var head struct {
		Version int
		Boot    string
	}
	if err := json.Unmarshal(f.Bytes, &head); err == nil && head.Version != recordVersion {
		return &document{Boot: head.Boot}, f.Bytes, &conf.VersionError{Path: RecordPath, Version: head.Version}
	}
	d := &document{}
	if err := json.Unmarshal(f.Bytes, d); err != nil {
		return nil, f.Bytes, &conf.DamagedError{Path: RecordPath, Err: err}
	}
	if err := d.check(); err != nil {
		return nil, f.Bytes, &conf.DamagedError{Path: RecordPath, Err: err}
	}
	return d, f.Bytes, nil
}

// check rejects a document that no run of the daemon can have written.
func (d *document) check() error {
	switch {
	case !slices.ContainsFunc(transitions, func(t transition) bool { return t.from == d.Phase || t.to == d.Phase }):
		return fmt.Errorf("unknown phase %q", d.Phase)
	case d.leaving() && (len(d.Notices) == 0 || d.Began == 0):
		return errors.New("a drain without a reason")
	}
	for _, s := range []cluster.State{d.Want, d.Have} {
		if s != "" && !s.Valid() {
			return fmt.Errorf("unknown state %q", s)
		}
	}
	return nil
}

// encode returns nil if nothing must be stored.
func (d *document) encode() ([]byte, error) {
	if d.empty() && len(d.Used) == 0 {
		return nil, nil
	}
	d.Version = recordVersion
	data, err := json.MarshalIndent(d, "", "  ")
	return append(data, '\n'), err
}

func (d *document) restore(boot, hardware string, s situation) state {
	next := d.clone()
	if d.Hardware != "" && hardware != "" && d.Hardware != hardware {
		next = state{}.clone()
		next.note("the recorded drain is that of another machine, of whose disk this is a copy; ignored")
		return next
	}
	if boot == "" || d.Boot != boot {
		return d.restoreAfterBoot(s)
	}
	s.state = &next
	s.restoreSameBoot()
	return next
}

func (s situation) restoreSameBoot() {
	// The settings may name other hooks now.
	s.EndHooks, s.LaunchHooks = answer{}, answer{}
	// The machine did not shut down. Notices not yet due are reported again if still in force.
	s.Notices = slices.DeleteFunc(s.Notices, func(n notice) bool { return n.Kind == Shutdown || !s.isDue(n) && n.inForce() })
	if s.Phase == stepDown {
		s.Phase, s.Entered = StepDraining, s.now
	}
	if s.Phase == StepAnnouncing || s.Phase == StepDraining {
		s.Departure, s.Deadline = nil, 0
	}
	switch {
	case s.leaving() && len(s.Notices) == 0:
		serveAgain(s)
		s.Phase = StepNone
	case s.leaving() && s.Phase != StepDone:
		s.note("continuing the drain", "began", s.c.Wall.time(s.Began).Format(time.RFC3339), "phase", string(s.Phase))
	}
}

// restoreAfterBoot keeps only a termination by the cloud, and its hooks: a machine that was drained or parked serves again.
func (d *document) restoreAfterBoot(s situation) state {
	next := state{Used: d.Used}.clone()
	for _, o := range d.Overruled {
		if o.Rejoined {
			o.Deadline = 0 // of the former boot
			next.Overruled = append(next.Overruled, o)
		}
	}
	for _, n := range d.Notices {
		if n.Kind == Terminate && n.inForce() {
			n.Received, n.Deadline, n.Kept = s.now, 0, true
			next.Notices = append(next.Notices, n)
		}
	}
	now := func(t instant) instant { return s.c.Wall.instant(d.wall().time(t)) }
	for _, a := range d.Hooks {
		if a.waits(false) {
			a.Since, a.Extended, a.Limit = now(a.Since), min(now(a.lastSeen()), s.now), now(a.Limit)
			next.Hooks = append(next.Hooks, a)
		}
	}
	if d.leaving() {
		next.Repair = d.Repair && len(next.Notices) > 0
		next.note("the machine was started again: only a termination continues the drain")
	}
	return next
}
