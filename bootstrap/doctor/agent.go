// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
)

func checkRecord(_ context.Context, _ *patient, in *bootstrap.Inspection) []Result {
	if in.Unread != nil {
		return one(notKnown(in.Unread))
	}
	found := findings(in.Findings, bootstrap.IDRecord)
	if s := in.State; s != nil && in.Instance.ID != "" && s.InstanceID != in.Instance.ID {
		found = append(found, bad("the daemon repairs it when it starts: systemctl restart amsagent; before an image is made: amsagent seal --yes",
			"the agent remembers %s, and this machine is %s: its disk is a copy of that one's", s.InstanceID, in.Instance.ID).as(bootstrap.IDCloned))
	}
	if in.Interrupted {
		found = append(found, bad("run the same join or leave again: it finishes what was begun",
			"a run of amsagent was killed while it wrote the files").as(idUnfinished))
	}
	switch {
	case len(found) > 0:
		return found
	case in.State == nil && !in.Undo:
		return one(good("this machine never joined, or left completely"))
	case in.State == nil:
		return one(good("the files are a node's, and can be restored; no join was proved here"))
	case !in.Undo:
		return one(warning("a leave makes the files standalone all the same", "this machine is %s, but the record of the former bytes is not there", in.State.Phase))
	}
	return one(good("%s as %s; the original files can be restored", in.State.Phase, in.State.Address))
}

func checkConfig(ctx context.Context, p *patient) []Result {
	var found []Result
	if p.UnreadTags != nil {
		if text := p.UnreadTags(ctx); text != "" {
			found = append(found, warning("rename the tag, or remove it", "%s", text))
		}
	}
	for _, f := range p.Config {
		found = append(found, Result{Finding: f})
	}
	switch {
	case len(found) > 0:
		return found
	case p.ConfigSeen == "":
		return one(unknown("not read"))
	}
	return one(good("%s", p.ConfigSeen))
}

// These contain what a leave restores.
const (
	undoPath  = bootstrap.StateDir + "/undo.json"
	statePath = bootstrap.StateDir + "/state.json"
)

// checkSecrets finds passwords that every user of this machine can read.
func checkSecrets(ctx context.Context, p *patient) []Result {
	var found, read []string
	look := func(path string, open func(path string) (conf.File, error), holds func([]byte) bool) error {
		f, err := open(path)
		switch {
		case errors.Is(err, fs.ErrPermission):
			// Not even we can: then others cannot either.
			read = append(read, path)
			return nil
		case err != nil:
			return err
		case !f.Exists() || !holds(f.Bytes):
			return nil
		}
		read = append(read, path)
		if f.Mode.Perm()&0o004 != 0 && p.reachable(f.Target) {
			found = append(found, path)
		}
		return nil
	}
	var errs []error
	for _, path := range p.Secrets {
		errs = append(errs, look(path, p.store.Read, func(b []byte) bool {
			t, err := cluster.ParseTarget(strings.TrimSpace(string(b)))
			return err != nil || t.HasCredentials()
		}))
	}
	if in, err := p.inspection.get(ctx); err == nil && in.Install != nil {
		for _, f := range confFiles(in.Install)[1:] {
			errs = append(errs, look(f.Path, p.store.ReadSettings, holdsPassword))
		}
	}
	// A leave restores former bytes, passwords too.
	for _, path := range []string{undoPath, statePath} {
		if st, err := p.store.Files().Stat(path); err == nil && st.Mode.Perm()&0o004 != 0 {
			if at, err := p.store.Follow(path); err == nil && p.reachable(at) {
				found = append(found, path)
			}
		}
	}
	if err := errors.Join(errs...); err != nil && len(found) == 0 {
		return one(notKnown(err))
	}
	switch {
	case len(found) > 0:
		return one(bad("chmod o-r FILE", "every user of this machine can read passwords in %s", few(found)))
	case len(read) == 0:
		return one(good("no password of MongoDB is in any file"))
	}
	return one(good("the password of MongoDB is in %s, and other users cannot read it", few(read)))
}

// reachable reports whether every user may enter the folders of a file.
func (p *patient) reachable(path string) bool {
	for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
		if info, err := p.store.Files().Stat(dir); err == nil && info.Mode.Perm()&0o001 == 0 {
			return false
		}
	}
	return true
}

