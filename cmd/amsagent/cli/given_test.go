// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
)

// A value that was given to join wins over config.yaml, also over a later line. config, status and a join say so in one note.
func TestGivenWinsOverTheFile(t *testing.T) {
	root := tree(t, map[string]string{"var/lib/amsagent/state.json": `{"version":1,"given":{"settings":{"role":"edge","hooks":"drain","group":"a","service":"none"}}}`})
	vars := map[string]string{"AMSAGENT_ROOT": root, "AMSAGENT_PROVIDER": "generic"}
	for _, tt := range []struct {
		config string
		keys   []string // in the note; without any, there is no note
	}{
		{"", nil},
		{"role: Edge\nhooks: [drain]\ntimeout: 9m\n", nil},
		{"role: origin\n", []string{"role"}},
		{"hooks: other\nrole: origin\ngroup: a\ndrain_deadline: 20m\n", []string{"role", "hooks"}},
		{"service_command: /opt/ctl.sh\n", []string{"service"}},
	} {
		plant(t, root, map[string]string{"etc/amsagent/config.yaml": tt.config})
		way := "; amsagent join"
		for _, key := range tt.keys {
			way += " --" + key + ` ""`
		}
		for _, command := range []string{"config", "status"} {
			role, _, _, notes := shownBy(t, command, vars)
			if role.Value != "edge" || role.Origin.Layer != "given" {
				t.Errorf("%s with %q: %+v", command, tt.config, role)
			}
			must.Equal(t, fmt.Sprintf("%s with %q: number of %q in %q", command, tt.config, way, notes), strings.Count(strings.Join(notes, "\n"), way), min(len(tt.keys), 1))
		}
	}
}

