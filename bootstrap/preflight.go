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
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
)

type facts struct {
	install   *ams.Installation
	mode      conf.Mode
	inst      metadata.Instance
	address   ams.Address
	service   ams.State
	serviceAt time.Time
	hostname  ams.Hostname
	record    *conf.Record
	own       []*conf.FileRecord
	state     *State
	client    *cluster.Client
	plan      *conf.Plan
	planned   bool // plan is complete

	// skipApps skips unusable application files: without an operator, they must not block the others.
	skipApps bool

	findings []Finding
}

// provider falls back to the cloud at the time of the join.
func (f *facts) provider() string {
	if f.inst.Provider == "" && f.state != nil {
		return f.state.Provider
	}
	return f.inst.Provider
}

func (f *facts) fail(id string, err error, hint string) {
	f.findings = append(f.findings, failure(id, err, hint))
}

func (f *facts) warn(id, hint, format string, args ...any) {
	f.findings = append(f.findings, warningOf(id, hint, format, args...))
}

func (f *facts) warnAll(ws []ams.Warning) {
	for _, w := range ws {
		f.warn(w.ID, "", "%s", w.Text)
	}
}

func (f *facts) failed() []Finding {
	failed, _ := Failed(f.findings)
	return failed
}

// leaveFirst is the hint for a damaged record: a join would record a node's files as the original ones.
const leaveFirst = "run 'amsagent leave': it makes this machine standalone without that file, and keeps it; then join again"

// preflight does not stop at the first failure.
func (m *Machine) preflight(ctx context.Context, store *conf.Store, req JoinRequest, f *facts) error {
	var serviceErr error
	var asking sync.WaitGroup
	defer asking.Wait()
	asking.Go(func() { serviceErr = m.askService(ctx, f) }) // as fast as the files, some milliseconds
	if err := checkRecord(store, f); err != nil {
		n, ok := m.needsRoot(err)
		if !ok {
			return err
		}
		f.findings = append(f.findings, n)
	}
	m.checkInstall(f)
	asking.Wait()
	m.checkService(f, serviceErr)
	m.checkIdentity(ctx, req, f)
	if f.install != nil {
		m.checkPlan(store, req, f)
		if f.planned && req.DryRun && m.Euid == 0 {
			checkWritable(store, f.plan.Changed(), f)
		}
	}
	if !req.Offline {
		checkTarget(ctx, req, f)
		if serviceErr == nil {
			m.checkUnmanaged(ctx, f)
			m.checkBoot(ctx, f)
		}
	}
	return nil
}

// checkBoot fails early in a boot: a start would wait, and the end of a failed join would cancel the boot's own start.
func (m *Machine) checkBoot(ctx context.Context, f *facts) {
	systemd, ok := m.Service.(interface {
		SystemStarting(ctx context.Context) (bool, error)
	})
	if !ok {
		return
	}
	if early, err := systemd.SystemStarting(ctx); err == nil && early {
		f.fail(IDService, errors.New("the boot has not reached sysinit.target: before that systemd starts no service"),
			"run the join later: from a script or runcmd of user data, not bootcmd, or from a unit without DefaultDependencies=no")
	}
}

// checkUnmanaged fails while a server may run that nothing here stops: it writes its settings as it ends.
func (m *Machine) checkUnmanaged(ctx context.Context, f *facts) {
	if f.service.Known() || !f.planned || !needsRestart(f.plan) || ams.Refused(ctx, f.install.BaseURL()) {
		return
	}
	f.fail(IDService, fmt.Errorf("something listens at %s and is not managed here: a running server writes its former settings over the join's as it ends",
		f.install.BaseURL()), "stop Ant Media Server, run join, then start it")
}

// reachFirst runs without the lock: a drain must not wait for the metadata service or MongoDB. The files are read
// again under the lock.
func (m *Machine) reachFirst(ctx context.Context, store *conf.Store, req *JoinRequest) *facts {
	f := &facts{}
	req.Identify = m.AskNow(ctx, req.Identify)
	var err error
	if f.inst, err = req.Identify(ctx); err == nil {
		if f.state, err = loadState(store); err != nil {
			f.state = nil // preflight reports it
		}
		if f.address, err = m.joinAddress(*req, f); err != nil {
			f.address = ams.Address{} // preflight reports it
		}
	}
	if !m.connect(ctx, req.Mongo, f) {
		return f
	}
	if f.install, err = m.open(); err != nil { // while the driver connects
		f.install = nil // preflight reports it
	}
	m.checkMongo(ctx, *req, f)
	return f
}