// holdsPassword reports whether a file of Ant Media Server has a password of MongoDB.
func holdsPassword(b []byte) bool {
	props, err := conf.ParseProperties(b)
	if err != nil {
		return false
	}
	for _, key := range []string{"clusterdb.host", "db.host"} {
		v, ok := props.Get(key)
		if !ok {
			continue
		}
		if t, err := cluster.ParseTarget(strings.TrimSpace(v)); err == nil && t.HasCredentials() {
			return true
		}
	}
	for _, key := range []string{"clusterdb.password", "db.password"} {
		if v, _ := props.Get(key); v != "" {
			return true
		}
	}
	return false
}

func seeService(p *patient, in *bootstrap.Inspection) Result {
	if !in.Service.Known() {
		return unknown("not asked: the server is not controlled here")
	}
	return good("%s answers", p.Machine.Service.Name())
}

// manyRestarts is what a server does not do by chance.
const manyRestarts = 3

func checkUnit(_ context.Context, p *patient, in *bootstrap.Inspection) []Result {
	s := in.Service
	if !s.Known() {
		return one(unknown("how the server is doing is not known"))
	}
	name := p.Machine.Service.Name()
	log := ams.LogHint(name)
	var found []Result
	switch {
	case s.Activity == ams.ActivityFailed:
		found = append(found, bad(log, "%s is %s", name, s))
	case s.Crashing():
		found = append(found, bad(log, "%s dies again and again: %s", name, s))
	case s.Restarts >= manyRestarts:
		found = append(found, warning(log, "%s was started again %d times by itself", name, s.Restarts))
	}
	found = append(found, findings(in.Findings, bootstrap.IDNotEnabled)...)
	if s.NeedReload {
		found = append(found, warning("systemctl daemon-reload", "files of %s have changed, and systemd has not read them again", name).as(idReload))
	}
	if len(found) > 0 {
		return found
	}
	return one(good("%s is %s", name, s))
}

// checkDropIn: an operator, or another tool, may have removed it, or put a later one
// over it.
func checkDropIn(_ context.Context, p *patient, in *bootstrap.Inspection) []Result {
	v, err := ams.ReadDropIn(p.root)
	switch {
	case err != nil:
		return one(notKnown(err))
	case in.Unread != nil:
		return one(notKnown(in.Unread))
	case in.State == nil || in.State.Phase != bootstrap.PhaseJoined:
		if v.Exists && v.Ours && in.State == nil && !in.Undo {
			return one(warning("rm "+ams.DropInPath+"; systemctl daemon-reload", "this machine is not a cluster node, and %s is still there", ams.DropInPath))
		}
		return one(good("none is needed: this machine is not a cluster node"))
	case !p.Machine.DropIn:
		return one(good("none is needed: systemd does not run the server here"))
	case !v.Exists:
		return one(bad("amsagent join writes it again", "%s is lost: the server registers under an address of its own choice", ams.DropInPath))
	case v.HostAddress != in.State.Address:
		return one(bad("amsagent join writes it again", "%s says %s, and this node joined as %s", ams.DropInPath, strconv.Quote(v.HostAddress), in.State.Address))
	}
	s := in.Service
	if s.Known() && s.Fragment != "" {
		switch {
		case !slices.ContainsFunc(s.DropIns, func(d string) bool { return filepath.Base(d) == filepath.Base(ams.DropInPath) }):
			return one(bad("systemctl daemon-reload", "%s is there, and systemd does not know of it", ams.DropInPath))
		case s.HostAddressFile != "" && !cluster.SameAddress(s.HostAddress, in.State.Address):
			return one(bad("remove that line from "+s.HostAddressFile, "%s overrides ours: the next start gets %s=%s", s.HostAddressFile, ams.HostAddressVariable, s.HostAddress))
		case s.HostAddress != "" && !cluster.SameAddress(s.HostAddress, in.State.Address):
			return one(bad("systemctl cat "+p.Machine.Service.Name()+" shows which one", "another drop-in stands over ours: the next start gets %s=%s", ams.HostAddressVariable, s.HostAddress))
		}
	}
	return one(good("%s=%s, %s to stop", ams.HostAddressVariable, v.HostAddress, span(cmp.Or(in.Service.StopTimeout, v.StopTimeout))))
}

// daemonUnits are the agent's own.
func daemonUnits() []string { return []string{"amsagent-node.service", daemonUnit} }

