// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/internal/must"
)

// kept is what an earlier join was given: key, value, and what the settings file said then.
func kept(rows ...[3]string) *bootstrap.Given {
	g := &bootstrap.Given{Settings: map[string]bootstrap.GivenSetting{}}
	for _, r := range rows {
		g.Settings[r[0]] = bootstrap.GivenSetting{Value: r[1], Replaced: r[2]}
	}
	return g
}

// --force-address holds for the address that it was given with, wherever that stands.
func TestForcedAddress(t *testing.T) {
	for _, tt := range []struct {
		name          string
		src           sources
		force, forced bool
		want          string
	}{
		{name: "not forced", src: sources{flags: flags(keyAddress, "10.0.0.2")}},
		{name: "forced now", src: sources{flags: flags(keyAddress, "10.0.0.2")}, force: true, want: "10.0.0.2"},
		{name: "kept", src: sources{given: &bootstrap.Given{ForcedAddress: "10.0.0.2", Settings: kept([3]string{keyAddress, "10.0.0.2"}).Settings}}, forced: true, want: "10.0.0.2"},
		{name: "in the file", src: sources{given: &bootstrap.Given{ForcedAddress: "10.0.0.2"}, file: file("address: 10.0.0.2\n")}, forced: true, want: "10.0.0.2"},
		{name: "another one", src: sources{given: &bootstrap.Given{ForcedAddress: "10.0.0.2"}, flags: flags(keyAddress, "10.0.0.3")}},
		{name: "dropped", src: sources{given: &bootstrap.Given{ForcedAddress: "10.0.0.2"}, dropped: []string{keyAddress}}},
	} {
		s, err := resolveSettings(tt.src)
		must.OK(t, err)
		g := &globals{settings: s}
		if forced, keep := g.addressForced(), g.toKeep(tt.force).ForcedAddress; forced != tt.forced || keep != tt.want {
			t.Errorf("%s: forced: %v, kept %q, want %q", tt.name, forced, keep, tt.want)
		}
	}
}

// A join keeps no value that config.yaml contradicts: it fails with the line.
func TestJoinContradictsTheFile(t *testing.T) {
	root := tree(t, map[string]string{"etc/amsagent/config.yaml": "role: edge\nhooks: [amsagent-*]\ndrain_deadline: 1h\n"})
	for _, tt := range []struct {
		vars map[string]string
		args []string
		want string // "" is that the join gets past this
	}{
		{nil, []string{"--hooks", "drain"}, "config.yaml:2: hooks is amsagent-*, and --hooks is drain"},
		{map[string]string{"AMSAGENT_HOOKS": "drain"}, nil, "config.yaml:2: hooks is amsagent-*, and AMSAGENT_HOOKS is drain"},
		{nil, []string{"--hooks", "amsagent-*"}, ""},
		{nil, []string{"--drain-deadline", "20m"}, "config.yaml:3: drain_deadline is 1h, and --drain-deadline is 20m"},
		{nil, []string{"--drain-deadline", "60m"}, ""},
		{nil, []string{"--role", "origin"}, ""},
	} {
		vars := map[string]string{"AMSAGENT_ROOT": root}
		maps.Copy(vars, tt.vars)
		code, _, stderr := run(t, vars, append([]string{"join", "--mongo", "127.0.0.1", "--offline", "--provider", "generic"}, tt.args...)...)
		if (code == exitUsage) != (tt.want != "") || !strings.Contains(stderr, tt.want) {
			t.Errorf("%v %v: exit %d, %q is not in\n%s", tt.vars, tt.args, code, tt.want, stderr)
		}
	}
}

// A file that is damaged stops no command, and each says so.
func TestGivenDamaged(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, bootstrap.GivenPath)
	must.OK(t, os.MkdirAll(filepath.Dir(path), 0o700))
	must.OK(t, os.WriteFile(path, []byte("{\"version\":1,\"settings\":"), 0o600))
	e := &testEnv{}
	if code := Main([]string{"config", "--offline", "--root", root}, e.env()); code != exitOK {
		t.Errorf("exit %d: %s", code, e.stderr.String())
	}
	if text := e.stderr.String(); !strings.Contains(text, "what was given to join cannot be used: ") {
		t.Errorf("stderr: %s", text)
	}
}

