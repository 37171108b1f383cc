// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/metadata"
)

// facts is what preflight found out, and the plan it led to.
type facts struct {
	install  *ams.Installation
	mode     conf.Mode
	inst     metadata.Instance
	address  ams.Address
	service  ams.State
	hostname ams.Hostname
	record   *conf.Record
	state    *State
	client   *cluster.Client
	plan     *conf.Plan

	failed   []Finding
	warnings []Finding
}

func (f *facts) fail(id string, err error, hint string) {
	f.failed = append(f.failed, Finding{ID: id, Text: err.Error(), Hint: hint, Err: err})
}

func (f *facts) warn(id, hint, format string, args ...any) {
	f.warnings = append(f.warnings, Finding{ID: id, Text: fmt.Sprintf(format, args...), Hint: hint})
}

func (f *facts) warnAll(ws []ams.Warning) {
	for _, w := range ws {
		f.warnings = append(f.warnings, Finding{ID: w.ID, Text: w.Text})
	}
}

// leaveFirst is the way out of a damaged record: a join over it would take the
// files of a cluster node for what it found.
const leaveFirst = "run 'amsagent leave': it makes this machine standalone without that file, and keeps it; then join again"

// preflight makes every check that can be made before the first change and
// plans the change. It stops at nothing: one run must show all that is wrong.
func (m *Machine) preflight(ctx context.Context, store *conf.Store, req JoinRequest, f *facts) error {
	if err := checkRecord(store, f); err != nil {
		return err
	}
	if m.Euid != 0 && !req.DryRun && m.Root == "" {
		f.fail(IDRoot, errors.New("only root may change this machine's configuration"), "run it with sudo, or from user-data")
	}
	m.checkInstall(f)
	m.checkService(ctx, f)
	m.checkIdentity(ctx, req, f)
	if f.install != nil {
		m.checkPlan(store, req, f)
	}
	if !req.Offline {
		checkTarget(req, f)
		m.checkMongo(ctx, req, f)
	}
	return nil
}

// checkRecord reads what the agent wrote down about its changes. The error is for
// what is neither good nor bad, as a folder that may not be read.
func checkRecord(store *conf.Store, f *facts) error {
	var err error
	if f.record, err = store.Record(); err != nil {
		n, ok := recordFinding(err, leaveFirst)
		if !ok {
			return err
		}
		f.failed = append(f.failed, n)
	}
	if f.state, err = loadState(store); err != nil {
		var damaged *conf.DamagedError
		n, ok := recordFinding(err, "")
		switch {
		case errors.As(err, &damaged):
			// Nothing in it that cannot be found out again.
			f.warn(IDRecord, "", "%v; it is written anew", err)
		case ok:
			f.failed = append(f.failed, n)
		default:
			return err
		}
	}
	return nil
}

// checkInstall looks at the installation.
func (m *Machine) checkInstall(f *facts) {
	var err error
	if f.install, err = m.open(); err != nil {
		f.fail(IDInstall, err, ams.Hint(err))
		f.install = nil
		return
	}
	f.warnAll(f.install.Warnings)
	if !f.install.Release.Known() {
		f.warn(IDRelease, "say which it is with --ams-release", "the release of Ant Media Server is not known; it is taken for a current one")
	}
	if f.mode, err = f.install.Mode(); err != nil {
		f.mode = ""
	}
}

func (m *Machine) checkService(ctx context.Context, f *facts) {
	st, err := m.Service.State(ctx)
	if err == nil {
		if err = st.Startable(); err != nil {
			err = fmt.Errorf("%s: %w", m.Service.Name(), err)
		}
	}
	if err != nil {
		f.fail(IDService, err, ams.Hint(err))
	}
	f.service = st
}

// checkIdentity asks who this machine is and under which address the others
// reach it.
func (m *Machine) checkIdentity(ctx context.Context, req JoinRequest, f *facts) {
	if !req.Offline {
		inst, err := req.Identify(ctx)
		if err != nil {
			f.fail(IDIdentity, err, metadata.HintOf(err))
			return
		}
		f.inst = inst
	}
	if req.Offline && req.Address == "" && f.state == nil {
		// An image is prepared: the clone finds its own address when it joins.
		return
	}
	var err error
	if f.address, err = m.address(req.Address, req.ForceAddress || req.Offline, f.inst); err != nil {
		if req.Offline && errors.Is(err, ams.ErrNoAddress) {
			return
		}
		f.fail(IDAddress, err, ams.Hint(err))
		return
	}
	f.warnAll(f.address.Warnings)
	if f.install == nil {
		return
	}
	if f.hostname, err = ams.LookupHostname(ctx, ams.HostnameOptions{Root: m.Root}); err != nil {
		f.warn(IDHostname, "", "this machine's own name could not be looked up: %v", err)
		return
	}
	m.checkHostname(f)
}