func checkDaemonUnits(ctx context.Context, p *patient) []Result {
	if p.Unit == nil {
		return one(unknown("not asked: no service manager is used here"))
	}
	joined, known := p.joined(ctx)
	if !known {
		return one(unknown("whether this machine is a node is not known"))
	}
	var found []Result
	var seen, missing []string
	for _, name := range daemonUnits() {
		s, err := p.Unit(ctx, name)
		switch {
		case errors.Is(err, ams.ErrNoUnit):
			missing = append(missing, name)
			continue
		case err != nil:
			return one(notKnown(err))
		}
		seen = append(seen, fmt.Sprintf("%s %s", name, s))
		found = append(found, judgeUnit(name, s, joined)...)
	}
	switch {
	case len(found) > 0:
		return found
	case len(missing) > 0:
		then := ""
		if !joined {
			then = "after a join "
		}
		return one(warning("install the package of amsagent, which has them",
			"not installed: %s; %snothing drains this node, sends its heartbeats or repairs its files", strings.Join(missing, ", "), then))
	case !joined:
		return one(good("installed; a join starts them"))
	}
	return one(good("%s", strings.Join(seen, ", ")))
}

func judgeUnit(name string, s ams.State, joined bool) []Result {
	var found []Result
	if s.NeedReload {
		found = append(found, warning("systemctl daemon-reload", "files of %s have changed, and systemd has not read them again", name).as(idReload))
	}
	if err := s.Startable(); err != nil {
		hint := "systemctl status " + name
		if errors.Is(err, ams.ErrUnitMasked) {
			hint = "systemctl unmask " + name
		}
		if joined || !errors.Is(err, ams.ErrUnitMasked) {
			return append(found, bad(hint, "%s: %v", name, err))
		}
		return append(found, warning(hint, "%s: %v, so that a join cannot start it", name, err))
	}
	log := "journalctl -u " + name + " -n 50 shows the cause"
	switch {
	case s.Activity == ams.ActivityFailed || s.Crashing():
		return append(found, bad(log, "%s is %s", name, s))
	case !joined:
		return found
	case !s.Running() && s.Activity != ams.ActivityActivating:
		return append(found, bad("systemctl enable --now "+name, "%s is %s, on a node", name, s))
	case s.UnitFile == "disabled":
		return append(found, bad("systemctl enable "+name, "%s does not start at boot", name))
	}
	return found
}

func checkDaemon(ctx context.Context, p *patient) []Result {
	if p.Daemon == nil {
		return one(unknown("not asked"))
	}
	ctx, cancel := context.WithTimeout(ctx, p.askTime())
	defer cancel()
	v, err := p.Daemon(ctx)
	switch {
	case errors.Is(err, ErrNoDaemon):
		joined, known := p.joined(ctx)
		switch {
		case !known:
			return one(unknown("none answers; whether this machine is a node is not known"))
		case joined && p.running:
			return one(bad("systemctl start amsagent; why it does not run: journalctl -u amsagent", "none answers: nothing sends heartbeats for this node, and nothing drains it"))
		case joined:
			return inTree()
		}
		return one(good("none runs, and none is needed before a join"))
	case err != nil:
		return one(notKnown(err))
	}
	var found []Result
	for _, t := range v.Trouble {
		found = append(found, warning("amsagent status shows more, and journalctl -u amsagent when it began", "%s", t).as(idTrouble))
	}
	if v.Version != p.Machine.Version {
		found = append(found, warning("systemctl restart amsagent; that changes nothing in the cluster",
			"the daemon is of version %s, and this program of %s", v.Version, p.Machine.Version).as(idTrouble))
	}
	if len(found) == 0 {
		found = one(good("%s", v.Activity))
	}
	if v.LaunchHooks != "" {
		found = append(found, good("launch hooks: %s", v.LaunchHooks).as(idHook)) // all may be other programs'
	}
	return found
}

// checkViews has the contradictions of `amsagent status`.
func checkViews(ctx context.Context, p *patient) []Result {
	s, err := p.status.get(ctx)
	if err != nil {
		return one(notKnown(err))
	}
	var found []Result
	for _, d := range s.Disagree {
		if d.ID != idUnfinished { // reported with the agent's own files
			found = append(found, Result{Finding: d})
		}
	}
	switch {
	case len(found) > 0:
		return found
	case !s.Member:
		return one(good("this machine is not a cluster node"))
	case s.Files.Err != "":
		return one(unknown("the files could not be looked at: %s", s.Files.Err))
	case !s.Row.Looked:
		return one(unknown("the registry could not be looked at: %s", s.Row.Err))
	}
	return one(good("they agree: in the cluster as %s", s.Row.Address))
}
