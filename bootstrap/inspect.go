// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/metadata"
)

// Inspection is what the checks of a join found on this machine, for who does not
// want to join.
type Inspection struct {
	// Install is nil where none is usable.
	Install *ams.Installation
	Mode    conf.Mode // "" where the files do not tell
	// Service is how AMS is doing; its Activity says whether anything is known.
	Service  ams.State
	Instance metadata.Instance
	BootID   string // of this boot; "" where the kernel does not say
	// Address is the one that a join would take; not valid where there is none.
	Address  ams.Address
	Hostname ams.Hostname
	// State is what the agent remembers, nil where it never joined. Undo tells that
	// a leave can restore the original files, Interrupted that a run was killed while
	// it wrote.
	State       *State
	Undo        bool
	Interrupted bool
	// Unread says why State, Undo and Interrupted are not known.
	Unread error
	// Planned tells that every file can be edited, Changes which of them a join would
	// write; without a connection string that is not known.
	Planned bool
	Changes []string
	// Writable tells that the folders were looked at: not by who is not root.
	Writable bool

	Failed, Warnings []Finding
}

// Bounds of the parts of an inspection. A bus or a resolver that does not answer
// must not hide the files.
const (
	inspectService  = 4 * time.Second
	inspectIdentity = 9 * time.Second
)

// Inspect makes the checks of a join but for those that ask MongoDB: see
// [Machine.Reach]. It changes nothing, takes no lock, and stops at nothing. With a
// zero req.Mongo it looks whether the files can be edited, whatever goes into them.
func (m *Machine) Inspect(ctx context.Context, req JoinRequest) (*Inspection, error) {
	store, f, in := m.store(), &facts{}, &Inspection{}
	err := checkRecord(store, f)
	switch {
	case errors.Is(err, fs.ErrPermission):
		in.Unread = err
	case err != nil:
		return nil, err
	default:
		in.Interrupted = store.Interrupted()
	}
	m.checkInstall(f)
	bound, cancel := context.WithTimeout(ctx, inspectService)
	m.checkService(f, m.askService(bound, f))
	cancel()
	bound, cancel = context.WithTimeout(ctx, inspectIdentity)
	m.checkIdentity(bound, req, f)
	cancel()
	if !req.Mongo.IsZero() {
		checkTarget(req, f)
	}
	if f.install != nil {
		m.inspectPlan(store, req, f, in)
	}
	in.Install, in.Mode, in.Service = f.install, f.mode, f.service
	in.Instance, in.Address, in.Hostname, in.BootID = f.inst, f.address, f.hostname, m.bootID()
	in.State, in.Undo = f.state, f.record != nil
	in.Failed, in.Warnings = f.failed, f.warnings
	return in, nil
}

func (m *Machine) inspectPlan(store *conf.Store, req JoinRequest, f *facts, in *Inspection) {
	known := !req.Mongo.IsZero()
	if !known {
		// Any address shows whether the files can be edited.
		var err error
		if req.Mongo, err = cluster.ParseTarget("127.0.0.1"); err != nil {
			return
		}
	}
	req.DryRun = true
	before := len(f.failed)
	m.checkPlan(store, req, f)
	if f.plan == nil {
		return
	}
	in.Planned = len(f.failed) == before
	if known && in.Planned {
		in.Changes = append(in.Changes, f.plan.ChangedPaths()...)
	}
	if in.Writable = m.Euid == 0 || m.Root != ""; in.Writable {
		// All of them: what a join of today leaves alone an upgrade may restore tomorrow.
		checkWritable(store, f.install.Dir, f.plan.Files(), f)
	}
}

// Reach makes the checks of a join that ask MongoDB. The client is the caller's to
// close, and nil where there is none. It waits for a server that boots, but for no
// more than half of the time that ctx has.
func (m *Machine) Reach(ctx context.Context, target cluster.Target) (client *cluster.Client, failed, warnings []Finding) {
	f := &facts{}
	quiet := *m
	quiet.Progress = nil
	if quiet.connect(ctx, target, f) {
		quiet.checkMongo(ctx, JoinRequest{Mongo: target}, f)
	}
	return f.client, f.failed, f.warnings
}

// StatusIDs lists the ids of every [Disagreement].
func StatusIDs() []string {
	return []string{
		"STATUS-ADDRESS", "STATUS-DRIFT", "STATUS-FILES", "STATUS-FOREIGN", "STATUS-INTERRUPTED", "STATUS-JOINING", "STATUS-LEAVING", "STATUS-LIVENESS",
		"STATUS-NO-ROW", "STATUS-NOT-SEEN", "STATUS-NOT-SERVING", "STATUS-RESTART", "STATUS-ROW", "STATUS-SILENT",
		"STATUS-STILL-SEEN", "STATUS-STOPPED",
	}
}
