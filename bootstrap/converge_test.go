// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
)

const (
	hardwareFile = "/sys/class/dmi/id/product_uuid"
	oldHardware  = "8eb3085c-1b4d-0a4f-9e6c-3b2a1c0d0001"
	newHardware  = "3f1c0a52-7d5e-4c0b-9f43-6a1d2e8b7c90"

	byCommand = ConvergeMode("")
)

// otherHardware is a copy of the disk on another machine.
func otherHardware(t testing.TB, m *Machine) {
	change(t, m, func(s *State) { s.Hardware = oldHardware })
	put(t, m, hardwareFile, newHardware)
}

// shipped has the settings files of a new installation, as after an upgrade or a switch to standalone by hand.
func shipped(t testing.TB, m *Machine) {
	fresh := newTree(t)
	for _, name := range []string{serverFile, beansFile, liveFile, settingsOf("root"), settingsOf("WebRTCAppEE")} {
		put(t, m, name, content(t, fresh, name))
	}
}

func ofRelease(release string) step {
	return func(t testing.TB, m *Machine) { change(t, m, func(s *State) { s.Release = release }) }
}

func restartPending(t testing.TB, m *Machine) {
	change(t, m, func(s *State) { s.RestartPending = true })
}

// startedAgo is a server whose process is that old, while its drop-in is two minutes old. The service does not say it.
func startedAgo(age time.Duration) step {
	return func(t testing.TB, m *Machine) {
		process(t, m, age)
		written := time.Now().Add(-2 * time.Minute)
		must.OK(t, os.Chtimes(at(m, ams.DropInPath), written, written))
		m.Service = serverIn(ams.ActivityActive, "")
		m.Service.(*fakeService).state.MainPID = 42
	}
}

// foreign gives the installation to another user, whose damage is not the operator's.
func foreign(t testing.TB, m *Machine) {
	must.OK(t, filepath.WalkDir(at(m, ""), func(real string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(real, 4711, 4711))
	}))
}

// serverIn is a server in that state.
func serverIn(activity ams.Activity, sub string) *fakeService {
	return &fakeService{state: ams.State{Activity: activity, Sub: sub, StopTimeout: time.Second}}
}