// AskNow calls identify now, with progress. The result returns its answer.
func (m *Machine) AskNow(ctx context.Context, identify Identifier) Identifier {
	var inst metadata.Instance
	var err error
	m.whileSlow("asking the metadata service who this machine is", func() { inst, err = identify(ctx) })
	return func(context.Context) (metadata.Instance, error) { return inst, err }
}

// Identifier returns this machine's instance.
type Identifier = func(context.Context) (metadata.Instance, error)

// joinAddress ignores the address of the machine whose disk was copied.
func (m *Machine) joinAddress(req JoinRequest, f *facts) (ams.Address, error) {
	if req.AddressKept && isCopy(f.state, f.inst.ID) {
		req.Address = ""
	}
	return m.address(req.Address, req.ForceAddress || req.Offline, f.inst)
}

// checkRecord returns errors that are no findings, such as an unreadable folder.
func checkRecord(store *conf.Store, f *facts) error {
	var err error
	if f.record, err = store.Record(); err != nil {
		n, ok := recordFinding(err, leaveFirst)
		if !ok {
			return err
		}
		f.findings = append(f.findings, n)
	}
	if f.state, err = loadState(store); err != nil {
		var damaged *conf.DamagedError
		n, ok := recordFinding(err, "")
		switch {
		case errors.As(err, &damaged):
			// All of it can be found again.
			f.warn(IDRecord, "", "%v; the join writes it again", err)
		case ok:
			f.findings = append(f.findings, n)
		default:
			return err
		}
	}
	f.own, err = loadOwn(store, f.record)
	if _, ok := recordFinding(err, ""); ok {
		return nil // reported above
	}
	return err
}

func (m *Machine) checkInstall(f *facts) {
	var err error
	if f.install, err = m.open(); err != nil {
		f.fail(IDInstall, err, ams.Hint(err))
		f.install = nil
		return
	}
	f.warnAll(f.install.Warnings)
	if said := m.Release.Version; said != "" && said != f.install.Release.Version {
		f.warn(IDRelease, "leave --ams-release, or ams_release, away", "the jar of Ant Media Server is of release %s; the setting %s is ignored", f.install.Release.Version, said)
	}
	if !f.install.Release.Known() {
		f.warn(IDRelease, "say which it is with --ams-release", "the release of Ant Media Server is not known, and is taken for a current one: %s", f.install.Release.Note)
	}
	if f.mode, err = f.install.Mode(); err != nil {
		f.mode = ""
	}
}

func (m *Machine) askService(ctx context.Context, f *facts) (err error) {
	f.serviceAt = time.Now()
	f.service, err = m.Service.State(ctx)
	return err
}

// checkService gets askService's error.
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

func (m *Machine) checkIdentity(ctx context.Context, req JoinRequest, f *facts) {
	if !req.Offline {
		inst, err := req.Identify(ctx)
		if err != nil {
			f.fail(IDIdentity, err, cloud.HintOf(err))
			return
		}
		f.inst = inst
	}
	if req.Offline && req.Address == "" && f.state == nil {
		// For an image: its clones find their own.
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
		hint := "remove that line from " + s.HostAddressFile
		if _, err := netip.ParseAddr(s.HostAddress); err == nil {
			hint += ", or give that address with --address"
		}
		f.fail(IDAddress, fmt.Errorf("%s sets %s=%s, which overrides the agent's drop-in: the server would not register as %s",
			s.HostAddressFile, ams.HostAddressVariable, s.HostAddress, f.address.Addr), hint)
	}
	if f.hostname, err = ams.LookupHostname(ctx, m.Root); err != nil {
		f.warn(IDHostname, "", "this machine's own name could not be looked up: %v", err)
		return
	}
	m.checkHostname(f)
}