// checkHostname looks at what a release does that knows no AMS_HOST_ADDRESS.
func (m *Machine) checkHostname(f *facts) {
	r := f.install.Release
	if !f.hostname.Resolvable() {
		return // the plan makes it resolvable
	}
	if !r.Known() || r.HonoursHostAddress() {
		return
	}
	if got := f.hostname.Addr(); got.IsValid() && got != f.address.Addr {
		f.fail(IDHostname,
			fmt.Errorf("release %s takes its address from the host name, and %s resolves to %s, not to %s", r, f.hostname.Name, got, f.address.Addr),
			"let the name resolve to that address in /etc/hosts, or give the other one with --address")
	}
}

// checkPlan plans the change of every file and looks at what stands in its way.
func (m *Machine) checkPlan(store *conf.Store, req JoinRequest, f *facts) {
	form, err := MongoForm(f.install.Release, req.Mongo)
	if err != nil {
		var fe *FormError
		hint := ""
		if errors.As(err, &fe) {
			hint = fe.Hint
		}
		f.fail(IDMongoForm, err, hint)
		return
	}
	e := edits{
		install:     f.install,
		mongo:       req.Mongo,
		mongoForm:   form,
		removeValve: req.Valve == ValveRemove || (req.Valve != ValveKeep && f.inst.Provider == metadata.Azure),
		address:     f.address.Addr,
		dropIn:      m.DropIn,
		stopTimeout: stopTimeout(f),
		private:     m.privateFiles(store, req.Mongo, f),
	}
	if f.address.Addr.IsValid() && f.hostname.Name != "" && (!f.hostname.Resolvable() || m.hostsLineIsOurs(f.record)) {
		e.hostName = f.hostname.Name
	}
	plan, err := planJoin(store, f.record, e)
	for _, err := range unjoin(err) {
		id, hint := classifyFile(err)
		f.fail(id, err, hint)
	}
	f.plan = plan
	if paths := conflictPaths(plan.Conflicts); len(paths) > 0 {
		f.warn(IDConflict, "after an upgrade of Ant Media Server that is as it should be",
			"written by somebody else since this machine joined, and taken for what a leave gives back, in the standalone form: %s", joinPaths(paths))
	}
	if err != nil {
		return
	}
	for _, file := range plan.Changed() {
		if file.Before.Links > 1 {
			f.warn(IDHardLink, "", "%s has %d names; the others keep the old content", file.Before.Path, file.Before.Links)
		}
	}
	// Who is not root is told so; that he may not write is no news then.
	if !req.DryRun && (m.Euid == 0 || m.Root != "") {
		checkWritable(store, plan.Changed(), f)
	}
}

// stopTimeout is what our drop-in says of it: never less than what is in effect,
// which an operator may have raised, and nothing where that is endless.
func stopTimeout(f *facts) time.Duration {
	want := ams.StopTimeout(len(f.install.Apps))
	if !f.service.Known() {
		return want
	}
	if f.service.StopTimeout == 0 {
		return 0
	}
	return max(want, f.service.StopTimeout)
}

// hostsLineIsOurs reports whether an earlier join made the name resolvable:
// then it resolves because of us, and the line has to follow the address.
func (m *Machine) hostsLineIsOurs(record *conf.Record) bool { return record.File(hostsPath) != nil }

// classifyFile gives the id and the hint for a file that cannot be edited.
func classifyFile(err error) (id, hint string) {
	var layout *conf.LayoutError
	var syntax *conf.SyntaxError
	switch {
	case errors.As(err, &layout):
		return IDSections, "mend that line, or put the file of this release back in its place"
	case errors.Is(err, conf.ErrUnmarked):
		return IDSections, "put the jee-container.xml of this release in its place"
	case errors.As(err, &syntax):
		return IDFile, "mend that line"
	case errors.Is(err, conf.ErrEmpty):
		return IDFile, "put the file back from a backup, or from another node"
	case errors.Is(err, fs.ErrPermission):
		return IDFile, "run as root"
	}
	return IDFile, ""
}