// A convergence restores what a join has set: the agent's own files at once, those of the server while it is down. While it runs
// the convergence reports what differs, and writes none of them. A second convergence repairs nothing.
func TestConverge(t *testing.T) {
	t.Parallel()
	moved := joinedAs()
	moved.Address = netip.MustParseAddr("10.0.1.9")
	cloned := moved
	cloned.ID = "i-2"
	away := &fakeService{fails: map[string]error{"state": errors.New("the bus is away")}}
	stale := with(MongoPath, "10.0.2.5\n") // the agent's own file, which is planned after the applications
	drift := edited(liveFile, "db.type=mongodb", "db.type=mapdb")
	const live, half = "LiveApp: db.type is mapdb, must be mongodb", "#Sat Nov 21 00:34:56 UTC 2026\nsettings.hls"
	const all = "conf/jee-container.xml conf/red5.properties LiveApp WebRTCAppEE root"
	young := running().state
	young.Started = time.Now().Add(time.Hour)
	named := func(line string) []step {
		return []step{with("/etc/hostname", "edge-1\n"), with(hostsFile, "127.0.0.1 localhost\n"+line)}
	}
	watched := func(t testing.TB, m *Machine) { converge(t, m, watchRequest(t)) }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.OK(t, err)
	t.Cleanup(func() { l.Close() })
	port := edited(serverFile, "http.port=5080", fmt.Sprintf("http.port=%d", l.Addr().(*net.TCPAddr).Port))
	const dropIn = ams.DropInPath
	type row struct {
		tree    []step // after a join
		service Service
		mode    ConvergeMode
		inst    metadata.Instance // as joined, if zero
		err     error             // of the metadata
		many    bool              // the second convergence repairs more
		// The result: ids, and the files that are written but for those below StateDir.
		repairs, written, differs, warns string
		restart, standalone              bool
		has                              map[string]string // what is in some files
	}
	rows := map[string]row{
		"a new address":                         {inst: moved, repairs: "AGENT-MOVED AMS-DRIFT", written: dropIn},
		"a new address, and a malformed tag":    {inst: moved, err: fmt.Errorf("%w: amsagent:role", ErrTags), repairs: "AGENT-MOVED AMS-DRIFT", written: dropIn, warns: "AGENT-CONFIG"},
		"a new address, while it runs":          {service: running(), mode: ConvergeWatch, inst: moved, repairs: "AGENT-MOVED AMS-DRIFT", written: dropIn, restart: true},
		"a copy of the disk":                    {tree: []step{otherHardware}, inst: cloned, repairs: "AGENT-CLONED AGENT-MOVED AMS-DRIFT", written: dropIn},
		"a lost drop-in":                        {tree: []step{without(dropIn)}, repairs: "AMS-DRIFT", written: dropIn},
		"the files of an upgrade":               {tree: []step{ofRelease("2.17.1"), shipped}, repairs: "AMS-DRIFT", written: all},
		"the files of an upgrade, at its start": {tree: []step{ofRelease("2.17.1"), shipped}, mode: ConvergeBeforeStart, service: serverIn(ams.ActivityActivating, "start-pre"), repairs: "AMS-DRIFT", written: all},

		// The daemon.
		"it runs":              {tree: []step{drift}, service: running(), mode: ConvergeWatch, differs: live, restart: true},
		"it saves its files":   {tree: []step{drift}, service: serverIn(ams.ActivityDeactivating, ""), mode: ConvergeWatch, differs: live, restart: true},
		"it is down":           {tree: []step{drift}, service: serverIn(ams.ActivityInactive, ""), mode: ConvergeWatch, repairs: "AMS-DRIFT", written: "LiveApp"},
		"it is about to start": {tree: []step{drift, restartPending}, service: serverIn(ams.ActivityActivating, ""), mode: ConvergeBeforeStart, repairs: "AMS-DRIFT", written: "LiveApp"},
		"it is started meanwhile": {tree: []step{drift, func(_ testing.TB, m *Machine) {
			s := serverIn(ams.ActivityInactive, "")
			m.Service, m.Interfaces = s, func() ([]ams.Interface, error) { // a name server may be slow
				s.state = running().state
				return nil, nil
			}
		}}, mode: ConvergeWatch, differs: live, restart: true},
		"it was started since, by its process": {tree: []step{restartPending, startedAgo(time.Minute)}, mode: ConvergeWatch},
		"it was started before":                {tree: []step{restartPending, startedAgo(time.Hour)}, mode: ConvergeWatch, restart: true},
		"it was started since, by its service": {tree: []step{restartPending}, service: &fakeService{state: young}, mode: ConvergeWatch},

		// A command.
		"by hand, it runs":    {tree: []step{drift}, service: running(), differs: live, restart: true},
		"by hand, it starts":  {tree: []step{drift}, service: serverIn(ams.ActivityActivating, "start-pre"), differs: live, restart: true},
		"by hand, it stops":   {tree: []step{drift}, service: serverIn(ams.ActivityDeactivating, ""), differs: live, restart: true},
		"by hand, it crashes": {tree: []step{drift}, service: serverIn(ams.ActivityActivating, "auto-restart"), differs: live, restart: true},
		"by hand, it listens": {tree: []step{drift, port}, service: serverIn(ams.ActivityUnknown, ""), differs: live, restart: true},

		// If the service manager fails to report whether the server runs, it may be starting.
		"no answer, a command":                {tree: []step{drift, stale}, service: away, repairs: "AMS-DRIFT", written: MongoPath, differs: live, restart: true, warns: "AMS-SERVICE AGENT-EDITED"},
		"no answer, a command, nothing to do": {tree: []step{stale}, service: away, repairs: "AMS-DRIFT", written: MongoPath, warns: "AMS-SERVICE AGENT-EDITED"},
		"no answer, the daemon":               {tree: []step{drift, stale}, service: away, mode: ConvergeWatch, repairs: "AMS-DRIFT", written: MongoPath, differs: live, restart: true, warns: "AMS-SERVICE AGENT-EDITED"},
		"no answer, before the start":         {tree: []step{drift, stale}, service: away, mode: ConvergeBeforeStart, repairs: "AMS-DRIFT", written: MongoPath + " LiveApp", warns: "AMS-SERVICE AGENT-EDITED"},
		"no unit":                             {tree: []step{drift}, service: &fakeService{fails: map[string]error{"state": ams.ErrNoUnit}}, repairs: "AMS-DRIFT", written: "LiveApp", warns: "AMS-SERVICE"},
		"nothing is managed":                  {tree: []step{drift}, repairs: "AMS-DRIFT", written: "LiveApp"},

		// What concerns systemd and the resolver alone restarts nothing.
		"a drop-in of an earlier agent": {tree: []step{func(_ testing.TB, m *Machine) { m.Program = "/usr/bin/amsagent" }}, service: running(), mode: ConvergeWatch, repairs: "AMS-DRIFT", written: dropIn},
		"an application more": {tree: []step{withApp("panel"), func(t testing.TB, m *Machine) {
			must.OK(t, os.Chmod(at(m, settingsOf("panel")), 0o640))
		}}, service: running(), mode: ConvergeWatch, repairs: "AMS-DRIFT", written: dropIn},
		"a name that does not resolve":      {tree: named(""), service: running(), mode: ConvergeWatch, repairs: "AMS-DRIFT", written: hostsFile},
		"cloud-init wrote /etc/hosts again": {tree: append(append(named(""), watched), named("")...), service: running(), mode: ConvergeWatch, repairs: "AMS-DRIFT", written: hostsFile},
		"our line has another address":      {tree: append(append(named(""), watched), named("10.0.1.70\tedge-1\t# added by amsagent\n")...), service: running(), mode: ConvergeWatch, repairs: "AMS-DRIFT", written: hostsFile},

		// A file that the server left half written. It may have been a person's edit, without a newline at its end.
		"half written, while it runs":      {tree: []step{with(liveFile, half)}, service: running(), mode: ConvergeWatch, differs: "LiveApp: file is half written or empty, must be as joined", restart: true, warns: "AMS-TORN"},
		"half written, and about to start": {tree: []step{with(liveFile, half)}, service: running(), mode: ConvergeBeforeStart, repairs: "AMS-DRIFT", written: "LiveApp LiveApp~", warns: "AMS-TORN", has: map[string]string{conf.SavedName(liveFile): half}},

		// A node's file beside it: no operator made the server standalone.
		"one application is standalone": {tree: []step{drift}, service: running(), mode: ConvergeBeforeStart, repairs: "AMS-DRIFT", written: "LiveApp"},
	}
	// A person made it standalone with the vendor's script: that stays.
	for _, mode := range []ConvergeMode{ConvergeWatch, ConvergeBeforeStart, byCommand} {
		rows[fmt.Sprintf("standalone by hand, %q", mode)] = row{tree: []step{shipped}, service: running(), mode: mode, standalone: true}
	}
	// An application whose file its owner made unreadable is left out of a convergence, which looks after all other files.
	tooMuch := func(t testing.TB, m *Machine) {
		text := strings.Repeat("#"+strings.Repeat("x", 1022)+"\n", conf.MaxSettings>>10)
		for n := range 65 {
			put(t, m, settingsOf(fmt.Sprint("App", n)), text)
		}
	}
	warns := map[string]string{"a circle": IDFileLink, "more than there is room for": IDFileSize + " " + IDFileSize}
	for name, tree := range map[string][]step{
		"a circle":                              {linked(liveFile, path.Base(liveFile))},
		"a file for the folder":                 {without(path.Dir(liveFile)), with(path.Dir(liveFile), "")},
		"more than there is room for":           {tooMuch},
		"malformed":                             {with(liveFile, "x=\\uZZZZ\n")},
		"empty, and made after the join":        {with(settingsOf("Shop"), "")},
		"half written, and made after the join": {with(settingsOf("Shop"), half+"\ndb.ty")},
	} {
		if os.Geteuid() != 0 {
			continue // only root can give files away
		}
		rows["an application is "+name] = row{
			tree: append(tree, edited(serverFile, "clusterdb.host=", "clusterdb.host=x"), stale, foreign), mode: ConvergeBeforeStart,
			many: name == "more than there is room for", repairs: "AMS-DRIFT", written: MongoPath + " conf/red5.properties", warns: cmp.Or(warns[name], IDFile) + " AGENT-EDITED",
		}
	}
	for name, tt := range rows {
		t.Run(name, func(t *testing.T) {
			m := newTree(t, joined)
			if tt.service != nil {
				m.Service = tt.service
			}
			do(t, m, tt.tree...)
			if tt.inst.ID == "" {
				tt.inst = joinedAs()
			}
			req := convergeRequest(t, tt.inst, tt.err)
			req.Mode = tt.mode
			if tt.mode == ConvergeBeforeStart {
				req.Identify = func(context.Context) (metadata.Instance, error) {
					t.Error("the server's start waits for the metadata service")
					return metadata.Instance{}, nil
				}
			}
			before := contents(t, m)
			c := converge(t, m, req)
			after := contents(t, m)
			var written, differs []string
			for _, name := range slices.Sorted(maps.Keys(merged(before, after))) {
				if before[name] != after[name] && path.Dir(name) != StateDir {
					written = append(written, short.Replace(name))
				}
			}
			for _, d := range c.Differences {
				differs = append(differs, short.Replace(d.String()))
			}
			must.Equal(t, "repairs", ids(c.Repairs), tt.repairs)
			must.Equal(t, "differences", strings.Join(differs, " "), tt.differs)
			must.Equal(t, "the record's drift", c.Node.Drift, strings.Replace(tt.differs, "must be", "joined with", 1))
			warns := slices.DeleteFunc(c.Warnings, func(f Finding) bool { return f.ID == IDHostname }) // most of these roots have no name
			must.Equal(t, "warnings", ids(warns), tt.warns)
			must.Equal(t, "half written files", len(c.Torn) > 0, tt.warns == IDTorn)
			must.Equal(t, "it must restart", c.RestartNeeded, tt.restart)
			must.Equal(t, "standalone by hand", c.Standalone, tt.standalone)
			s := stateOf(t, m)
			must.Equal(t, "the state", s.InstanceID+" "+s.Address+" "+string(s.Phase), tt.inst.ID+" "+tt.inst.Address.String()+" joined")
			must.Equal(t, "the state's release", s.Release, "3.0.3")
			must.Equal(t, "a restart is pending", s.RestartPending, tt.restart && tt.differs == "")
			must.Equal(t, "the node", c.Node.ID+" "+c.Node.IP, s.InstanceID+" "+s.Address)
			if tt.mode != ConvergeBeforeStart {
				must.Equal(t, "the node's zone", c.Node.Zone, joinedAs().Zone)
			}
			must.Equal(t, "the answer is incomplete", c.Incomplete, false)
			must.Contain(t, "the drop-in", content(t, m, dropIn), "AMS_HOST_ADDRESS="+s.Address)
			for name, text := range tt.has {
				must.Contain(t, name, content(t, m, name), text)
			}
			if tt.many {
				must.Contain(t, "written", strings.Join(written, " "), tt.written)
				return
			}
			must.Equal(t, "written", strings.Join(written, " "), tt.written)
			again := converge(t, m, req)
			must.Equal(t, "repairs of the second", ids(again.Repairs), "")
			must.Equal(t, "the second must restart", again.RestartNeeded, tt.restart)
			if tt.service == nil && tt.mode == byCommand { // a leave still knows the files from before the join
				leaveOffline(t, m)
				must.NoDiff(t, "the files after a leave", treeFiles(t, m), treeFiles(t, newTree(t)))
			}
		})
	}
}

