// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/metadata"
)

// facts is what preflight found out, and the plan it led to.
type facts struct {
	install *ams.Installation
	mode    conf.Mode
	inst    metadata.Instance
	address ams.Address
	service ams.State
	// serviceAt is when service was asked for.
	serviceAt time.Time
	hostname  ams.Hostname
	record    *conf.Record
	state     *State
	given     *Given // what an earlier join was given
	client    *cluster.Client
	plan      *conf.Plan
	planned   bool       // that plan is complete
	former    *conf.Plan // that this command committed last

	// skipApps leaves out an application whose file its owner, a crash or a full disk
	// spoiled, instead of refusing: who runs without an operator must not be kept from the
	// other files by it.
	skipApps bool

	failed   []Finding
	warnings []Finding
}

// provider is the machine's cloud; the one it joined in, where none is known now.
func (f *facts) provider() string {
	if f.inst.Provider == "" && f.state != nil {
		return f.state.Provider
	}
	return f.inst.Provider
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

// preflight makes every check of this machine that can be made before the first
// change and plans the change. It stops at nothing: one run must show all that is
// wrong.
func (m *Machine) preflight(ctx context.Context, store *conf.Store, req JoinRequest, f *facts) error {
	var serviceErr error
	var asking sync.WaitGroup
	defer asking.Wait()
	asking.Go(func() { serviceErr = m.askService(ctx, f) }) // it answers in some milliseconds, as the files do
	if err := checkRecord(store, f); err != nil {
		n, ok := m.needsRoot(err)
		if !ok {
			return err
		}
		f.failed = append(f.failed, n)
	}
	checkGiven(store, f)
	m.checkInstall(f)
	asking.Wait()
	m.checkService(f, serviceErr)
	m.checkIdentity(ctx, req, f)
	if f.install != nil {
		m.checkPlan(store, req, f)
	}
	if !req.Offline {
		checkTarget(req, f)
	}
	return nil
}

// reachFirst makes the checks of a join that wait for the metadata service and for
// MongoDB, before the machine is locked: a drain must not wait for them. What they
// need of the disk is read again under the lock.
func (m *Machine) reachFirst(ctx context.Context, store *conf.Store, req *JoinRequest) *facts {
	f := &facts{}
	req.Identify = m.AskNow(ctx, req.Identify)
	var err error
	if f.inst, err = req.Identify(ctx); err == nil {
		if f.state, err = loadState(store); err != nil {
			f.state = nil // a finding of the preflight
		}
		if f.address, err = m.joinAddress(*req, f); err != nil {
			f.address = ams.Address{} // the same
		}
	}
	if !m.connect(ctx, req.Mongo, f) {
		return f
	}
	if f.install, err = m.open(); err != nil { // while the driver connects
		f.install = nil // the same
	}
	m.checkMongo(ctx, *req, f)
	return f
}

// AskNow asks who this machine is, and says so where that takes long. What it returns
// gives that answer to each later question.
func (m *Machine) AskNow(ctx context.Context, identify Identifier) Identifier {
	var inst metadata.Instance
	var err error
	m.whileSlow("asking the metadata service who this machine is", func() { inst, err = identify(ctx) })
	return func(context.Context) (metadata.Instance, error) { return inst, err }
}

// Identifier tells who this machine is.
type Identifier = func(context.Context) (metadata.Instance, error)

// joinAddress chooses the address of this node. One that was given to the machine
// whose disk this is a copy of does not count.
func (m *Machine) joinAddress(req JoinRequest, f *facts) (ams.Address, error) {
	if req.AddressKept && isCopy(f.state, f.inst.ID) {
		req.Address = ""
	}
	return m.address(req.Address, req.ForceAddress || req.Offline, f.inst)
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

// checkGiven reads what an earlier join was given. Nothing in it is needed to join.
func checkGiven(store *conf.Store, f *facts) {
	var err error
	if f.given, err = loadGiven(store); err != nil {
		f.warn(IDRecord, "", "%v; it is written anew", err)
	}
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
	if said := m.Release.Version; said != "" && said != f.install.Release.Version {
		f.warn(IDRelease, "leave --ams-release, or ams_release, away", "the jar of Ant Media Server says that it is %s; that it is %s, as was said, is not used", f.install.Release.Version, said)
	}
	if !f.install.Release.Known() {
		f.warn(IDRelease, "say which it is with --ams-release", "the release of Ant Media Server is not known, and is taken for a current one: %s", f.install.Release.Note)
	}
	if f.mode, err = f.install.Mode(); err != nil {
		f.mode = ""
	}
}

// askService asks the service manager for the server's state.
func (m *Machine) askService(ctx context.Context, f *facts) (err error) {
	f.serviceAt = time.Now()
	f.service, err = m.Service.State(ctx)
	return err
}

// checkService looks at what askService was told, and the error that it returned.
func (m *Machine) checkService(f *facts, err error) {
	st := f.service
	if err == nil {
		if err = st.Startable(); err != nil {
			err = fmt.Errorf("%s: %w", m.Service.Name(), err)
		}
	}
	if err != nil {
		f.fail(IDService, err, ams.Hint(err))
	}
	if name := m.Service.Name(); st.UnitFile == "disabled" {
		f.warn(IDNotEnabled, "systemctl enable "+name, "%s does not start at boot: a node that reboots does not come back", name)
	}
	if f.install == nil {
		return
	}
	if dir := f.install.OtherTree(st); dir != "" {
		f.fail(IDInstall, fmt.Errorf("%s runs the server in %s, not the one in %s: its files would be changed, and nothing be proved",
			m.Service.Name(), dir, f.install.Dir), "name the server that runs: --ams-dir "+dir)
	}
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
	if f.address, err = m.joinAddress(req, f); err != nil {
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
	if s := f.service; m.DropIn && s.HostAddressFile != "" && !cluster.SameAddress(s.HostAddress, f.address.Addr.String()) {
		f.fail(IDAddress, fmt.Errorf("%s sets %s=%s, which overrides the agent's drop-in: the server would not register as %s",
			s.HostAddressFile, ams.HostAddressVariable, s.HostAddress, f.address.Addr), "remove that line from "+s.HostAddressFile+", or give that address with --address")
	}
	if f.hostname, err = ams.LookupHostname(ctx, m.Root); err != nil {
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

// removesValve reports whether RemoteIpValve is to go. Where nobody knows the cloud, the
// file stays as it is.
func removesValve(store *conf.Store, wanted Valve, f *facts) bool {
	switch provider := f.provider(); {
	case wanted == ValveRemove, wanted == ValveKeep:
		return wanted == ValveRemove
	case provider != "":
		return provider == metadata.Azure
	}
	file, err := store.ReadSettings(f.install.Container.Path)
	if err != nil {
		return false // the plan says why
	}
	c, err := conf.ParseContainer(file.Bytes)
	return err == nil && !c.HasRemoteIPValve()
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
		removeValve: removesValve(store, req.Valve, f),
		address:     f.address.Addr,
		dropIn:      m.DropIn,
		stopTimeout: m.stopTimeout(f),
		program:     m.Program,
		private:     req.Mongo.HasCredentials(),
		former:      f.former,
	}
	if e.owner, err = ownerOf(store, f.install); err != nil {
		// Without it no file would be taken out of the world's sight.
		f.fail(IDInstall, err, "")
		return
	}
	// Where a node's resolver is away, nobody knows whether the line is needed.
	lineNeeded := !f.hostname.Resolvable() && !(f.hostname.TimedOut && f.state != nil && f.state.Phase == PhaseJoined)
	if f.address.Addr.IsValid() && f.hostname.Name != "" && (lineNeeded || m.hostsLineIsOurs(f.record)) {
		e.hostName = f.hostname.Name
	}
	plan, err := planJoin(store, f.record, e)
	failed := false
	for _, err := range unjoin(err) {
		id, hint := m.classifyFile(err)
		if f.skipApps && (files.Refused(err) || spoiled(err)) && isApp(f.install, err) {
			f.warn(id, hint, "%v; this application is left as it is", err)
			continue
		}
		f.fail(id, err, hint)
		failed = true
	}
	f.plan, f.planned = plan, !failed
	if e.private {
		checkOwners(plan, e.owner, f)
	}
	if paths := conflictPaths(plan.Conflicts); len(paths) > 0 {
		f.warn(IDConflict, "after an upgrade of Ant Media Server that is as it should be",
			"changed since this machine joined; a leave keeps these changes and resets the cluster settings only: %s", joinPaths(paths))
	}
	if len(plan.Torn) > 0 {
		f.warn(IDTorn, "", tornText, joinPaths(plan.Torn))
	}
	if failed {
		return
	}
	for _, file := range plan.Changed() {
		if file.Before.Links > 1 {
			f.warn(IDHardLink, "", "%s has %d names; the others keep the old content", file.Before.Path, file.Before.Links)
		}
	}
	if !req.DryRun {
		checkWritable(store, f.install.Dir, plan.Changed(), f)
	}
}

// stopTimeout is what our drop-in says of it: never less than what is in effect,
// which an operator may have raised, and nothing where that is endless. Where the
// service manager does not say what is in effect, that is what the drop-in has.
func (m *Machine) stopTimeout(f *facts) time.Duration {
	want, inEffect := ams.StopTimeout(len(f.install.Apps)), f.service.StopTimeout
	if !f.service.Known() {
		is, err := ams.ReadDropIn(m.Root)
		if err != nil || !is.Ours {
			return want
		}
		inEffect = is.StopTimeout
	}
	if inEffect == 0 {
		return 0
	}
	return max(want, inEffect)
}

// hostsLineIsOurs reports whether an earlier join made the name resolvable:
// then it resolves because of us, and the line has to follow the address.
func (m *Machine) hostsLineIsOurs(record *conf.Record) bool { return record.File(hostsPath) != nil }

// isApp reports whether a file that cannot be edited is an application's.
func isApp(in *ams.Installation, err error) bool {
	var fe *FileError
	return errors.As(err, &fe) && slices.ContainsFunc(in.Apps, func(a ams.App) bool { return a.File.Path == fe.Path })
}

// spoiled reports a settings file that nobody can edit for what it holds. Its owner can make it so at any time, as can a
// crash or a full disk.
func spoiled(err error) bool {
	_, malformed := errors.AsType[*conf.SyntaxError](err)
	return malformed || errors.Is(err, conf.ErrEmpty) || errors.Is(err, conf.ErrTorn)
}

// classifyFile gives the id and the hint for a file that cannot be edited.
func (m *Machine) classifyFile(err error) (id, hint string) {
	var layout *conf.LayoutError
	var syntax *conf.SyntaxError
	switch {
	case errors.Is(err, fs.ErrPermission) && m.Euid != 0:
		return IDFile, "run as root"
	case errors.As(err, &layout):
		return IDSections, "mend that line, or put the file of this release back in its place"
	case errors.Is(err, conf.ErrUnmarked):
		return IDSections, "put the jee-container.xml of this release in its place"
	case errors.As(err, &syntax):
		return IDFile, "mend that line"
	case errors.Is(err, conf.ErrEmpty), errors.Is(err, conf.ErrTorn):
		return IDFile, "put the file back from a backup, or from another node"
	case errors.Is(err, files.ErrLink):
		return IDFileLink, "let root make the link, or give the file to the owner of the link or of its folder; or remove it"
	case errors.Is(err, files.ErrEncoding):
		return IDFile, "give it a name in UTF-8"
	case errors.Is(err, files.ErrTooLarge):
		return IDFileSize, "a settings file has some kilobytes: take this one from a backup, or remove the application"
	case errors.Is(err, files.ErrNotRegular), errors.Is(err, files.ErrHindered):
		return IDFile, "put the file of the application in its place, or remove the application"
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

// ownerOf is the user whom the installation belongs to.
func ownerOf(store *conf.Store, in *ams.Installation) (int, error) {
	info, err := store.Files().Stat(in.Dir)
	return info.UID, err
}

// checkOwners names the files that will hold a password and stay readable as they
// are, because they belong to another user than the server: taking them from the
// world must not take them from the server.
func checkOwners(plan *conf.Plan, owner int, f *facts) {
	for _, file := range plan.Files() {
		if now := file.Before; file.Kind == conf.KindProperties && now.Exists() && now.UID != owner {
			f.warn(IDFileOwner, fmt.Sprintf("chown it to uid %d", owner),
				"%s belongs to uid %d and the installation to uid %d: it keeps its mode %o, and it will hold a password", now.Path, now.UID, owner, now.Mode)
		}
	}
}

// minFree is the room that a commit must find: it writes every file again, and a journal.
const minFree = 8 << 20

// checkWritable finds folders and files that cannot be replaced, and a full disk, before anything
// is staged.
func checkWritable(store *conf.Store, dir string, changed []conf.PlannedFile, f *facts) {
	if len(changed) == 0 {
		return
	}
	paths := []string{path.Join(StateDir, "x")}
	for _, file := range changed {
		paths = append(paths, file.Before.Target)
	}
	slices.Sort(paths)
	var refused []error
	for _, name := range slices.Compact(paths) {
		if err := writable(store, name); err != nil {
			refused = append(refused, err)
		}
	}
	if n := len(refused); n > 0 {
		err := refused[0]
		if n > 1 {
			err = fmt.Errorf("%w, and %s", err, plural(n-1, "more path"))
		}
		hint := cmp.Or(deniedHint(err), "run as root")
		if errors.Is(err, syscall.EROFS) {
			hint = "mount it writable"
		}
		f.fail(IDWritable, err, hint)
	}
	if st, err := space(store, dir); err == nil && st.Blocks > 0 && int64(st.Bavail)*st.Bsize < minFree {
		f.fail(IDSpace, fmt.Errorf("%s is full (%d bytes free, %d needed): %w", dir, int64(st.Bavail)*st.Bsize, minFree, syscall.ENOSPC), "make room on that file system")
	}
}

// writable says why the file cannot be replaced: its folder, or the next one that exists, is not
// writable, or root itself is refused (chattr +i, chattr +a).
func writable(store *conf.Store, name string) error {
	p, err := store.Files().LocateName(name)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.Folder.Writable("."); err != nil || len(p.Missing) > 0 {
		return err
	}
	if err := p.Folder.Writable(p.Name); errors.Is(err, syscall.EPERM) {
		return err
	}
	return nil
}

func space(store *conf.Store, dir string) (unix.Statfs_t, error) {
	folder, err := store.Files().Folder(dir)
	if err != nil {
		return unix.Statfs_t{}, err
	}
	defer folder.Close()
	return folder.Space()
}

// deniedHint is for an error that even root gets: chattr +i or +a do not say so.
func deniedHint(err error) string {
	if errors.Is(err, syscall.EPERM) {
		return "root is refused: `lsattr` on the file and its folder shows i or a; `chattr -i -a` removes them"
	}
	return ""
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

// connect makes the client, whose driver then connects by itself.
func (m *Machine) connect(ctx context.Context, mongo cluster.Target, f *facts) bool {
	var err error
	if f.client, err = m.Connect(ctx, mongo); err != nil {
		f.client = nil
		f.failMongo(err)
	}
	return err == nil
}

// checkMongo asks MongoDB itself, waiting a little for one that boots at the
// same moment as we do.
func (m *Machine) checkMongo(ctx context.Context, req JoinRequest, f *facts) {
	c := f.client
	var err error
	wait := patience(ctx)
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	attempt := mongoFirst
	for told := false; ; told = true {
		bound, stop := context.WithTimeout(ctx, attempt)
		err = c.CheckAccess(bound)
		stop()
		attempt = mongoTime
		if err == nil || ctx.Err() != nil || !mayCome(err) || req.DryRun {
			break
		}
		if !told {
			m.say("waiting up to %s for MongoDB: %v", wait.Round(time.Second), summary(err))
		}
		if !sleep.For(ctx, mongoRetry) {
			break
		}
	}
	if err != nil {
		f.failMongo(err)
		return
	}
	m.checkClock(ctx, f)
	if f.install != nil {
		if err := m.checkRead(ctx, c, f.install); err != nil {
			f.warn(IDMongoAuth, ReadHint, "%v", err)
		}
	}
	if set := c.ReplicaSet(); set.OneNamed {
		f.warn(IDMongoMember, MongoMemberHint(set.Name, set.Hosts), "%s", MongoMemberText(set.Name, len(set.Hosts)))
	}
	if !req.Replace {
		m.checkOwner(ctx, req, f)
	}
}

// ReadHint says which right is missing where streams cannot be read.
const ReadHint = "the user needs read on the database of each application (db.name): without it publishers are not counted, and leave and drain do not know whom they cut; " + WriteHint

// WriteHint says who needs more than read there.
const WriteHint = "drain --repair-streams needs readWrite there, and so does Ant Media Server, which also writes serverdb, NAMEVoD, NAME_token and others: amsagent doctor --explain AMS-MONGO-FORBIDDEN"

// checkRead tries to read each application's streams. The error is a refusal; what
// else goes wrong there is no matter of rights.
func (m *Machine) checkRead(ctx context.Context, c *cluster.Client, in *ams.Installation) error {
	databases, err := in.Databases()
	if err != nil {
		return nil //nolint:nilerr // a finding of its own
	}
	if err = c.CheckRead(ctx, databases); cluster.KindOf(err) == cluster.KindForbidden {
		return err
	}
	return nil
}

// MongoMemberText says what it means that an address names one member of a set.
func MongoMemberText(set string, members int) string {
	return fmt.Sprintf("the address names one of the %d members of replica set %s: amsagent and Ant Media Server stay with "+
		"that member and can write nothing while another one is the primary", members, set)
}

// MongoMemberHint is the address to give instead, without credentials.
func MongoMemberHint(set string, hosts []string) string {
	return fmt.Sprintf("name all members and the set: mongodb://%s/?replicaSet=%s", strings.Join(hosts, ","), set)
}

// DuplicateHint is the hint of IDDuplicate: the usual cause and both ways out.
const DuplicateHint = "a machine without a cloud is named by /etc/machine-id, which a copied disk keeps: empty it on the copy " +
	"(and remove /var/lib/dbus/machine-id), then reboot; 'amsagent seal --yes' does it before the disk is copied. " +
	"If the other machine is gone for good: amsagent join --replace"

// mostOwnerWait is how long a join waits for the other machine's row to grow old.
const mostOwnerWait = 20 * time.Second

// checkOwner refuses a join where another machine beats into the row of this
// machine's id. One fresh beat is no proof, since a machine that was reset may have
// come back with another address: the row must not be written for as long as its
// agent takes to be silent.
func (m *Machine) checkOwner(ctx context.Context, req JoinRequest, f *facts) {
	if f.inst.ID == "" || !f.address.Addr.IsValid() {
		return // a finding of its own
	}
	self := m.self(f.inst.ID, f.address.Addr.String())
	var first *cluster.OtherMachineError
	for {
		err := f.client.CheckOwner(ctx, self)
		var other *cluster.OtherMachineError
		switch {
		case err == nil, ctx.Err() != nil: // who stops the join reads of that
			return
		case !errors.As(err, &other):
			f.warn(IDUnverified, "", "whether another machine has this one's id could not be found out: %v", err)
			return
		}
		wait := other.Free() + ownerRound
		if req.DryRun || (first != nil && !other.Node.UpdatedAt.Equal(first.Node.UpdatedAt)) || wait > mostOwnerWait {
			f.fail(IDDuplicate, other, DuplicateHint)
			return
		}
		if first == nil {
			first = other
			m.say("%v: waiting whether it writes again", other)
		}
		if !sleep.For(ctx, min(wait, ownerRound)) {
			f.fail(IDDuplicate, other, DuplicateHint)
			return
		}
	}
}

// ownerRound is the time between two looks at the other machine's row.
const ownerRound = 500 * time.Millisecond

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
	if ctx.Err() != nil {
		return
	}
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
	// Restored is what a leave makes of it; "" for a join.
	Restored Restored `json:"restored,omitempty"`
}

// Restored is how a leave gives a file back.
type Restored string

// How.
const (
	// RestoredBytes: byte for byte as join found it.
	RestoredBytes Restored = "bytes"
	// RestoredRemoved: join had made it.
	RestoredRemoved Restored = "removed"
	// RestoredKeys: the server or an operator wrote it since the join. What join had
	// changed is taken back, all else is kept.
	RestoredKeys Restored = "keys"
	// RestoredStandalone: what join had changed was edited since, the application was made
	// after the join, or another tool made this server a cluster's. It has the standalone form now.
	RestoredStandalone Restored = "standalone"
)

// tornText is about settings files that are made whole.
const tornText = "half written or empty, as after a crash or on a full disk: %s; what is in one is kept beside it, as .amsagent-saved"

// needsRestart reports whether the plan changes anything that AMS reads at its
// start.
func needsRestart(plan *conf.Plan) bool {
	return slices.ContainsFunc(plan.Changed(), changesServer)
}

// changesServer reports whether a running server would be another one after a
// restart. Permission bits are nothing to it, nor is the agent's own file, nor a
// line in /etc/hosts: it knows its address already. Of the drop-in the address
// counts; for the rest of it systemd only has to read its files again.
func changesServer(f conf.PlannedFile) bool {
	switch f.Before.Path {
	case MongoPath, hostsPath:
		return false
	case ams.DropInPath:
		was := ams.ParseDropIn(f.Before.Bytes)
		is := ams.ParseDropIn(f.After)
		return was.HostAddress != is.HostAddress
	}
	return f.CopyOf() == "" && (f.After == nil || !bytes.Equal(f.After, f.Before.Bytes))
}