// checkHostname concerns releases without AMS_HOST_ADDRESS.
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

// removesValve changes nothing if the cloud is unknown.
func removesValve(store *conf.Store, wanted Valve, f *facts) bool {
	switch provider := f.provider(); {
	case wanted == ValveRemove, wanted == ValveKeep:
		return wanted == ValveRemove
	case provider != "":
		return provider == metadata.Azure
	}
	file, err := store.ReadSettings(f.install.Container.Path)
	if err != nil {
		return false // the plan reports it
	}
	c, err := conf.ParseContainer(file.Bytes)
	return err == nil && !c.HasRemoteIPValve()
}

func (m *Machine) checkPlan(store *conf.Store, req JoinRequest, f *facts) {
	form, err := MongoForm(f.install.Release, req.Mongo)
	if err != nil {
		var fe *formError
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
		program:     m.program(),
		private:     req.Mongo.HasCredentials(),
	}
	if e.owner, err = ownerOf(store, f.install); err != nil {
		// Files with a password could not be protected without it.
		f.fail(IDInstall, err, "")
		return
	}
	// While a node's resolver is down, the need is unknown.
	lineNeeded := !f.hostname.Resolvable() && !(f.hostname.TimedOut && f.state != nil && f.state.Phase == PhaseJoined)
	if f.address.Addr.IsValid() && f.hostname.Name != "" && (lineNeeded || f.hostsLineIsOurs()) {
		e.hostName = f.hostname.Name
	}
	plan, err := planJoin(store, f.record, f.own, e)
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
		checkWritable(store, plan.Changed(), f)
	}
}

// program keeps the drop-in's copy of the agent while root alone can change it. The daemon's may be another one than this.
func (m *Machine) program() string {
	is, err := ams.ReadDropIn(m.Root)
	if err != nil || !is.Ours {
		return m.Program
	}
	root := files.Root{Path: m.Root}
	if info, err := root.Stat(is.Program); err != nil || !info.Mode.IsRegular() || info.Mode&0o111 == 0 || root.RootsAlone(is.Program) != nil {
		return m.Program
	}
	return is.Program
}

// stopTimeout returns 0, which leaves the line out, if more time than the server needs is in effect without it: a copy would
// outlive the operator's own. If the service state is unknown, the drop-in stays as it is.
func (m *Machine) stopTimeout(f *facts) time.Duration {
	want, inEffect := ams.StopTimeout(len(f.install.Apps)), f.service.StopTimeout
	is, err := ams.ReadDropIn(m.Root)
	ours := err == nil && is.Ours
	switch {
	case !f.service.Known() && ours:
		return is.StopTimeout
	case !f.service.Known(), ours && is.StopTimeout > 0 && is.StopTimeout == inEffect:
		return want
	case inEffect == 0, inEffect >= want: // 0 is endless
		return 0
	}
	return want
}

// hostsLineIsOurs reports whether an earlier join wrote the line, which must follow the address.
func (f *facts) hostsLineIsOurs() bool {
	return slices.ContainsFunc(f.own, func(own *conf.FileRecord) bool { return own.Path == hostsPath })
}

func isApp(in *ams.Installation, err error) bool {
	var fe *FileError
	return errors.As(err, &fe) && slices.ContainsFunc(in.Apps, func(a ams.App) bool { return a.File.Path == fe.Path })
}

// spoiled reports unusable content. The file's owner, a crash or a full disk can cause that at any time.
func spoiled(err error) bool {
	_, malformed := errors.AsType[*conf.SyntaxError](err)
	return malformed || errors.Is(err, conf.ErrEmpty) || errors.Is(err, conf.ErrTorn)
}