// A join that began before the daemon's convergence is not repaired. The server's start does not wait for a join or a leave, which
// starts it with the lock held.
func TestConvergeOfTheUnfinished(t *testing.T) {
	t.Parallel()
	copied := joinedAs()
	copied.ID = "i-2"
	for _, phase := range []Phase{PhaseJoining, PhaseLeaving} {
		for _, mode := range []ConvergeMode{ConvergeWatch, ConvergeBeforeStart, byCommand} {
			m := newTree(t, joined, edited(liveFile, "db.type=mongodb", "db.type=mapdb"))
			change(t, m, func(s *State) { s.Phase = phase })
			before := snapshot(t, m)
			req := convergeRequest(t, copied, nil)
			req.Mode = mode
			if mode == ConvergeBeforeStart {
				lock, _ := locked(t, m)
				defer func() { _ = lock.Unlock() }()
			}
			c := converge(t, m, req)
			must.Equal(t, "the phase", c.Phase, phase)
			must.Equal(t, "repairs", ids(c.Repairs), "")
			must.NoDiff(t, "the files", snapshot(t, m), before)
		}
	}
}

// Damage to files that only a leave needs, or by the server's user, does not remove a serving node from the cluster at the next
// start of the daemon. Before a start the files are recovered in every phase.
func TestConvergeOfWhatCannotBeRead(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		tree []step
		mode ConvergeMode
		node bool // it is known
	}{
		"the record":            {[]step{with(undoFile, "{")}, ConvergeWatch, true},
		"the journal":           {[]step{with(journalFile, "{")}, ConvergeWatch, true},
		"a release to come":     {[]step{with(undoFile, `{"version":99}`)}, ConvergeWatch, true},
		"the settings":          {[]step{without(serverFile)}, ConvergeWatch, true},
		"the container":         {[]step{without(beansFile)}, ConvergeWatch, true},
		"the journal of a join": {[]step{interrupted(PhaseJoining), with(journalFile, "{")}, ConvergeBeforeStart, false},
		"that of a leave":       {[]step{interrupted(PhaseLeaving), with(journalFile, "{")}, ConvergeBeforeStart, false},
	} {
		m := newTree(t, append([]step{joined, serving(running())}, tt.tree...)...)
		req := watchRequest(t)
		req.Mode = tt.mode
		c, err := m.Converge(t.Context(), req)
		if err == nil || (c != nil) != tt.node {
			t.Errorf("%s: %+v, %v", name, c, err)
		} else if tt.node {
			must.Equal(t, name, string(c.Phase)+" "+c.Node.ID+" "+c.Node.IP+" "+c.Node.AMS, "joined i-1 10.0.1.7 3.0.3")
		}
	}
}