// A daemon is made for one server: where a join was given another one, it begins anew, without telling systemd that it
// stops.
func TestDaemonFollowsTheService(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, bootstrap.GivenPath)
	must.OK(t, os.MkdirAll(filepath.Dir(path), 0o700))
	e := &testEnv{}
	g := globalsOf(e.env())
	g.given[keyRoot] = given{text: root, name: "--root"}
	cmd := newRunCommand(g)
	must.OK(t, g.load(cmd))
	a := &daemonAdapter{g: g, cmd: cmd, made: madeOf(g.settings)}
	write := func(text string) {
		t.Helper()
		must.OK(t, os.WriteFile(path, []byte(text), 0o600))
		must.OK(t, a.reread())
	}
	write(`{"version":1,"settings":{"role":{"value":"edge"}}}`)
	if a.outdated() || a.settings().Role != "edge" {
		t.Errorf("role %q, outdated: %v", a.settings().Role, a.outdated())
	}
	write(`{"version":1,"settings":{"hooks":{"value":"drain"}}}`)
	if names := a.hookNames(); a.outdated() || !slices.Equal(names, []string{"drain"}) {
		t.Errorf("hooks %q, outdated: %v", names, a.outdated())
	}
	write(`{"version":1,"settings":{"ams_dir":{"value":"/opt/ams"}}}`)
	if !a.outdated() {
		t.Error("the daemon goes on with the former server")
	}
}

// A service command that cannot be called is no reason to end: the daemon goes on as it is.
func TestDaemonKeepsTheService(t *testing.T) {
	e := &testEnv{vars: map[string]string{"AMSAGENT_ROLE": "edge"}}
	g := globalsOf(e.env())
	g.given[keyRoot] = given{text: t.TempDir(), name: "--root"}
	cmd := newRunCommand(g)
	must.OK(t, g.load(cmd))
	a := &daemonAdapter{g: g, cmd: cmd, made: madeOf(g.settings)}
	e.vars["AMSAGENT_ROLE"], e.vars["AMSAGENT_SERVICE_COMMAND"] = "origin", "/no/such/command"
	if err := a.reread(); err == nil || a.outdated() || a.settings().Role != "edge" {
		t.Errorf("a command that is not there: %v, outdated: %v, %+v", err, a.outdated(), a.settings())
	}
	e.vars["AMSAGENT_SERVICE_COMMAND"] = "/bin/true"
	if err := a.reread(); err != nil || !a.outdated() || a.settings().Role != "origin" {
		t.Errorf("a command that is there: %v, outdated: %v, %+v", err, a.outdated(), a.settings())
	}
}

// A reload takes up every setting: where the daemon is made of it, it begins anew.
func TestDaemonFollowsTheSettings(t *testing.T) {
	for line, anew := range map[string]bool{
		"": false, "role: origin": false, "unhealthy_after: 9m": false, "hooks: [ours]": false,
		"serving: LiveApp": true, "beat_interval: 7s": true, "log_level: debug": true, "drain_deadline: 20m": false,
		"metrics_address: 127.0.0.1:9999": true, "provider: aws": true,
	} {
		root := t.TempDir()
		config := filepath.Join(root, "config.yaml")
		write := func(text string) {
			t.Helper()
			must.OK(t, os.WriteFile(config, []byte(text+"\n"), 0o600))
		}
		write("")
		e := &testEnv{}
		g := globalsOf(e.env())
		g.given[keyRoot], g.given[keyConfig] = given{text: root, name: "--root"}, given{text: "/config.yaml", name: "--config"}
		cmd := newRunCommand(g)
		must.OK(t, g.load(cmd))
		a := &daemonAdapter{g: g, cmd: cmd, made: madeOf(g.settings)}
		write(line)
		if err := a.reread(); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if a.outdated() != anew {
			t.Errorf("%s: outdated: %v", line, !anew)
		}
	}
}

