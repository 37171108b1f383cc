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

// Inspection is the result of [Machine.Inspect].
type Inspection struct {
	// Install is nil if unusable.
	Install  *ams.Installation
	Mode     conf.Mode // "" if unknown
	Service  ams.State
	Instance metadata.Instance
	BootID   string // "" if unknown
	// Address is what a join would use, or invalid.
	Address  ams.Address
	Hostname ams.Hostname
	// State is nil if this machine never joined. Undo reports that a leave can restore the original files,
	// Interrupted that a run was killed while it wrote.
	State       *State
	Undo        bool
	Interrupted bool
	// Unread is why State, Undo and Interrupted are unknown.
	Unread error
	// Planned reports that every file can be edited. Changes, those that a join would write, need a connection
	// string.
	Planned bool
	Changes []string
	// Writable reports that the folders were checked, which needs root.
	Writable bool

	Findings []Finding
}

// A hanging bus or resolver must not hide the files.
const (
	inspectService  = 4 * time.Second
	inspectIdentity = 9 * time.Second
)

// Inspect makes a join's checks without MongoDB, for which see [Machine.Reach]. It changes nothing and takes no
// lock. With a zero req.Mongo it only checks that the files can be edited.
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
	if !req.Mongo.IsZero() {
		checkTarget(bound, req, f)
	}
	cancel()
	if f.install != nil {
		m.inspectPlan(store, req, f, in)
	}
	in.Install, in.Mode, in.Service = f.install, f.mode, f.service
	in.Instance, in.Address, in.Hostname, in.BootID = f.inst, f.address, f.hostname, m.bootID()
	in.State, in.Undo = f.state, f.record != nil
	in.Findings = f.findings
	return in, nil
}

func (m *Machine) inspectPlan(store *conf.Store, req JoinRequest, f *facts, in *Inspection) {
	known := !req.Mongo.IsZero()
	if !known {
		// The address does not matter for that.
		var err error
		if req.Mongo, err = cluster.ParseTarget("127.0.0.1"); err != nil {
			return
		}
	}
	req.DryRun = true
	before := len(f.failed())
	m.checkPlan(store, req, f)
	if f.plan == nil {
		return
	}
	in.Planned = len(f.failed()) == before
	if known && in.Planned {
		in.Changes = append(in.Changes, f.plan.ChangedPaths()...)
	}
	if in.Writable = m.Euid == 0 || m.Root != ""; in.Writable {
		// All files: an upgrade may restore any.
		checkWritable(store, f.plan.Files(), f)
	}
}

// Reach makes the checks of MongoDB. The caller closes the client, which may be nil. Reach waits for a booting
// server for at most half of ctx's time.
func (m *Machine) Reach(ctx context.Context, target cluster.Target) (*cluster.Client, []Finding) {
	f := &facts{}
	quiet := *m
	quiet.Progress = nil
	if quiet.connect(ctx, target, f) {
		quiet.checkMongo(ctx, JoinRequest{Mongo: target}, f)
	}
	return f.client, f.findings
}

// StatusIDs lists the ids of [Status.Disagree].
func StatusIDs() []string {
	return []string{
		"STATUS-ADDRESS", "AMS-DRIFT", "STATUS-FILES", "STATUS-FOREIGN", "AGENT-UNFINISHED", "STATUS-JOINING", "STATUS-LEAVING", "STATUS-LIVENESS",
		"STATUS-NO-RECORD", "AMS-NOT-SEEN", "AMS-NOT-SERVING", "STATUS-RELEASE", "STATUS-RESTART", "STATUS-RECORD", "STATUS-SILENT",
		"STATUS-STILL-SEEN", "STATUS-STOPPED",
	}
}