// A command that fails after a recovery reports the recovery.
func TestConvergeFailsAfterRecovery(t *testing.T) {
	t.Parallel()
	m := newTree(t, joined, edited(liveFile, "db.type=mongodb", "db.type=mapdb"))
	put(t, m, journalFile, content(t, m, undoFile)) // a record is the journal of the commit that made it
	asked := 0
	m.Begin = func(context.Context) error {
		if asked++; asked == 2 { // after the recovery's
			return context.DeadlineExceeded
		}
		return nil
	}
	req := watchRequest(t)
	req.Mode = byCommand
	c, err := m.Converge(t.Context(), req)
	if state := asFailed(t, err).State; !strings.HasPrefix(state, "an interrupted join was finished first") {
		t.Errorf("the state: %s", state)
	}
	must.Equal(t, "repairs", ids(c.Repairs), "AGENT-RECOVERED")
}

// An operator may edit the agent's MongoDB file after the daemon has read it: the edit stays. A connection string from another
// source overwrites the file.
func TestConvergeAfterMongoWasNamedAnew(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		is     string // "none": no file
		stored bool
		stays  bool
	}{
		"another one":                  {"10.0.2.5\n", true, true},
		"half a line":                  {"mongodb://[half", true, true},
		"not written yet":              {"", true, true},
		"missing":                      {"none", true, false},
		"as it was read":               {testMongo + "\r\n", true, false},
		"another one, named elsewhere": {"10.0.2.5\n", false, false},
		"half a line, named elsewhere": {"mongodb://[half", false, false},
	} {
		m := newTree(t, joined, without(MongoPath))
		if tt.is != "none" {
			put(t, m, MongoPath, tt.is)
		}
		req := watchRequest(t)
		req.MongoStored = tt.stored
		converge(t, m, req)
		want := testMongo + "\n"
		if tt.stays {
			want = tt.is
		}
		must.Equal(t, name, content(t, m, MongoPath), want)
		if info, err := os.Stat(at(m, MongoPath)); err != nil || !tt.stays && info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

// Settings that depend on the cloud stay unchanged while its metadata service does not answer, even if the state does not name
// the cloud.
func TestValveWithoutCloud(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		valve  Valve  // of the first convergence
		joined string // the cloud in the state
		after  bool   // the valve is in the file after a convergence without an answer
	}{
		"removed":              {ValveRemove, "", false},
		"there":                {ValveAuto, "", true},
		"removed, Azure":       {ValveRemove, metadata.Azure, false},
		"of an upgrade, Azure": {ValveAuto, metadata.Azure, false}, // behind it Azure's gateway gets 403
	} {
		m := newTree(t, joined)
		req := convergeRequest(t, joinedAs(), nil)
		req.Valve = tt.valve
		converge(t, m, req)
		change(t, m, func(s *State) { s.Provider = tt.joined })
		before := content(t, m, beansFile)
		must.Equal(t, name+": the valve is there", strings.Contains(before, "RemoteIpValve"), tt.valve == ValveAuto)
		req = convergeRequest(t, metadata.Instance{}, errors.New("the metadata service does not answer"))
		req.Address = "10.0.1.7"
		converge(t, m, req)
		must.Equal(t, name+": the valve is still there", strings.Contains(content(t, m, beansFile), "RemoteIpValve"), tt.after)
		if tt.valve == ValveAuto && !tt.after {
			continue
		}
		must.Equal(t, name, content(t, m, beansFile), before)
		_, err := m.Join(t.Context(), JoinRequest{Mongo: req.Mongo, Address: "10.0.1.7", Offline: true, Valve: ValveAuto})
		must.OK(t, err)
		must.Equal(t, name+", joined again", content(t, m, beansFile), before)
		m.Connect = noMongo
		s, err := m.Status(t.Context(), StatusRequest{Mongo: req.Mongo, Valve: ValveAuto})
		must.OK(t, err)
		must.Equal(t, name+": files that differ", len(s.Files.Drift), 0)
	}
}