func (m *Machine) classifyFile(err error) (id, hint string) {
	var layout *conf.LayoutError
	var syntax *conf.SyntaxError
	switch {
	case errors.Is(err, fs.ErrPermission) && m.Euid != 0:
		return IDFile, RootHint
	case errors.As(err, &layout):
		return IDSections, "correct that line, or put the file of this release back in its place"
	case errors.Is(err, conf.ErrUnmarked):
		return IDSections, "put the jee-container.xml of this release in its place"
	case errors.As(err, &syntax):
		return IDFile, "correct that line"
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
		return IDFile, RootHint
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

func ownerOf(store *conf.Store, in *ams.Installation) (int, error) {
	info, err := store.Files().Stat(in.Dir)
	return info.UID, err
}

// checkOwners warns of files that will hold a password but stay readable: they have another owner, and the server
// may need these rights.
func checkOwners(plan *conf.Plan, owner int, f *facts) {
	for _, file := range plan.Files() {
		if now := file.Before; file.Kind == conf.KindProperties && now.Exists() && now.UID != owner {
			f.warn(IDFileOwner, fmt.Sprintf("chown it to uid %d", owner),
				"%s belongs to uid %d and the installation to uid %d: it keeps its mode %o, and it will hold a password", now.Path, now.UID, owner, now.Mode)
		}
	}
}

// minFree is in bytes: for a journal and a copy of each file.
const minFree = 8 << 20

// checkWritable comes before a stop of the server. It opens each file for writing, and asks each folder for room.
func checkWritable(store *conf.Store, changed []conf.PlannedFile, f *facts) {
	if len(changed) == 0 {
		return
	}
	paths := []string{path.Join(StateDir, "x")}
	for _, file := range changed {
		paths = append(paths, file.Before.Target)
	}
	slices.Sort(paths)
	var refused []error
	var full error
	for _, name := range slices.Compact(paths) {
		switch err := writable(store, name); {
		case errors.Is(err, syscall.EBUSY) && name == hostsPath: // it is written in place
		case errors.Is(err, syscall.ENOSPC):
			full = cmp.Or(full, err)
		case err != nil:
			refused = append(refused, err)
		}
	}
	if n := len(refused); n > 0 {
		err := refused[0]
		if n > 1 {
			err = fmt.Errorf("%w, and %s", err, plural(n-1, "more path"))
		}
		hint := cmp.Or(deniedHint(err), RootHint)
		if errors.Is(err, syscall.EROFS) {
			hint = "mount it writable"
		}
		f.fail(IDWritable, err, hint)
	}
	if full != nil {
		f.fail(IDSpace, full, "make room on that file system")
	}
}

// writable also finds a file that even root cannot replace: chattr +i or +a, or a mount point. Without room it returns
// ENOSPC.
func writable(store *conf.Store, name string) error {
	p, err := store.Files().LocateName(name)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.Folder.Writable("."); err != nil {
		return err
	}
	if len(p.Missing) == 0 {
		if err := p.Folder.Writable(p.Name); errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EBUSY) {
			return err
		}
	}
	if st, err := p.Folder.Space(); err == nil && st.Blocks > 0 && int64(st.Bavail)*st.Bsize < minFree {
		return fmt.Errorf("%s is full (%.1f MB free, %d MB needed): %w", path.Dir(name), float64(int64(st.Bavail)*st.Bsize)/(1<<20), minFree>>20, syscall.ENOSPC)
	}
	return nil
}

// deniedHint explains what even root cannot do.
func deniedHint(err error) string {
	switch {
	case errors.Is(err, syscall.EBUSY):
		return "the file itself is a mount point (docker -v): mount its folder instead"
	case errors.Is(err, syscall.EPERM):
		return "root is refused: `lsattr` on the file and its folder shows i or a; `chattr -i -a` removes them"
	}
	return ""
}

func checkTarget(ctx context.Context, req JoinRequest, f *facts) {
	for _, w := range req.Mongo.Warnings() {
		f.warn(IDMongoOption, "", "connection string: %s", w)
	}
	if req.Mongo.Loopback() && f.address.Addr.IsValid() && !f.address.Addr.IsLoopback() {
		f.warn(IDMongoLocal, "give the address of the cluster's database", "MongoDB at %s is this very machine; no other node can join that cluster", req.Mongo.Redacted())
	}
	if f.install == nil {
		return
	}
	if from := f.install.IPv4Only(f.service); from != "" {
		const text, hint = "%s is reached by IPv6 only, and the server's Java runs without IPv6: %s", "remove %s from %s"
		if a := f.address.Addr; a.Is6() && !a.Is4In6() {
			f.fail(IDAddress, fmt.Errorf(text, a, ams.PreferIPv4), fmt.Sprintf(hint, ams.PreferIPv4, from))
		}
		if isIPv6Only(ctx, req.Mongo) {
			f.fail(IDMongoForm, fmt.Errorf(text, "MongoDB at "+strings.Join(req.Mongo.Hosts(), ", "), ams.PreferIPv4), fmt.Sprintf(hint, ams.PreferIPv4, from))
		}
	}
}

// isIPv6Only is false if a host has another address, or if DNS does not know.
func isIPv6Only(ctx context.Context, mongo cluster.Target) bool {
	return !mongo.SRV() && !slices.ContainsFunc(mongo.HostNames(), func(name string) bool {
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		return err != nil || slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Unmap().Is4() })
	})
}

