// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/files"
)

// SealItem is something that clones must not share.
type SealItem string

// The items. TLS and licence stay by default.
const (
	SealAgent    SealItem = "agent"
	SealIdentity SealItem = "identity"   // ids and markers of the first start
	SealMarkers  SealItem = "markers"    // make an application look crashed
	SealDatabase SealItem = "databases"  // users and streams
	SealJWT      SealItem = "jwt"        // the REST API's key
	SealName     SealItem = "name"       // server.name, if it names this machine
	SealMongo    SealItem = "mongo"      // MongoDB's password, after a change of mode
	SealHosts    SealItem = "hosts"      // this machine's line
	SealLogs     SealItem = "logs"       // also of the vendor's scripts
	SealMachine  SealItem = "machine-id" // used by systemd and the agent
	SealTLS      SealItem = "tls"
	SealLicence  SealItem = "licence"
)

// SealItems returns all items in order of removal.
func SealItems() []SealItem {
	return []SealItem{
		SealIdentity, SealMarkers, SealDatabase, SealJWT, SealName, SealMongo, SealHosts, SealLogs, SealTLS, SealLicence, SealMachine, SealAgent,
	}
}

// Kept reports whether an item stays by default.
func (i SealItem) Kept() bool { return i == SealTLS || i == SealLicence }

// IDs of findings.
const (
	idSealJoined  = "AGENT-SEAL-JOINED"
	idSealRunning = "AGENT-SEAL-RUNNING"
	idSealDaemon  = "AGENT-SEAL-DAEMON"
	idSealSecret  = "AGENT-SEAL-SECRET" // a secret stays
	idSealLink    = "AGENT-SEAL-LINK"   // a folder links elsewhere
)

// SealRequest is the input of [Machine.Seal].
type SealRequest struct {
	// Keep and Remove override the defaults.
	Keep, Remove []SealItem
	// DryRun only reports.
	DryRun bool
}

func (r SealRequest) removes(i SealItem) bool {
	if slices.Contains(r.Keep, i) {
		return false
	}
	return !i.Kept() || slices.Contains(r.Remove, i)
}

// Sealed is one item that was found.
type Sealed struct {
	Item SealItem `json:"item"`
	Path string   `json:"path"`
	What string   `json:"description"`     // such as "removed"
	Kept bool     `json:"kept,omitempty"`  // it stays on the disk
	Err  string   `json:"error,omitempty"` // why it was not removed
}

// SealResult is the result of [Machine.Seal].
type SealResult struct {
	Outcome  Outcome   `json:"outcome"`
	Found    []Sealed  `json:"found"`
	Warnings []Finding `json:"warnings"`
}

type sealer struct {
	*Machine
	store   *conf.Store
	req     SealRequest
	install *ams.Installation
	result  *SealResult
	failed  error
	secrets []string
}

// Seal removes this machine's identity and data, so that its disk can be cloned. It may be repeated. It returns a
// [PreflightError] or a [FailedError].
func (m *Machine) Seal(ctx context.Context, req SealRequest) (*SealResult, error) {
	s := &sealer{Machine: m, store: m.store(), req: req, result: &SealResult{Found: []Sealed{}, Warnings: []Finding{}}}
	if err := s.check(ctx, ""); err != nil {
		return s.result, err
	}
	if !req.DryRun {
		lock, err := m.lock(ctx)
		if err != nil {
			return s.result, &FailedError{Step: "waiting for the lock", Err: err, State: untouched, Unknown: isTimeout(err)}
		}
		defer func() { _ = lock.Unlock() }()
		warnings, found, err := m.recover(ctx, s.store)
		if err != nil {
			return s.result, notRecovered(err, "", untouched)
		}
		s.result.Warnings = append(s.result.Warnings, warnings...)
		if len(warnings) > 0 { // perhaps a join that is finished now
			if err := s.check(ctx, found); err != nil {
				return s.result, err
			}
		}
		if err := m.begin(ctx, found); err != nil {
			return s.result, err
		}
	}
	return s.result, s.seal(ctx)
}