// An operator's own stop timeout holds as long as it is there: the drop-in has none beside it, and the agent's own after it. The
// drop-in stays as it is while the service manager does not answer.
func TestStopTimeoutStays(t *testing.T) {
	t.Parallel()
	m := newTree(t, joined)
	joinedWith, err := ams.ReadDropIn(m.Root)
	must.OK(t, err)
	own := joinedWith.StopTimeout
	for _, tt := range []struct {
		name      string
		effective time.Duration
		want      time.Duration
	}{
		{"the vendor's unit", 10 * time.Second, own},
		{"the agent's alone", own, own},
		{"an operator's, longer", 10 * time.Minute, 0},
		{"the same, the agent's is gone", 10 * time.Minute, 0},
		{"removed again", 10 * time.Second, own},
		{"an operator's, shorter and later", 5 * time.Second, own},
		{"endless", 0, 0},
		{"a copy of an operator's value in the drop-in", 10 * time.Minute, own},
	} {
		if strings.HasPrefix(tt.name, "a copy") { // it does not outlive the operator's
			put(t, m, ams.DropInPath, string(ams.DropIn(joinedAs().Address, tt.effective, "")))
		}
		m.Service = &fakeService{state: ams.State{Activity: ams.ActivityActive, StopTimeout: tt.effective}}
		converge(t, m, watchRequest(t))
		is, err := ams.ReadDropIn(m.Root)
		if err != nil || !is.Ours || is.HostAddress == "" || is.StopTimeout != tt.want {
			t.Fatalf("%s: %+v, %v, want %s", tt.name, is, err, tt.want)
		}
		m.Service = &fakeService{fails: map[string]error{"state": errors.New("the bus is away")}}
		for _, mode := range []ConvergeMode{ConvergeWatch, byCommand, ConvergeBeforeStart} {
			req := watchRequest(t)
			req.Mode = mode
			c := converge(t, m, req)
			must.Equal(t, tt.name+": repairs without an answer", ids(c.Repairs), "")
			now, err := ams.ReadDropIn(m.Root)
			must.OK(t, err)
			must.Equal(t, tt.name+": the drop-in without an answer", now, is)
		}
	}
	// One that is lost is not written with a time that may be too short.
	must.OK(t, os.Remove(at(m, ams.DropInPath)))
	req := watchRequest(t)
	req.Mode = ConvergeBeforeStart
	c := converge(t, m, req)
	must.Equal(t, "a lost drop-in, without an answer: repairs", ids(c.Repairs), "")
	must.Equal(t, "a lost drop-in, without an answer", content(t, m, ams.DropInPath), "none")
}