// connect does not wait: the driver connects in the background.
func (m *Machine) connect(ctx context.Context, mongo cluster.Target, f *facts) bool {
	var err error
	if f.client, err = m.Connect(ctx, mongo); err != nil {
		f.client = nil
		f.failMongo(err)
	}
	return err == nil
}

// checkMongo waits a little for a MongoDB that is booting.
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
		if err == nil || ctx.Err() != nil || !cluster.KindOf(err).Passes() || req.DryRun {
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
	checkRole(ctx, req.Role, f)
}

func checkRole(ctx context.Context, role string, f *facts) {
	if role == "" || ctx.Err() != nil {
		return
	}
	nodes, err := f.client.Nodes(ctx)
	switch text := LoneRole(role, f.inst.ID, nodes); {
	case err != nil:
		f.warn(IDUnverified, "", "the roles of the other nodes are not known: %v", err)
	case text != "":
		f.warn(IDRole, RoleHint, "%s", text)
	}
}

// RoleHint is the hint of IDRole.
const RoleHint = "if it is a typing error, join again with the right --role"

// LoneRole returns a warning if no other node has the role of the node id, or "". The first edge of a cluster of origins, and
// the first origin of one of edges, have none.
func LoneRole(role, id string, nodes []cluster.Node) string {
	usual := []string{"origin", "edge"}
	var roles []string
	for _, n := range nodes {
		switch {
		case n.ID == id || n.Role == "":
		case n.Role == role:
			return "" // also if it has left
		case n.State != cluster.StateLeft && !slices.Contains(roles, n.Role):
			roles = append(roles, n.Role)
		}
	}
	foreign := func(r string) bool { return !slices.Contains(usual, r) }
	if role == "" || len(roles) == 0 || !foreign(role) && !slices.ContainsFunc(roles, foreign) {
		return ""
	}
	slices.Sort(roles)
	return fmt.Sprintf("role %s: no other node has it (%s)", role, strings.Join(roles, ", "))
}

// ReadHint is the hint for streams that cannot be read.
const ReadHint = "the user needs read on the database of each application (db.name): without it publishers are not counted, and leave and drain do not know whom they cut; " + WriteHint

// WriteHint lists the uses of readWrite.
const WriteHint = "drain --repair-streams needs readWrite there, and so does Ant Media Server, which also writes serverdb, NAMEVoD, NAME_token and others: amsagent doctor --explain AMS-MONGO-FORBIDDEN"

// checkRead returns only authorization errors.
func (m *Machine) checkRead(ctx context.Context, c *cluster.Client, in *ams.Installation) error {
	databases, err := in.Databases()
	if err != nil {
		return nil //nolint:nilerr // reported elsewhere
	}
	if err = c.CheckRead(ctx, databases); cluster.KindOf(err) == cluster.KindForbidden {
		return err
	}
	return nil
}

// MongoMemberText explains an address of one member of a replica set.
func MongoMemberText(set string, members int) string {
	return fmt.Sprintf("the address names one of the %d members of replica set %s: amsagent and Ant Media Server stay with "+
		"that member and can write nothing while another one is the primary", members, set)
}

// MongoMemberHint is the full address, without credentials.
func MongoMemberHint(set string, hosts []string) string {
	return fmt.Sprintf("name all members and the set: mongodb://%s/?replicaSet=%s", strings.Join(hosts, ","), set)
}

