// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"reflect"
	"sync"
	"syscall"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/metadata"
)

const (
	// wholeEvery is after how long the files are read although nobody wrote to them,
	// and the service and the resolver are asked although nobody told of a change:
	// what a look at the files' times cannot show is found within this time.
	wholeEvery = 15 * time.Minute
	// settledAfter is how long ago a file must have been written for its times to
	// tell it from the next version of it. The kernel's clock for them goes on in
	// steps of some milliseconds, and a second one is what old file systems know.
	settledAfter = 2 * time.Second
)

// Keeper is a machine that is looked at again and again, as the daemon does. It
// remembers how it was, and reads files again when they were written since then.
type Keeper struct {
	*Machine

	mu    sync.Mutex
	clean *clean
	state *noted
	now   func() time.Time
}

// clean is a convergence that had nothing to do.
type clean struct {
	at     time.Time
	req    ConvergeRequest
	inst   metadata.Instance
	result Convergence
	files  map[string]stamp // by their names below the root
}

// noted is the state file as it was read last.
type noted struct {
	stamp stamp
	state State
}

// NewKeeper makes a keeper that remembers nothing yet.
func NewKeeper(m *Machine) *Keeper { return &Keeper{Machine: m, now: time.Now} }

// stamp is what the kernel knows of a file without reading it. Who writes to a
// file, renames another one over it, or changes its owner or mode, changes ctime,
// which nobody can set, unlike mtime: tools that restore files put that back. It is
// the clock's time; a clock that was set back would have to meet the nanosecond.
type stamp struct {
	exists bool
	id     files.ID
	size   int64
	ctime  time.Time
}

// stamp looks at a file.
func (k *Keeper) stamp(name string) (stamp, error) {
	info, err := k.store().Files().Stat(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return stamp{}, nil
	}
	if err != nil {
		return stamp{}, err
	}
	return stamp{exists: true, id: info.ID, size: info.Size, ctime: info.Changed}, nil
}

// settled reports whether a file was last written long enough before t for every
// version after t to have another stamp.
func (s stamp) settled(t time.Time) bool {
	return !s.exists || s.ctime.Before(t.Add(-settledAfter))
}

// StateFile is [Machine.StateFile], and reads the file when it was written.
func (k *Keeper) StateFile() (*State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	began := k.now()
	s, err := k.stamp(statePath)
	switch {
	case err == nil && !s.exists:
		k.state = nil
		return nil, nil //nolint:nilnil // as loadState
	case err == nil && k.state != nil && k.state.stamp == s:
		state := k.state.state
		return &state, nil
	}
	k.state = nil
	state, rerr := k.Machine.StateFile()
	if err == nil && rerr == nil && state != nil && s.settled(began) {
		k.state = &noted{s, *state}
	}
	return state, rerr
}

// Converge is [Machine.Converge]. Where the last one had nothing to do, and
// neither the files nor the machine's identity nor what was asked for has changed
// since, its result stands.
func (k *Keeper) Converge(ctx context.Context, req ConvergeRequest) (*Convergence, error) {
	began := k.now()
	// Asked once for both, since it may be a question to the cloud; a machine that is
	// no node is not asked at all.
	var inst metadata.Instance
	var unknown error
	known, identify := false, req.Identify
	req.Identify = func(ctx context.Context) (metadata.Instance, error) {
		if !known {
			inst, unknown = identify(ctx)
			known = true
		}
		return inst, unknown
	}
	k.mu.Lock()
	last := k.clean
	k.mu.Unlock()
	if last != nil {
		if _, err := req.Identify(ctx); err == nil && k.unchanged(last, began, req, inst) {
			c := last.result
			c.Unread = true
			return &c, nil
		}
	}
	c, err := k.Machine.Converge(ctx, req)
	k.mu.Lock()
	k.clean = nil
	k.mu.Unlock()
	if known && unknown == nil && err == nil && c.nothing() {
		k.remember(began, req, inst, c)
	}
	return c, err
}

// nothing reports whether there was nothing to do, and nothing that may be
// another matter the next time. What warns is looked at again.
func (c *Convergence) nothing() bool {
	return c.Phase == PhaseJoined && len(c.Repairs) == 0 && len(c.Warnings) == 0 && len(c.Differences) == 0 &&
		!c.RestartNeeded && !c.Standalone
}

func (k *Keeper) unchanged(last *clean, now time.Time, req ConvergeRequest, inst metadata.Instance) bool {
	if age := now.Sub(last.at); age < 0 || age >= wholeEvery || !last.req.same(req) || !reflect.DeepEqual(last.inst, inst) {
		return false
	}
	// The machine may have lost its address, or got another one.
	address, err := k.address(req.Address, req.ForceAddress, inst)
	if err != nil || address.Addr.String() != last.result.Node.IP {
		return false
	}
	for name, was := range last.files {
		if s, err := k.stamp(name); err != nil || s != was {
			return false
		}
	}
	return true
}

// same compares what was asked for, but for how to identify the machine.
func (r ConvergeRequest) same(o ConvergeRequest) bool {
	return r.Mode == o.Mode && r.Mongo.Equal(o.Mongo) && r.MongoStored == o.MongoStored && r.Role == o.Role && r.Group == o.Group && r.Address == o.Address &&
		r.ForceAddress == o.ForceAddress && r.AddressKept == o.AddressKept && r.Valve == o.Valve && r.Interval == o.Interval
}

// remember notes the files by which a convergence came to its result, if none of
// them was written since shortly before it began.
func (k *Keeper) remember(began time.Time, req ConvergeRequest, inst metadata.Instance, c *Convergence) {
	names, err := k.inputs(c)
	if err != nil {
		return
	}
	files := make(map[string]stamp, len(names))
	for _, name := range names {
		s, err := k.stamp(name)
		if err != nil || !s.settled(began) {
			return
		}
		files[name] = s
	}
	req.Identify = nil
	k.mu.Lock()
	defer k.mu.Unlock()
	k.clean = &clean{at: began, req: req, inst: inst, result: *c, files: files}
}

// inputs are the files and folders that a convergence went by, those of its plan
// among them. A folder is there for its names: an application that was deployed, a
// journal that a killed join left, a drop-in of the operator.
func (k *Keeper) inputs(c *Convergence) ([]string, error) {
	names := []string{StateDir, statePath, undoPath, path.Dir(ams.DropInPath), hostsPath, "/etc/hostname"}
	dir := ""
	for _, name := range c.Compared {
		names = append(names, name)
		if path.Base(name) == "jee-container.xml" {
			dir = path.Dir(name)
		}
	}
	if dir == "" {
		return nil, errors.New("the files were not compared")
	}
	server := path.Dir(dir)
	names = append(names, server, path.Join(server, "ant-media-server.jar"), dir)
	// The old releases' two forms of the container lie beside it.
	beside, err := k.list(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range beside {
		names = append(names, path.Join(dir, name))
	}
	// Also of folders that are no application yet.
	dir = path.Join(server, "webapps")
	apps, err := k.list(dir)
	if err != nil {
		return nil, err
	}
	names = append(names, dir)
	for _, name := range apps {
		names = append(names, path.Join(dir, name, "WEB-INF/red5-web.properties"))
	}
	return names, nil
}

// list gives the names in a folder.
func (k *Keeper) list(dir string) ([]string, error) {
	d, err := k.store().Files().Folder(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.Entries(maxListed)
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// maxListed bounds the folders whose names are remembered.
const maxListed = 4096