// A convergence that is killed before it has repaired an upgrade's files leaves a state that does not name the new release yet:
// otherwise the files would be a person's.
func TestReleaseIsNotedLast(t *testing.T) {
	t.Parallel()
	m, service, during := newTree(t, joined, ofRelease("2.17.1"), without(ams.DropInPath)), serverIn(ams.ActivityInactive, ""), ""
	m.Service = service
	service.on = func(call string) error {
		if call == "reload" {
			during = stateOf(t, m).Release
		}
		return nil
	}
	req := watchRequest(t)
	req.Mode = ConvergeBeforeStart
	must.Equal(t, "repairs", ids(converge(t, m, req).Repairs), IDDrift)
	must.Equal(t, "the release while the files are written", during, "2.17.1")
	must.Equal(t, "the release after that", stateOf(t, m).Release, "3.0.3")
}

// An operator's drop-in, which the join replaced, is edited since. The daemon writes its own again, and keeps the edit.
func TestConvergeKeepsAnEditedDropIn(t *testing.T) {
	t.Parallel()
	const edit = "[Service]\nEdited=1\n"
	m := newTree(t, with(ams.DropInPath, "[Service]\nOriginal=1\n"), joined, with(ams.DropInPath, edit), serving(running()))
	converge(t, m, watchRequest(t))
	must.Equal(t, "the copy", content(t, m, conf.SavedName(ams.DropInPath)), edit)
	must.Contain(t, "the drop-in", content(t, m, ams.DropInPath), "10.0.1.7")
}