func unjoin(err error) []error {
	if err == nil {
		return nil
	}
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	return []error{err}
}

// privateFiles says which files must leave the world's sight because they will
// hold a password. Only files that belong to the server's own user: taking
// them from the world must not take them from the server.
func (m *Machine) privateFiles(store *conf.Store, t cluster.Target, f *facts) map[string]bool {
	private := map[string]bool{}
	if !t.HasCredentials() {
		return private
	}
	var owner uint32
	if info, err := os.Stat(f.install.Real); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			owner = st.Uid
		}
	}
	paths := []string{f.install.Server.Path}
	for _, a := range f.install.Apps {
		paths = append(paths, a.File.Path)
	}
	for _, p := range paths {
		file, err := store.Read(p)
		if err != nil || !file.Exists() {
			continue // the plan says it
		}
		if private[p] = uint32(file.UID) == owner; !private[p] {
			f.warn(IDFileOwner, fmt.Sprintf("chown it to uid %d", owner),
				"%s belongs to uid %d and the installation to uid %d: it keeps its mode %o, and it will hold a password", p, file.UID, owner, file.Mode)
		}
	}
	return private
}

// minFree is the room that a commit must find on each file system: it writes
// every file once more and a journal, together well below 1 MB.
const minFree = 1 << 20

// checkWritable finds read-only and full file systems before anything is
// staged on them.
func checkWritable(store *conf.Store, files []conf.PlannedFile, f *facts) {
	if len(files) == 0 {
		return
	}
	immutable := protected(store, files)
	for _, p := range immutable {
		f.fail(IDWritable, fmt.Errorf("%s is protected against every change: %w", p, syscall.EPERM), chattr(p))
	}
	dirs := []string{existing(store, StateDir)}
	for _, file := range files {
		if d := existing(store, path.Dir(file.Before.Target)); !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	var readOnly []string
	for _, d := range dirs {
		var st unix.Statfs_t
		if err := unix.Statfs(d, &st); err != nil {
			f.fail(IDWritable, &fs.PathError{Op: "statfs", Path: d, Err: err}, "")
			continue
		}
		if st.Flags&unix.ST_RDONLY != 0 {
			readOnly = append(readOnly, d)
			continue
		}
		if err := unix.Access(d, unix.W_OK); err != nil {
			hint := "run as root"
			if errors.Is(err, unix.EPERM) {
				hint = chattr(d)
			}
			if !slices.Contains(immutable, d) {
				f.fail(IDWritable, &fs.PathError{Op: "write", Path: d, Err: err}, hint)
			}
			continue
		}
		if free := int64(st.Bavail) * st.Bsize; free < minFree && st.Blocks > 0 {
			f.fail(IDSpace, fmt.Errorf("%s is full (%d bytes free, %d needed): %w", d, free, minFree, syscall.ENOSPC), "make room on that file system")
		}
	}
	if n := len(readOnly); n > 0 {
		where := readOnly[0]
		if n > 1 {
			where += fmt.Sprintf(" and %d more folders are", n-1)
		} else {
			where += " is"
		}
		f.fail(IDWritable, fmt.Errorf("%s on a read-only file system: %w", where, syscall.EROFS), "mount it writable")
	}
}

// existing is the real path of dir, or of the nearest folder above it that
// exists.
func existing(store *conf.Store, dir string) string {
	root := store.Root
	if root == "" {
		root = "/"
	}
	for d := path.Join(root, dir); ; d = path.Dir(d) {
		if info, err := os.Stat(d); (err == nil && info.IsDir()) || d == root || d == "/" {
			return d
		}
	}
}

// checkTarget looks at the connection string alone.
func checkTarget(req JoinRequest, f *facts) {
	for _, w := range req.Mongo.Warnings() {
		f.warn(IDMongoOption, "", "connection string: %s", w)
	}
	if req.Mongo.Loopback() && f.address.Addr.IsValid() && !f.address.Addr.IsLoopback() {
		f.warn(IDMongoLocal, "give the address of the cluster's database", "MongoDB at %s is this very machine; no other node can join that cluster", req.Mongo.Redacted())
	}
}

// checkMongo asks MongoDB itself, waiting a little for one that boots at the
// same moment as we do.
func (m *Machine) checkMongo(ctx context.Context, req JoinRequest, f *facts) {
	c, err := m.Connect(ctx, req.Mongo)
	if err != nil {
		f.failMongo(err)
		return
	}
	f.client = c
	ctx, cancel := context.WithTimeout(ctx, patience(ctx))
	defer cancel()
	attempt := mongoFirst
	for told := false; ; told = true {
		bound, stop := context.WithTimeout(ctx, attempt)
		err = c.CheckAccess(bound)
		stop()
		attempt = mongoTime
		if err == nil || ctx.Err() != nil || !mayCome(err) {
			break
		}
		if !told {
			m.say("waiting for MongoDB: %v", summary(err))
		}
		if pause(ctx, mongoRetry) != nil {
			break
		}
	}
	if err != nil {
		f.failMongo(err)
		return
	}
	m.checkClock(ctx, f)
}

// patience is how long to wait for MongoDB: never more than half of what is
// left of the time that the caller gives the whole command.
func patience(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return min(mongoPatience, time.Until(deadline)/2)
	}
	return mongoPatience
}