// check gets what was changed before, as a state.
func (s *sealer) check(ctx context.Context, state string) error {
	var findings []Finding
	if s.Euid != 0 && s.Root == "" {
		findings = append(findings, newFinding(Bad, IDRoot, RootHint, "only root sees all that a seal removes, and may remove it"))
	}
	var err error
	if s.install, err = s.open(); err != nil {
		findings = append(findings, failure(IDInstall, err, "name its folder with --ams-dir"))
		return &PreflightError{Findings: findings, State: state}
	}
	st, err := s.Service.State(ctx)
	switch {
	case err != nil:
		s.warn(IDUnverified, "", "whether the server runs is not known: %v", err)
	case st.Running(), st.Activity == ams.ActivityActivating, st.Activity == ams.ActivityDeactivating:
		how := ""
		if s.DropIn {
			how = " (systemctl stop " + s.Service.Name() + ")"
		}
		findings = append(findings, newFinding(Bad, idSealRunning, "stop it first"+how+", and make the image before it is started again",
			"Ant Media Server runs: it would continue to serve without its databases, and write again what a seal removes"))
	}
	joined, err := s.joined(s.store, s.install)
	root, private := s.needsRoot(err)
	switch {
	case private && s.Root == "": // reported above
	case private:
		findings = append(findings, root)
	case err != nil:
		findings = append(findings, failure(IDRecord, err, "amsagent leave works without it"))
	case joined:
		findings = append(findings, newFinding(Bad, idSealJoined,
			"leave first: amsagent leave, or amsagent leave --offline, which does not reach the cluster",
			"this machine is a node of a cluster: every clone would believe to be it"))
	}
	if len(findings) > 0 {
		return &PreflightError{Findings: findings, State: state}
	}
	return nil
}

// joined reports whether the agent's state or the installation, if not nil, is a node's.
func (m *Machine) joined(store *conf.Store, install *ams.Installation) (bool, error) {
	record, err := store.Record()
	if err != nil {
		return false, err
	}
	state, err := readState(store) // also of a join with --offline, which may have been killed
	if err != nil || record != nil || state != nil || install == nil {
		return record != nil || state != nil, err
	}
	mode, err := install.Mode()
	return err == nil && mode == conf.ModeCluster, nil
}

func (s *sealer) warn(id, hint, format string, args ...any) {
	s.result.Warnings = append(s.result.Warnings, warningOf(id, hint, format, args...))
}

func (s *sealer) found(f Sealed) { s.result.Found = append(s.result.Found, f) }

func (s *sealer) seal(ctx context.Context) error {
	if s.Daemon != nil {
		if d, err := s.Daemon.State(ctx); err == nil && d.Active {
			s.warn(idSealDaemon, "stop it before the image is made: systemctl stop amsagent amsagent-node",
				"the daemon runs: it may let this machine join again before the image is made")
		}
	}
	s.settings()
	s.files()
	if len(s.secrets) > 0 {
		s.warn(idSealSecret, "amsagent seal --remove ITEM takes certificates, keys and the licence out; a password of MongoDB belongs into a secret store",
			"every clone will share what stays: %s", strings.Join(s.secrets, ", "))
	}
	s.outcome()
	if s.failed != nil {
		state := "what the list does not name as failed is removed; the image is not clonable yet"
		if s.req.DryRun {
			state = untouched
		}
		return &FailedError{Step: "sealing", Err: s.failed, State: state, Hint: "fix the cause and run amsagent seal again"}
	}
	return nil
}

func (s *sealer) fail(err error) { s.failed = errors.Join(s.failed, err) }

func (s *sealer) outcome() {
	done := slices.ContainsFunc(s.result.Found, func(f Sealed) bool { return !f.Kept })
	switch {
	case !done:
		s.result.Outcome = OutcomeUnchanged
	case s.req.DryRun:
		s.result.Outcome = OutcomePlanned
	default:
		s.result.Outcome = OutcomeSealed
	}
}