// A damaged file stops no command, and each reports it.
func TestGivenDamaged(t *testing.T) {
	root := tree(t, map[string]string{bootstrap.StateDir + "/state.json": `{"version":1,"given":`})
	code, _, stderr := run(t, map[string]string{"AMSAGENT_ROOT": root}, "config", "--offline")
	if code != codeOK || !strings.Contains(stderr, "what was given to join cannot be used: ") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// adapterIn is a daemon's adapter with the settings of an environment.
func adapterIn(t *testing.T, e *testEnv) *daemonAdapter {
	t.Helper()
	g := globalsOf(e.env())
	cmd := newRunCommand(g)
	must.OK(t, g.load(cmd))
	return &daemonAdapter{g: g, cmd: cmd, made: madeOf(g.settings)}
}

// A daemon keeps its settings if a new service command cannot be called.
func TestDaemonKeepsTheService(t *testing.T) {
	e := &testEnv{vars: map[string]string{"AMSAGENT_ROLE": "edge"}}
	a := adapterIn(t, e)
	e.vars["AMSAGENT_ROLE"], e.vars["AMSAGENT_SERVICE_COMMAND"] = "origin", "/no/such/command"
	if err := a.reread(); err == nil || a.outdated() || a.settings().Role != "edge" {
		t.Errorf("a command that is not there: %v, outdated: %v, %+v", err, a.outdated(), a.settings())
	}
	e.vars["AMSAGENT_SERVICE_COMMAND"] = "/bin/true"
	if err := a.reread(); err != nil || !a.outdated() || a.settings().Role != "origin" {
		t.Errorf("a command that is there: %v, outdated: %v, %+v", err, a.outdated(), a.settings())
	}
}

// A reload applies every setting, of config.yaml or given to join: the daemon starts again for those that it cannot apply.
func TestDaemonFollowsTheSettings(t *testing.T) {
	for line, outdated := range map[string]bool{
		"": false, "role: origin": false, "unhealthy_after: 9m": false, "hooks: [ours]": false,
		"serving: LiveApp": true, "beat_interval: 7s": true, "log_level: debug": true, "drain_deadline: 20m": false,
		"metrics_address: 127.0.0.1:9999": true, "provider: aws": true,
		`{"version":1,"given":{"settings":{"role":"edge","hooks":"drain"}}}`: false, `{"version":1,"given":{"settings":{"ams_dir":"/opt/ams"}}}`: true,
	} {
		root := t.TempDir()
		a := adapterIn(t, &testEnv{vars: map[string]string{"AMSAGENT_ROOT": root}})
		path := "etc/amsagent/config.yaml"
		if strings.HasPrefix(line, "{") {
			path = bootstrap.StateDir + "/state.json"
		}
		plant(t, root, map[string]string{path: line + "\n"})
		must.OK(t, a.reread())
		must.Equal(t, line+": outdated", a.outdated(), outdated)
		if strings.Contains(line, "edge") && (a.settings().Role != "edge" || !slices.Equal(a.hookNames(), []string{"drain"})) {
			t.Errorf("%s: %+v", line, a.settings())
		}
	}
}

// The daemon of a node keeps a good config.yaml, and uses that copy while the file is wrong.
func TestDaemonKeepsTheLastGoodConfig(t *testing.T) {
	root := tree(t, map[string]string{"etc/amsagent/config.yaml": "role: edge\n"})
	config, good := filepath.Join(root, "etc/amsagent/config.yaml"), filepath.Join(root, bootstrap.GoodConfigPath)
	start := func() *daemonAdapter { return adapterIn(t, &testEnv{vars: map[string]string{"AMSAGENT_ROOT": root}}) }
	kept := func() string {
		b, err := os.ReadFile(good)
		if errors.Is(err, fs.ErrNotExist) {
			return "none"
		}
		must.OK(t, err)
		return string(b)
	}
	a := start()
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
		for name, a := range map[string]*daemonAdapter{"reload": a, "restart": start()} {
			must.OK(t, a.reread())
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

// The daemon refuses what the settings say that it refuses.
func TestRemoteDrainReachesTheDaemon(t *testing.T) {
	for value, refused := range map[string]bool{"": false, "true": false, "false": true} {
		a := adapterIn(t, &testEnv{vars: map[string]string{"AMSAGENT_REMOTE_DRAIN": value}})
		must.Equal(t, "remote_drain: "+value, a.settings().NoRemoteDrain, refused)
	}
}

// The settings and MongoDB's address do not wait for a metadata service that hangs.
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
	a := adapterIn(t, e)
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() { _, _ = a.identify(ctx) })
	<-asked
	_ = a.settings()
	_, err := a.mongo(ctx)
	must.Equal(t, "MongoDB's settings", err, nil)
	_, err = a.openCloud()
	must.Equal(t, "the cloud", err, nil)
	cancel()
	close(release)
	work.Wait()
}

// shownSetting is a setting in the JSON of a command.
type shownSetting struct {
	Key, Value string
	Origin     struct {
		Layer, Name string
		Line        int
	}
}

// shownBy is the JSON of `status` or `config`: role, group and address, and the notes.
func shownBy(t *testing.T, command string, vars map[string]string) (role, group, address shownSetting, notes []string) {
	t.Helper()
	_, stdout, stderr := run(t, vars, command, "-o", "json")
	var got struct {
		Role, Group, Address shownSetting
		Settings             []shownSetting
		Notes                []string
	}
	if err := json.Unmarshal([]byte(strings.ReplaceAll(stdout, vars["AMSAGENT_ROOT"], "")), &got); err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	if command == "config" {
		return got.Settings[1], got.Settings[2], got.Settings[3], got.Notes
	}
	return got.Role, got.Group, got.Address, got.Notes
}

// Role, group and address are those that the node has, with their origin, in the JSON of status as in that of config. If the
// settings differ by now, one note names that.
func TestStatusTellsTheOrigins(t *testing.T) {
	const joined = `{"version":1,"phase":"joined","instance_id":"i-1","role":"origin","group":"studio","address":"10.0.0.5"}`
	const config, asJoined = "/etc/amsagent/config.yaml:1", "stored as joined:0"
	type m = map[string]string
	const file, state = "etc/amsagent/config.yaml", "var/lib/amsagent/state.json"
	const none = " default :0"
	for _, tt := range []struct {
		name        string
		files, vars m
		want        [3]string // value and origin of role, group and address
		note        string
	}{
		{name: "none", want: [3]string{none, none, none}},
		{name: "the file", files: m{file: "role: edge\n"}, want: [3]string{"edge file " + config, none, none}},
		{name: "a variable over the file", files: m{file: "role: edge\n"}, vars: m{"AMSAGENT_ROLE": "origin"}, want: [3]string{"origin env AMSAGENT_ROLE:0", none, none}},
		{
			name: "as joined", files: m{state: joined, file: "role: edge\n"}, want: [3]string{"origin " + asJoined, "studio " + asJoined, "10.0.0.5 " + asJoined},
			note: "role edge (" + config + ")",
		},
		{
			name: "another address and group", files: m{state: joined, file: "address: 10.9.9.9\n"}, vars: m{"AMSAGENT_GROUP": "hall"},
			want: [3]string{"origin " + asJoined, "studio " + asJoined, "10.0.0.5 " + asJoined},
			note: "address 10.9.9.9 (" + config + "), group hall (AMSAGENT_GROUP)",
		},
	} {
		vars := map[string]string{"AMSAGENT_ROOT": tree(t, tt.files), "AMSAGENT_PROVIDER": "generic"}
		maps.Copy(vars, tt.vars)
		for _, command := range []string{"status", "config"} {
			role, group, address, notes := shownBy(t, command, vars)
			for i, s := range []shownSetting{role, group, address} {
				must.Equal(t, fmt.Sprintf("%s: %s", tt.name, command), fmt.Sprintf("%s %s %s:%d", s.Value, s.Origin.Layer, s.Origin.Name, s.Origin.Line), tt.want[i])
			}
			noted := slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, "not applied yet: "+tt.note+";") })
			must.Equal(t, fmt.Sprintf("%s: %s: noted in %q", tt.name, command, notes), noted, tt.note != "")
		}
	}
}