// The panel makes an application whose file all users can read. Its settings are as joined and the next start corrects the mode:
// status reports no drift.
func TestPermissionsAreNoDrift(t *testing.T) {
	t.Parallel()
	m := newTree(t, joined)
	m.Connect = noMongo
	drift := func() int {
		s, err := m.Status(t.Context(), StatusRequest{Mongo: mustTarget(t, testMongo), Valve: ValveKeep})
		must.OK(t, err)
		return len(s.Files.Drift)
	}
	must.OK(t, os.Chmod(at(m, liveFile), 0o644))
	must.Equal(t, "drift of permissions", drift(), 0)
	edit(t, m, liveFile, "db.type=mongodb", "db.type=mapdb")
	must.Equal(t, "drift of a value", drift(), 1)
}

// The file with MongoDB's address loses its world-readable mode once it holds a password.
func TestMongoFileBecomesPrivate(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("the file has to be root's")
	}
	m := newTree(t, with(MongoPath, "10.0.2.4\n"), joinedTo(testMongo, "10.0.1.7"))
	info, err := os.Stat(at(m, MongoPath))
	must.OK(t, err)
	must.Equal(t, "the mode", info.Mode().Perm(), 0o640)
}

// In cluster mode the server rewrites the settings of every application at each start, in any order and with Java's escapes.
// That causes no repair, write or restart, and a leave still reverts the join.
func TestServerRewroteItsFiles(t *testing.T) {
	t.Parallel()
	const mongo, realDir = "mongodb://plain:secret1@10.77.0.1:27311/?authSource=admin", "../../shared/corpus/real" // files of real servers
	sources := map[string]string{"own": "testdata/rewritten.properties"}
	found, err := filepath.Glob(filepath.Join(realDir, "*/webapps/*/WEB-INF/red5-web.properties"))
	must.OK(t, err)
	for _, name := range found {
		sources[strings.TrimPrefix(name, realDir+"/")] = name
	}
	for name, source := range sources {
		t.Run(name, func(t *testing.T) {
			saved, err := os.ReadFile(source)
			must.OK(t, err)
			m := newTree(t, joined, joinedTo(mongo, "10.0.1.7"), with(liveFile, string(saved)), serving(running()))
			before := snapshot(t, m)
			req := convergeRequest(t, joinedAs(), nil)
			req.Mongo, req.Valve = mustTarget(t, mongo), ValveKeep
			c := converge(t, m, req)
			must.Equal(t, "repairs", ids(c.Repairs), "")
			must.Equal(t, "it must restart", c.RestartNeeded, false)
			must.Equal(t, "a second join", joinOffline(t, m, mongo, "10.0.1.7").Outcome, OutcomeUnchanged)
			must.NoDiff(t, "the files", snapshot(t, m), before)
			leaveOffline(t, m)
			was, err := conf.ParseProperties(saved)
			must.OK(t, err)
			for _, key := range was.Keys() {
				want, _ := was.Get(key)
				want = cmp.Or(map[string]string{"db.type": "mapdb", "db.host": "localhost"}[key], want)
				must.Equal(t, key+" after the leave", property(t, m, liveFile, key), want)
			}
		})
	}
}