// The daemon of a node keeps config.yaml while it is good, and goes on by that while it is not.
func TestDaemonKeepsTheLastGoodConfig(t *testing.T) {
	root := tree(t, map[string]string{"etc/amsagent/config.yaml": "role: edge\n"})
	config, good := filepath.Join(root, "etc/amsagent/config.yaml"), filepath.Join(root, bootstrap.GoodConfigPath)
	start := func() (*daemonAdapter, error) {
		g := globalsOf((&testEnv{}).env())
		g.given[keyRoot] = given{text: root, name: "--root"}
		cmd := newRunCommand(g)
		err := g.load(cmd)
		return &daemonAdapter{g: g, cmd: cmd, made: madeOf(g.settings)}, err
	}
	kept := func() string {
		b, err := os.ReadFile(good)
		if errors.Is(err, fs.ErrNotExist) {
			return "none"
		}
		must.OK(t, err)
		return string(b)
	}
	a, err := start()
	must.OK(t, err)
	if a.settings(); kept() != "none" {
		t.Errorf("a machine that never joined keeps %q", kept())
	}
	plant(t, root, map[string]string{"var/lib/amsagent/state.json!": `{"version":1,"phase":"joined"}`})
	if a.settings(); kept() != "role: edge\n" {
		t.Errorf("a node keeps %q", kept())
	}
	for _, tt := range []struct{ config, role, kept, wrong string }{
		{"role: [\n", "edge", "role: edge\n", "not YAML"},
		{"roel: x\nrole: origin\n", "origin", "roel: x\nrole: origin\n", "roel"},
		{"role: two words\n", "origin", "roel: x\nrole: origin\n", "two words"},
		{"role: edge\n", "edge", "role: edge\n", ""},
	} {
		must.OK(t, os.WriteFile(config, []byte(tt.config), 0o644))
		again, serr := start()
		for name, a := range map[string]*daemonAdapter{"reload": a, "restart": again} {
			if err := errors.Join(a.reread(), serr); err != nil {
				t.Fatalf("%s: %s: %v", tt.config, name, err)
			}
			s := a.settings()
			if s.Role != tt.role || !strings.Contains(s.Wrong, tt.wrong) || (s.Wrong == "") != (tt.wrong == "") || kept() != tt.kept {
				t.Errorf("%s: %s: role %q, wrong %q, kept %q", tt.config, name, s.Role, s.Wrong, kept())
			}
		}
	}
	must.OK(t, os.Remove(config))
	must.OK(t, a.reread())
	if s := a.settings(); s.Role != "" || kept() != "" {
		t.Errorf("without a file: role %q, kept %q", s.Role, kept())
	}
	info, err := os.Stat(good)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// Nobody who wants the settings, or MongoDB's address, waits for a metadata service that hangs.
func TestSettingsDoNotWaitForTheCloud(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		once.Do(func() { close(asked) })
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer srv.Close()
	e := &testEnv{vars: map[string]string{"AMSAGENT_PROVIDER": "aws", "AMSAGENT_AWS_ENDPOINT": srv.URL, "AMSAGENT_MONGO": "10.0.2.4"}}
	g := globalsOf(e.env())
	g.given[keyRoot] = given{text: t.TempDir(), name: "--root"}
	cmd := newRunCommand(g)
	must.OK(t, g.load(cmd))
	a := &daemonAdapter{g: g, cmd: cmd}
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() { _, _ = a.identify(ctx) })
	<-asked
	_ = a.settings()
	if _, err := a.mongo(ctx); err != nil {
		t.Error(err)
	}
	if _, err := a.openCloud(); err != nil {
		t.Error(err)
	}
	cancel()
	close(release)
	work.Wait()
}