func (f *facts) failMongo(err error) {
	id := IDMongo
	var e *cluster.Error
	if errors.As(err, &e) && (e.Kind == cluster.KindAuth || e.Kind == cluster.KindForbidden) {
		id = IDMongoAuth
	}
	f.fail(id, err, "")
}

// mayCome reports failures that end by themselves when a server has started.
func mayCome(err error) bool {
	var e *cluster.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Kind {
	case cluster.KindDNS, cluster.KindRefused, cluster.KindUnreachable, cluster.KindTimeout, cluster.KindLost, cluster.KindNotPrimary:
		return true
	default:
		return false
	}
}

func summary(err error) string {
	var e *cluster.Error
	if errors.As(err, &e) {
		return e.Summary()
	}
	return err.Error()
}

// AMS takes a node for dead whose clock is 20 s behind the reader's.
const (
	clockWarn = 5 * time.Second
	clockDead = 20 * time.Second
)

func (m *Machine) checkClock(ctx context.Context, f *facts) {
	skew, accuracy, err := f.client.ClockSkew(ctx)
	if err != nil {
		f.warn(IDUnverified, "", "this machine's clock could not be compared with MongoDB's: %v", err)
		return
	}
	if off := skew.Abs() - accuracy; off > clockWarn {
		way, consequence := "ahead of", ""
		if skew < 0 {
			way = "behind"
		}
		if off > clockDead {
			consequence = "; other nodes will take this one for dead, or it them"
		}
		f.warn(IDClock, "let chrony or systemd-timesyncd set the clock", "this machine's clock is %s %s MongoDB's%s", skew.Abs().Round(100*time.Millisecond), way, consequence)
	}
}

// rows of the plan, as the result shows them.
func fileResults(plan *conf.Plan) []FileResult {
	var out []FileResult
	if plan == nil {
		return nil
	}
	for _, f := range plan.Files() {
		r := FileResult{Path: f.Before.Path, Changed: f.Changed()}
		if r.Changed {
			r.Diff = f.Diff()
			if f.Before.Exists() && f.After != nil && f.Mode != f.Before.Mode {
				r.Mode = fmt.Sprintf("%04o", f.Mode.Perm())
			}
		}
		out = append(out, r)
	}
	return out
}

// FileResult is what becomes, or became, of one file.
type FileResult struct {
	Path    string `json:"path"`
	Changed bool   `json:"changed"`
	// Diff is a unified diff with secrets masked.
	Diff string `json:"diff,omitempty"`
	// Mode is the new permission bits where they change.
	Mode string `json:"mode,omitempty"`
}

// needsRestart reports whether the plan changes anything that AMS reads at its
// start. Permission bits alone are nothing to it, nor is our own file.
func needsRestart(plan *conf.Plan) bool {
	return slices.ContainsFunc(plan.Changed(), changesContent)
}

func changesContent(f conf.PlannedFile) bool {
	return f.Before.Path != MongoPath && (f.After == nil || !bytes.Equal(f.After, f.Before.Bytes))
}