// settings edits the files that stay, all or none.
func (s *sealer) settings() {
	plan := s.store.NewPlan(nil)
	var found []Sealed
	edit := func(item SealItem, file string, kind conf.Kind, f func([]byte) ([]conf.Span, string, error)) {
		what := ""
		err := plan.Then(file, kind, func(src []byte) ([]conf.Span, error) {
			if src == nil {
				return nil, nil
			}
			spans, text, err := f(src)
			if len(spans) == 0 || err != nil || text == "" {
				return nil, err
			}
			what = text
			if !s.req.removes(item) {
				return nil, nil
			}
			return spans, nil
		})
		kept := !s.req.removes(item)
		switch {
		case err != nil:
			s.fail(err)
			found = append(found, Sealed{Item: item, Path: file, What: "cannot be edited", Err: err.Error()})
		case what != "" && kept:
			found = append(found, Sealed{Item: item, Path: file, What: "kept: every clone will have it", Kept: true})
			if item == SealJWT || item == SealMongo {
				s.secrets = append(s.secrets, file)
			}
		case what != "":
			found = append(found, Sealed{Item: item, Path: file, What: what})
		}
	}
	server := s.install.Server.Path
	edit(SealJWT, server, conf.KindProperties, emptied(nil, "server.jwtServerSecretKey"))
	edit(SealName, server, conf.KindProperties, emptied(s.isOurs, "server.name"))
	edit(SealLicence, server, conf.KindProperties, emptied(nil, "server.licence_key"))
	edit(SealMongo, server, conf.KindProperties, logins("clusterdb"))
	for _, w := range s.install.Warnings {
		if w.ID == ams.WarnAppEncoding {
			s.warn(w.ID, "look whether a password of MongoDB is in it", "%s", w.Text)
		}
	}
	for _, app := range distinct(s.install.Apps, nil) {
		edit(SealMongo, app.File.Path, conf.KindProperties, s.appLogins(app.File.Path))
	}
	edit(SealHosts, hostsPath, conf.KindHosts, s.hostsLine)
	s.result.Found = append(s.result.Found, found...)
	if s.req.DryRun || s.failed != nil {
		return
	}
	if err := plan.CommitUndo("seal"); err != nil {
		s.fail(err)
	}
}

// emptied empties the values that fits accepts; nil accepts any.
func emptied(fits func(string) bool, keys ...string) func([]byte) ([]conf.Span, string, error) {
	return func(src []byte) ([]conf.Span, string, error) {
		p, err := conf.ParseProperties(src)
		if err != nil {
			return nil, "", err
		}
		var done []string
		for _, key := range keys {
			if v, ok := p.Get(key); ok && v != "" && (fits == nil || fits(v)) {
				p.Set(key, "", nil)
				done = append(done, key)
			}
		}
		if len(done) == 0 {
			return nil, "", nil
		}
		verb := " is"
		if len(done) > 1 {
			verb = " are"
		}
		return p.Spans(), strings.Join(done, ", ") + verb + " made empty", nil
	}
}

// logins also empties a host with credentials. What stays is a default or an address.
func logins(prefix string) func([]byte) ([]conf.Span, string, error) {
	return func(src []byte) ([]conf.Span, string, error) {
		p, err := conf.ParseProperties(src)
		if err != nil {
			return nil, "", err
		}
		keys := []string{prefix + ".user", prefix + ".password"}
		if v, _ := p.Get(prefix + ".host"); v != "" {
			if t, err := cluster.ParseTarget(strings.TrimSpace(v)); err == nil && t.HasCredentials() {
				keys = append(keys, prefix+".host")
			}
		}
		return emptied(nil, keys...)(src)
	}
}

// appLogins skips applications that use MongoDB: clones need the same database.
func (s *sealer) appLogins(file string) func([]byte) ([]conf.Span, string, error) {
	return func(src []byte) ([]conf.Span, string, error) {
		spans, text, err := logins("db")(src)
		if err != nil || len(spans) == 0 {
			return nil, "", err
		}
		p, err := conf.ParseProperties(src)
		if err != nil {
			return nil, "", err
		}
		if kind, _ := p.Get("db.type"); strings.TrimSpace(kind) == "mongodb" || strings.TrimSpace(kind) == "redisdb" {
			s.secrets = append(s.secrets, file)
			return nil, "", nil
		}
		return spans, text, nil
	}
}