// DuplicateHint is the hint of IDDuplicate.
const DuplicateHint = "a machine without a cloud is named by /etc/machine-id, which a copied disk keeps: empty it on the copy " +
	"(and remove /var/lib/dbus/machine-id), then reboot; 'amsagent seal --yes' does it before the disk is copied. " +
	"If the other machine is gone for good: amsagent join --replace"

// mostOwnerWait bounds the wait for the other node record to become stale.
const mostOwnerWait = 20 * time.Second

// checkOwner fails if another machine uses this machine's id. One fresh heartbeat is no proof: this machine may
// have been reset with another address. Its record then gets stale.
func (m *Machine) checkOwner(ctx context.Context, req JoinRequest, f *facts) {
	if f.inst.ID == "" || !f.address.Addr.IsValid() {
		return // reported elsewhere
	}
	self := m.self(f.inst.ID, f.address.Addr.String())
	var first *cluster.OtherMachineError
	var silence *cluster.Silence
	if req.Unattended {
		silence = new(cluster.Silence)
	}
	for {
		err := f.client.CheckOwner(ctx, self, silence)
		var other *cluster.OtherMachineError
		switch {
		case err == nil, ctx.Err() != nil: // the caller reports the end of ctx
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

const ownerRound = 500 * time.Millisecond

// patience uses at most half of the caller's time.
func patience(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return min(mongoPatience, time.Until(deadline)/2)
	}
	return mongoPatience
}

func (f *facts) failMongo(err error) {
	id := IDMongo
	if k := cluster.KindOf(err); k == cluster.KindAuth || k == cluster.KindForbidden {
		id = IDMongoAuth
	}
	f.fail(id, err, "")
}

func summary(err error) string {
	var e *cluster.Error
	if errors.As(err, &e) {
		return e.Summary()
	}
	return err.Error()
}

const clockWarn = 5 * time.Second

func (m *Machine) checkClock(ctx context.Context, f *facts) {
	skew, accuracy, err := f.client.ClockSkew(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		f.warn(IDUnverified, "", "this machine's clock could not be compared with MongoDB's: %v", err)
		return
	}
	const hint = "let chrony or systemd-timesyncd set the clock"
	way := "ahead of"
	if skew < 0 {
		way = "behind"
	}
	err = fmt.Errorf("this machine's clock is %s %s MongoDB's", skew.Abs().Round(100*time.Millisecond), way)
	switch off := skew.Abs() - accuracy; {
	case off > cluster.GoneLimit:
		f.fail(IDClock, fmt.Errorf("%w, more than %s: from 20 s on, other servers treat this one as dead, or it them", err, cluster.GoneLimit), hint)
	case off > clockWarn:
		f.warn(IDClock, hint, "%v", err)
	}
}

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

// FileResult is the result for one file.
type FileResult struct {
	Path    string `json:"path"`
	Changed bool   `json:"changed"`
	// Diff is a unified diff with secrets masked.
	Diff string `json:"diff,omitempty"`
	// Mode is the new permissions, if they change.
	Mode string `json:"mode,omitempty"`
	// Restored is how a leave restores the file; "" for a join.
	Restored Restored `json:"restored,omitempty"`
}

// Restored is a leave's effect on a file.
type Restored string

// The effects.
const (
	// restoredBytes means the bytes from before the join.
	restoredBytes Restored = "bytes"
	// restoredRemoved means that the join had made the file.
	restoredRemoved Restored = "removed"
	// RestoredKeys means that the file was written since: only the join's changes are reverted.
	RestoredKeys Restored = "keys"
	// RestoredStandalone means standalone values: the join's were edited, the application is newer, or another tool
	// made the server a node.
	RestoredStandalone Restored = "standalone"
)

const tornText = "half written or empty, as after a crash or on a full disk: %s; what is in one is kept beside it, as .amsagent-saved"

func needsRestart(plan *conf.Plan) bool {
	return slices.ContainsFunc(plan.Changed(), changesServer)
}

// changesServer reports whether a restart changes the server. Permissions and the agent's own file do not count. In
// the drop-in only the address counts: systemd can reload the rest. A running server knows its address without
// /etc/hosts.
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