// Role, group and address have their origin in the JSON of status, as in its text and in that of config.
func TestStatusTellsTheOrigins(t *testing.T) {
	// An earlier version kept a role as it was given.
	const joined = `{"version":1,"phase":"joined","instance_id":"i-1","role":"Origin","group":"studio","address":"10.0.0.5"}`
	edge := settingValue{"edge", origin{Layer: layerFile, Name: "/etc/amsagent/config.yaml", Line: 1}}
	for _, tt := range []struct {
		name        string
		files, vars map[string]string
		role, group nodeSetting
		address     nodeSetting
		text        string
	}{
		{name: "none"},
		{
			"the file",
			map[string]string{"etc/amsagent/config.yaml": "role: edge\n"},
			nil,
			nodeSetting{settingValue: edge},
			nodeSetting{},
			nodeSetting{},
			"role edge, /etc/amsagent/config.yaml:1",
		},
		{
			"a variable over the file",
			map[string]string{"etc/amsagent/config.yaml": "role: edge\n"},
			map[string]string{"AMSAGENT_ROLE": "origin"},
			nodeSetting{settingValue: settingValue{"origin", origin{Layer: layerEnv, Name: "AMSAGENT_ROLE"}}},
			nodeSetting{},
			nodeSetting{},
			"role origin, AMSAGENT_ROLE",
		},
		{
			"as joined",
			map[string]string{"var/lib/amsagent/state.json": joined, "etc/amsagent/config.yaml": "role: edge\n"},
			nil,
			nodeSetting{settingValue{"origin", asJoined()}, &edge},
			nodeSetting{settingValue: settingValue{"studio", asJoined()}},
			nodeSetting{settingValue: settingValue{"10.0.0.5", asJoined()}},
			"role origin as joined; edge by /etc/amsagent/config.yaml:1, after 'systemctl reload amsagent'; group studio, as joined; address 10.0.0.5, as joined",
		},
		{
			"another address",
			map[string]string{"var/lib/amsagent/state.json": joined, "etc/amsagent/config.yaml": "address: 10.9.9.9\n"},
			nil,
			nodeSetting{settingValue: settingValue{"origin", asJoined()}},
			nodeSetting{settingValue: settingValue{"studio", asJoined()}},
			nodeSetting{settingValue{"10.0.0.5", asJoined()}, &settingValue{"10.9.9.9", origin{Layer: layerFile, Name: "/etc/amsagent/config.yaml", Line: 1}}},
			"address 10.0.0.5 as joined; 10.9.9.9 by /etc/amsagent/config.yaml:1, after 'systemctl reload amsagent', if this machine has it",
		},
	} {
		root := tree(t, tt.files)
		vars := map[string]string{"AMSAGENT_ROOT": root, "AMSAGENT_PROVIDER": "generic"}
		maps.Copy(vars, tt.vars)
		status := func(args ...string) string {
			_, stdout, _ := run(t, vars, append([]string{"status"}, args...)...)
			return strings.ReplaceAll(stdout, root, "")
		}
		var got struct{ Role, Group, Address any }
		if err := json.Unmarshal([]byte(status("-o", "json")), &got); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		for what, pair := range map[string][2]any{"role": {tt.role, got.Role}, "group": {tt.group, got.Group}, "address": {tt.address, got.Address}} {
			b, err := json.Marshal(pair[0])
			var want any
			must.OK(t, errors.Join(err, json.Unmarshal(b, &want)))
			if diff := cmp.Diff(want, pair[1]); diff != "" {
				t.Errorf("%s: %s (-want +got):\n%s", tt.name, what, diff)
			}
		}
		if text := status(); !strings.Contains(text, tt.text) {
			t.Errorf("%s: %q is not in\n%s", tt.name, tt.text, text)
		}
		if _, config, _ := run(t, vars, "config"); strings.Contains(config, "10.0.0.5  ") != (tt.address.Value != "") {
			t.Errorf("%s: %q is not in\n%s", tt.name, tt.address.Value, config)
		} else if next := "edge by /etc/amsagent/config.yaml:1, after"; strings.Contains(strings.ReplaceAll(config, root, ""), next) != (tt.role.Next != nil) {
			t.Errorf("%s: %q is not in\n%s", tt.name, next, config)
		}
	}
}