func (s *sealer) isOurs(name string) bool {
	if name == s.hostName() {
		return true
	}
	addr, err := netip.ParseAddr(name)
	return err == nil && slices.Contains(s.addresses(), addr)
}

// hostName reads the file: below another root, the kernel's name is wrong.
func (s *sealer) hostName() string {
	f, err := s.store.Read("/etc/hostname")
	if name := strings.TrimSpace(string(f.Bytes)); err == nil && name != "" || s.Root != "" {
		return name
	}
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}

func (s *sealer) addresses() []netip.Addr {
	ifs, err := ams.HostInterfaces(s.Root)
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, i := range ifs {
		out = append(out, i.Addr)
	}
	return out
}

// hostsLine drops the vendor's lines: a non-loopback address with this machine's name or, on a machine with
// several addresses, without a name. On a clone they are wrong.
func (s *sealer) hostsLine(src []byte) ([]conf.Span, string, error) {
	name := s.hostName()
	if name == "" {
		return nil, "", nil
	}
	var out []byte
	dropped := 0
	for _, line := range bytes.SplitAfter(src, []byte{'\n'}) {
		text, _, _ := strings.Cut(string(line), "#")
		f := strings.Fields(text)
		if len(f) == 1 || len(f) == 2 && f[1] == name {
			if a, err := netip.ParseAddr(f[0]); err == nil && !a.IsLoopback() {
				dropped++
				continue
			}
		}
		out = append(out, line...)
	}
	if dropped == 0 {
		return nil, "", nil
	}
	return []conf.Span{{Anchor: "hosts", Old: src, New: out}}, fmt.Sprintf("the line of %s is removed", name), nil
}

// sealRow is one kind of file that a seal removes.
type sealRow struct {
	item SealItem
	dir  string
	fits func(name string) bool
}

// named accepts these names.
func named(names ...string) func(string) bool {
	return func(name string) bool { return slices.Contains(names, name) }
}

func (s *sealer) rows() []sealRow {
	dir := s.install.Dir
	identity := named("instanceId", "initialized", "SECRET_KEY", "fqdn", "shutdown.token")
	rows := []sealRow{{SealIdentity, dir, identity}, {SealIdentity, path.Join(dir, "conf"), identity}}
	for _, app := range s.install.Apps {
		rows = append(rows, sealRow{SealMarkers, path.Dir(path.Dir(app.File.Path)), named(ams.InitializedName, ams.ClosedName)})
	}
	return append(rows,
		sealRow{SealDatabase, dir, isDatabase},
		sealRow{SealLogs, dir, named("change_server_mode.log", "enable_ssl.log")},
		sealRow{SealTLS, path.Join(dir, "conf"), func(name string) bool {
			return slices.Contains([]string{".pem", ".key", ".jks", ".p12"}, path.Ext(name))
		}})
}

// files removes the agent's files last: the others show an unfinished seal.
func (s *sealer) files() {
	for _, r := range s.rows() {
		s.matching(r.item, r.dir, r.fits)
	}
	s.logs(path.Join(s.install.Dir, "log"))
	// An operator may have put a login there.
	if f, err := s.store.Read(MongoPath); err == nil && f.Exists() {
		if t, err := cluster.ParseTarget(strings.TrimSpace(string(f.Bytes))); err != nil || t.HasCredentials() {
			s.secrets = append(s.secrets, MongoPath)
		}
	}
	s.machineID()
	s.saved()
	s.matching(SealAgent, StateDir, func(string) bool { return true })
	s.matching(SealAgent, path.Dir(resultPath), named(path.Base(resultPath)))
}

// saved removes copies of edited files and leftovers of interrupted runs: they may contain a password.
func (s *sealer) saved() {
	paths := []string{MongoPath, ams.DropInPath, hostsPath, s.install.Container.Path, s.install.Server.Path}
	for _, app := range s.install.Apps {
		paths = append(paths, app.File.Path)
	}
	for _, p := range paths {
		kept := path.Base(conf.SavedName(p))
		s.matching(SealAgent, path.Dir(p), func(name string) bool {
			return name == kept || strings.HasPrefix(name, kept+"-") || conf.IsLeftover(p, name)
		})
	}
}