// A partial answer may lack the tag that names the group: the one that the node joined with holds.
func TestGroupOfAPartialAnswer(t *testing.T) {
	for name, tt := range map[string]struct {
		state string
		known bool
		want  string
	}{
		"joined, in part":     {`{"version":1,"phase":"joined","group":"edges"}`, false, ""},
		"joined":              {`{"version":1,"phase":"joined","group":"edges"}`, true, "edge-asg"},
		"joined, in no group": {`{"version":1,"phase":"joined"}`, false, "edge-asg"},
		"never joined":        {"", false, "edge-asg"},
	} {
		t.Run(name, func(t *testing.T) {
			g := plainGlobals(&testEnv{})
			if tt.state != "" {
				plant(t, g.settings.Root, map[string]string{bootstrap.StateDir + "/state.json!": tt.state})
			}
			must.OK(t, g.use(machine{Instance: metadata.Instance{TagsKnown: tt.known, Group: "edge-asg"}}))
			must.Equal(t, "group", g.settings.Group, tt.want)
		})
	}
}

// The manual lists each variable of the environment that the commands and their settings read.
func TestVariables(t *testing.T) {
	page, err := os.ReadFile("../../../packaging/man/amsagent-config.5")
	must.OK(t, err)
	files, err := filepath.Glob("../[cs]*/*.go") // cli and settings
	must.OK(t, err)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		must.OK(t, err)
		for _, m := range regexp.MustCompile(`"([A-Z]+(?:_[A-Z0-9]+)+|USER|LOGNAME|TERM)"`).FindAllStringSubmatch(string(text), -1) {
			field := m[1] == "SYSLOG_IDENTIFIER" || m[1] == "OBJECT_SYSTEMD_UNIT" // of the journal
			if !field && !strings.Contains(string(page), m[1]) {
				t.Errorf("%s: the manual lacks %s", name, m[1])
			}
		}
	}
}