// logs follows a link only to the usual folder below /var/log: another one may be shared.
func (s *sealer) logs(dir string) {
	d := s.folder(SealLogs, dir, s.store.Files().Folder)
	if d == nil {
		return
	}
	defer d.Close()
	own := []string{path.Join(s.install.Dir, "log"), "/var/log/antmedia"}
	for i := range own {
		// Parent folders may be links, too.
		if parent, err := s.store.Follow(path.Dir(own[i])); err == nil {
			own[i] = path.Join(parent, path.Base(own[i]))
		}
	}
	if !slices.Contains(own, d.Path()) {
		s.warn(idSealLink, "remove the server's logs there by hand, or make "+dir+" lead to /var/log/antmedia",
			"%s leads to %s, and nothing is removed there: it may hold more than the server's logs", dir, d.Path())
		return
	}
	s.within(SealLogs, d, dir, func(string) bool { return true })
}

// isDatabase matches the server's embedded database and the files beside it.
func isDatabase(name string) bool {
	base, _, _ := strings.Cut(name, ".db")
	rest := strings.TrimPrefix(name, base)
	return base != "" && (rest == ".db" || strings.HasPrefix(rest, ".db."))
}

func (s *sealer) matching(item SealItem, dir string, fits func(string) bool) {
	if d := s.folder(item, dir, s.store.Files().OwnFolder); d != nil {
		defer d.Close()
		s.within(item, d, dir, fits)
	}
}

func (s *sealer) folder(item SealItem, dir string, open func(string) (*files.Folder, error)) *files.Folder {
	d, err := open(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.unreadable(item, dir, err)
	}
	return d
}

func (s *sealer) unreadable(item SealItem, dir string, err error) {
	s.fail(err)
	s.found(Sealed{Item: item, Path: dir, What: "cannot be looked into", Err: err.Error()})
}

// within uses an open folder: an owner of a parent could otherwise redirect root by a link.
func (s *sealer) within(item SealItem, d *files.Folder, dir string, fits func(string) bool) {
	names, err := conf.ListIn(d)
	if err != nil {
		s.unreadable(item, dir, err)
	}
	for _, name := range names {
		if fits(name) {
			s.entry(item, d, path.Join(dir, name))
		}
	}
}

func (s *sealer) entry(item SealItem, d *files.Folder, file string) {
	f, err := d.Stat(path.Base(file))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !f.Mode.IsRegular() {
		return
	}
	found := Sealed{Item: item, Path: file, What: "removed", Kept: !s.req.removes(item)}
	switch {
	case found.Kept:
		found.What = "kept"
		if item != SealLogs {
			found.What = "kept: every clone will have it"
		}
		if item == SealTLS && isPrivate(file) {
			s.secrets = append(s.secrets, file)
		}
	case err == nil && !s.req.DryRun:
		if err = d.Remove(path.Base(file)); err == nil {
			err = d.Sync()
		}
	}
	if err != nil && !found.Kept {
		found.What, found.Err = "cannot be removed", err.Error()
		s.fail(err)
	}
	s.found(found)
}

// isPrivate excludes the vendor's fullchain, which has no key.
func isPrivate(file string) bool {
	return !strings.Contains(path.Base(file), "fullchain") && !strings.Contains(path.Base(file), "truststore")
}

// machineID empties the id: systemd then creates one at the next boot. A missing file would start a first-boot
// setup. The D-Bus id is a copy unless it is a link.
func (s *sealer) machineID() {
	const systemd, dbus = "/etc/machine-id", "/var/lib/dbus/machine-id"
	f, err := s.store.Read(systemd)
	if err == nil && len(f.Bytes) > 0 && string(bytes.TrimSpace(f.Bytes)) != "uninitialized" {
		found := Sealed{Item: SealMachine, Path: systemd, What: "made empty", Kept: !s.req.removes(SealMachine)}
		if found.Kept {
			found.What = "kept"
		} else if !s.req.DryRun {
			if err := s.store.Empty(systemd); err != nil {
				found.What, found.Err = "cannot be emptied", err.Error()
				s.fail(err)
			}
		}
		s.found(found)
	}
	s.matching(SealMachine, path.Dir(dbus), named(path.Base(dbus)))
}
