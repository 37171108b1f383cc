// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/bootstrap/doctor"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
)

func doctorSample() doctorData {
	results := []doctor.Result{
		{Finding: bootstrap.Finding{ID: "AMS-INSTALL", Severity: bootstrap.Good, Text: "/usr/local/antmedia, cluster"}, Check: "AMS-INSTALL", Group: doctor.GroupServer, Title: "installation"},
		{Finding: bootstrap.Finding{ID: "AMS-SETTINGS", Severity: bootstrap.Warning, Text: "Redis is configured in \"Live\x1b[31mApp\"", Hint: "amsagent join replaces it"}, Check: "AMS-SETTINGS", Group: doctor.GroupServer, Title: "agreement of the settings"},
		{Finding: bootstrap.Finding{ID: "AMS-MONGO-REFUSED", Severity: bootstrap.Bad, Text: "asking MongoDB: MongoDB at 10.0.2.4:27017 refused the connection: connect: connection refused", Hint: "mongod must run there and listen on that address (net.bindIp), and the security group must admit this subnet"}, Check: "AMS-MONGO", Group: doctor.GroupMongo, Title: "answer"},
		{Finding: bootstrap.Finding{ID: "AMS-MONGO-SLOW", Severity: bootstrap.Unknown, Text: "MongoDB could not be asked"}, Check: "AMS-MONGO-SLOW", Group: doctor.GroupMongo, Title: "latency"},
		{Finding: bootstrap.Finding{ID: "AMS-CLOCK", Severity: bootstrap.Unknown, Text: "MongoDB could not be asked"}, Check: "AMS-CLOCK", Group: doctor.GroupMongo, Title: "clock"},
		{Finding: bootstrap.Finding{ID: "AGENT-HOOK", Severity: bootstrap.Warning, Text: "no hook", Hint: "make one"}, Check: "AGENT-HOOK", Group: doctor.GroupShutdown, Title: "hook of the cloud", Ignored: true},
		{Finding: bootstrap.Finding{ID: "AGENT-DEADLINES", Severity: bootstrap.Good, Text: "drain deadline 1h"}, Check: "AGENT-DEADLINES", Group: doctor.GroupShutdown, Title: "deadlines", Lines: []string{
			"drain           +0s  no new sessions", "                +1h  drain deadline: remaining sessions are cut, the server stops",
		}},
		{Finding: bootstrap.Finding{ID: "AGENT-RECORD", Severity: bootstrap.Unknown, Text: "permission denied", Hint: "run it as root, who alone may read these files and ask the daemon for more than whether it is ready"}, Check: "AGENT-RECORD", Group: doctor.GroupAgent, Title: "the agent's own files"},
		{Finding: bootstrap.Finding{ID: "AGENT-DAEMON-DOWN", Severity: bootstrap.Unknown, Text: "connection refused", Hint: "run it as root, who alone may read these files and ask the daemon for more than whether it is ready"}, Check: "AGENT-DAEMON-DOWN", Group: doctor.GroupAgent, Title: "the daemon"},
		{Finding: bootstrap.Finding{ID: "AMS-GPU", Severity: bootstrap.Unknown, Text: "not asked"}, Check: "AMS-GPU", Group: doctor.GroupMachine, Title: "GPUs"},
	}
	for i := range results {
		results[i].Page = "amsagent doctor --explain " + results[i].ID
	}
	return doctorData{Counts: doctor.Count(results), Checks: results}
}

// The text is complete without color.
func TestDoctorText(t *testing.T) {
	for name, color := range map[string]output.Palette{"plain": {}, "color": {On: true}} {
		w := &output.Text{Color: color, Now: fixedNow()}
		doctorText(w, doctorSample())
		must.Golden(t, *update, filepath.Join("doctor", name+".txt"), w.String())
	}
	for _, tt := range []struct {
		c    doctor.Counts
		want string
	}{
		{doctor.Counts{Bad: 1, Warning: 2}, "3 problems"},
		{doctor.Counts{Warning: 1, Unknown: 4}, "OK with 1 warning"},
		{doctor.Counts{Unknown: 1, Good: 3}, "OK, as far as it is known"},
		{doctor.Counts{Good: 3, Ignored: 1}, "OK"},
	} {
		must.Equal(t, fmt.Sprintf("%+v", tt.c), doctorHeadline(&output.Text{}, tt.c), tt.want)
	}
}

// A secret is masked in each result.
func TestDoctorBreaksNoSecret(t *testing.T) {
	t.Parallel()
	e := &testEnv{vars: map[string]string{"AMSAGENT_ROOT": t.TempDir(), "AMSAGENT_DRAIN_DEADLINE": "a correct horse battery staple in the stable"}}
	env := e.env()
	env.IsTerminal = func(any) bool { return true }
	code := Main([]string{"doctor", "--provider", "generic", "--mongo", "mongodb://u:correct%20horse%20battery%20staple@127.0.0.1:1"}, env)
	out := e.stdout.String() + e.stderr.String()
	if code != codeDegraded || !strings.Contains(out, `"a *** in the stable"`) || regexp.MustCompile("correct|horse|battery|staple").MatchString(out) {
		t.Errorf("exit %d\n%s", code, out)
	}
}

// doctorTree is a standalone installation below a root.
func doctorTree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	must.OK(t, os.CopyFS(filepath.Join(root, "usr/local/antmedia"), os.DirFS("../../../testdata/trees/3.0")))
	plant(t, root, map[string]string{"etc/hostname": "node-1\n", "etc/hosts": "127.0.0.1 localhost\n10.0.0.5 node-1\n"})
	return root
}

// results is what `doctor -o json` prints.
type results struct {
	SchemaVersion int             `json:"schema_version"`
	Kind          string          `json:"kind"`
	Counts        doctor.Counts   `json:"counts"`
	Checks        []doctor.Result `json:"checks"`
}

func doctorJSON(t *testing.T, vars map[string]string, args ...string) (int, results, string) {
	t.Helper()
	code, stdout, stderr := run(t, vars, append([]string{"doctor", "-o", "json", "--provider", "generic"}, args...)...)
	var d results
	if err := json.Unmarshal([]byte(stdout), &d); err != nil {
		t.Fatalf("exit %d: %v\n%s%s", code, err, stdout, stderr)
	}
	if d.SchemaVersion != 1 || d.Kind != "doctor" || len(d.Checks) == 0 {
		t.Errorf("%+v", d)
	}
	return code, d, stderr
}

func wrongIDs(d results) []string {
	var ids []string
	for _, r := range d.Checks {
		if r.Wrong() {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// Nothing is wrong with an image in the making, and much is unknown.
func TestDoctorImage(t *testing.T) {
	root := doctorTree(t)
	code, d, _ := doctorJSON(t, nil, "--root", root, "--address", "10.0.0.5")
	ids := slices.DeleteFunc(wrongIDs(d), func(id string) bool { return id == "AMS-RELEASE" || id == "AMS-SPACE" }) // no jar; the test's disk
	if code != codeOK || len(ids) > 0 {
		t.Errorf("exit %d, wrong: %v", code, ids)
	}
	if code, _, _ := doctorJSON(t, nil, "--strict", "--root", root, "--address", "10.0.0.5"); code != codeDegraded {
		t.Errorf("exit %d for warnings with --strict", code)
	}
	code, d, _ = doctorJSON(t, nil, "--strict", "--root", root, "--address", "10.0.0.5", "--ignore", "ams-release, AMS-SPACE")
	if code != codeOK || d.Counts.Ignored < 1 || d.Counts.Unknown < 10 {
		t.Errorf("exit %d, %+v", code, d.Counts)
	}
	if _, err := os.Stat(filepath.Join(root, "var")); err == nil {
		t.Error("something was written")
	}
}

// Wrong settings are a result among others; wrong flags are a usage error.
func TestDoctorSettings(t *testing.T) {
	root := doctorTree(t)
	const config, good, state = "etc/amsagent/config.yaml", "var/lib/amsagent/config.yaml.good", "var/lib/amsagent/state.json"
	for _, tt := range []struct {
		files    map[string]string
		vars     map[string]string
		id, seen string
	}{
		{map[string]string{config: "roel: edge\n"}, nil, "AGENT-CONFIG", "config.yaml:1: unknown key"},
		{map[string]string{config: "role: [\n"}, nil, "AGENT-CONFIG", "not YAML"},
		{map[string]string{config: "mongo: mongodb://u:hunter2@10.0.2.4\n"}, nil, "AGENT-CONFIG-SECRET", "every user can read it"},
		{nil, map[string]string{"AMSAGENT_BEAT_INTERVAL": "soon"}, "AGENT-CONFIG", "soon"},
		{nil, map[string]string{"AMSAGENT_LOG_LEVEL": "soon"}, "AGENT-CONFIG", "soon"},
		{nil, map[string]string{"AMSAGENT_OUTPUT": "soon"}, "AGENT-CONFIG", "soon"},
		// A wrong line does not hide the others, and the daemon's settings count.
		{map[string]string{config: "roel: edge\nams_dir: /opt/ams\nbeat_interval: soon\n"}, nil, "AMS-INSTALL", "/opt/ams"},
		{map[string]string{config: "beat_interval: soon\n", good: "ams_dir: /opt/former\n"}, nil, "AMS-INSTALL", "/opt/former"},
		{map[string]string{state: `{"version":1,"given":{"settings":{"ams_dir":"/opt/ams"}}}`}, nil, "AMS-INSTALL", "/opt/ams"},
		{map[string]string{state: `{"version":1,`}, nil, "AGENT-RECORD", "what was given to join cannot be used"},
	} {
		for name, text := range tt.files {
			plant(t, root, map[string]string{name + "!": text})
		}
		code, d, stderr := doctorJSON(t, tt.vars, "--root", root, "--address", "10.0.0.5")
		i := slices.IndexFunc(d.Checks, func(r doctor.Result) bool { return r.ID == tt.id && strings.Contains(r.Text, tt.seen) })
		if i < 0 || strings.HasPrefix(tt.id, "AGENT-CONFIG") && (code != codeDegraded || d.Checks[i].Check != "AGENT-CONFIG" || d.Checks[i].Severity != bootstrap.Bad || tt.files != nil && d.Checks[i].Hint == "") {
			t.Errorf("%v %v: exit %d, %v", tt.files, tt.vars, code, wrongIDs(d))
		}
		if strings.Contains(stderr, "hunter2") {
			t.Errorf("a secret: %s", stderr)
		}
		for name := range tt.files {
			must.OK(t, os.Remove(filepath.Join(root, name)))
		}
	}
	plant(t, root, map[string]string{config: "role: edge\n"})
	if _, d, _ := doctorJSON(t, nil, "--root", root, "--address", "10.0.0.5"); slices.Contains(wrongIDs(d), "AGENT-CONFIG") {
		t.Errorf("%v", wrongIDs(d))
	}
	for _, args := range [][]string{
		{"--address", "here"}, {"--root", filepath.Join(root, "nowhere")}, {"extra"},
	} {
		if code, stdout, stderr := run(t, nil, append([]string{"doctor"}, args...)...); code != codeUsage || stdout != "" || !strings.Contains(stderr, "AGENT-USAGE") {
			t.Errorf("%v: exit %d\n%s%s", args, code, stdout, stderr)
		}
	}
	if _, _, stderr := run(t, nil, "doctor", "--ignore", "AMS-ISNTALL", "--explain", "AMS-INSTALL"); !strings.Contains(stderr, "no check and no finding has this id\" id=AMS-ISNTALL") {
		t.Error(stderr)
	}
}

// A failure is a result, and in the log only with --log-level.
func TestDoctorIsQuiet(t *testing.T) {
	t.Parallel()
	root := doctorTree(t)
	args := []string{"--root", root, "--address", "10.0.0.5", "--provider", "aws"}
	vars := map[string]string{"AMSAGENT_AWS_ENDPOINT": "http://127.0.0.1:1"}
	if _, _, stderr := doctorJSON(t, vars, args...); stderr != "" {
		t.Errorf("said: %s", stderr)
	}
	if _, _, stderr := doctorJSON(t, vars, append(args, "--log-level", "info")...); stderr == "" {
		t.Error("nothing is said, although it was asked for")
	}
}

const guideScript = "#!/bin/bash\ncd /usr/local/antmedia\n./change_server_mode.sh cluster 10.0.2.4\n"

// lintRun runs the command in a folder with the files, so that no path of this machine is in what it prints.
func lintRun(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	wd, err := os.Getwd()
	must.OK(t, err)
	e := &testEnv{vars: map[string]string{"AMSAGENT_ROOT": wd}}
	env := e.env()
	env.Stdin = strings.NewReader(stdin)
	code = Main(append([]string{"doctor"}, args...), env)
	return code, e.stdout.String(), e.stderr.String()
}

// TestDoctorOwnCommands: user data with a command line that the agent refuses are not OK.
func TestDoctorOwnCommands(t *testing.T) {
	for line, want := range map[string]string{
		"amsagent join --mongo 10.0.2.4 --role edge":                            "",
		"amsagent join --mongo $MONGO $MORE --timeout ${T}":                     "",
		"amsagent status -o json --wait active --timeout 10m":                   "",
		"amsagent nodes prune --yes":                                            "",
		"amsagent drain i-0a1b2c3d4e5f60001":                                    "",
		"amsagent --version; amsagent help join":                                "",
		"amsagent-exporter join; ams join; agent join; amsagnet --port 1":       "",
		"amsagnet join --mongo 10.0.2.4":                                        "write amsagent join",
		"amsagent join --mango 10.0.2.4":                                        "--mango",
		"amsagent join --mongo 10.0.2.4 --rol edge":                             "--rol",
		"amsagent jion --mongo 10.0.2.4":                                        "did you mean `amsagent join`?",
		"amsagent join 10.0.2.4":                                                "takes no argument",
		"amsagent join --role edge --mongo":                                     "--mongo",
		"until aws x | amsagent join --mongo file:- --roel edge; do date; done": "--roel",
	} {
		code, stdout, stderr := lintRun(t, "#!/bin/sh\n"+line+"\n", "--user-data", "-")
		if want == "" && (code != codeOK || !strings.HasPrefix(stdout, "OK")) {
			t.Errorf("%s: exit %d\n%s%s", line, code, stdout, stderr)
		}
		if want != "" && (code != codeDegraded || !strings.Contains(stdout, "AGENT-LINT-COMMAND: line 2") || !strings.Contains(stdout, want)) {
			t.Errorf("%s: exit %d, want %s\n%s%s", line, code, want, stdout, stderr)
		}
	}
}

func TestDoctorUserData(t *testing.T) {
	here, err := os.Getwd()
	must.OK(t, err)
	wd := tree(t, map[string]string{
		"boot.sh":     guideScript,
		"config.yaml": "#cloud-config\nrun_cmd:\n  - echo\nruncmd:\n  - echo Joining: now\n",
		"parts.mime":  "MIME-Version: 1.0\n\n--x\n",
		"good.sh":     "#!/bin/sh\namsagent join --mongo 10.0.2.4\n",
		"left.sh":     "#!/bin/sh\nexport DB_PASSWORD=hunter22\namsagent join --mongo mongodb://u:hunter22@10.0.2.4/\n",
		"dos.sh":      "#!/bin/sh\r\n",
		"big.sh":      strings.Repeat("# nothing\n", (256<<10)/10+1),
	})
	t.Chdir(wd)
	must.OK(t, syscall.Mkfifo("fifo", 0o600))
	const all = "--user-data boot.sh --user-data config.yaml --user-data parts.mime --user-data good.sh --user-data left.sh"
	code, text, stderr := lintRun(t, "", strings.Fields(all)...)
	if code != codeDegraded || stderr != "" || strings.Contains(text, wd) || strings.Contains(text, "hunter22") {
		t.Errorf("exit %d, or a path of this machine or a password is shown: %s\n%s", code, stderr, text)
	}
	code, stdout, _ := lintRun(t, "", strings.Fields(all+" -o json")...)
	var d struct {
		Kind  string
		Files []struct{ Findings []any }
	}
	if err := json.Unmarshal([]byte(stdout), &d); err != nil || code != codeDegraded || d.Kind != "lint" || len(d.Files) != 5 || len(d.Files[0].Findings) != 1 || len(d.Files[3].Findings) != 0 || strings.Contains(stdout, "hunter22") {
		t.Errorf("exit %d, %v\n%s", code, err, stdout)
	}
	for _, tt := range []struct {
		args, stdin string
		code        int
		want        string // how standard output begins, or in an error
	}{
		{"--user-data good.sh", "", codeOK, "OK: nothing is found in 1 file\n"},
		{"--user-data good.sh --user-data dos.sh", "", codeOK, "OK with 1 warning\n"},
		{"--user-data good.sh --user-data parts.mime", "", codeOK, "1 of 2 files not checked\n"},
		{"--strict --user-data good.sh", "", codeOK, "OK: nothing is found in 1 file\n"},
		{"--strict --user-data dos.sh", "", codeDegraded, "OK with 1 warning\n"},
		{"--strict --user-data parts.mime", "", codeDegraded, "1 of 1 file not checked\n"},
		{"--user-data -", guideScript, codeDegraded, "1 problem\n"},
		{"--user-data - --ignore agent-lint-switch", guideScript, codeOK, "OK: "},
		{"--explain AMS-GPU -o json", "", codeOK, "{\n  \"schema_version\": 1,\n  \"kind\": \"page\",\n  \"id\": \"AMS-GPU\""},
		{"--explain ams-mongo-open", "", codeOK, "# AMS-MONGO-OPEN: "},
		{"--explain AMS-MONGO-OPNE", "", codeUsage, "--explain AMS-MONGO-OPNE: no such id"},
		{"--explain AMS-GPU --user-data good.sh", "", codeUsage, "--explain"},
		{"--user-data big.sh", "", codeUsage, "larger than 256 KiB"},
		{"--user-data fifo", "", codeUsage, "not a regular file"},
		{"--user-data nowhere", "", codeUsage, "no such file"},
		{"--user-data .", "", codeUsage, "not a regular file"},
		{"--user-data good.sh --fix", "", codeUsage, "unknown flag --fix"},
	} {
		code, stdout, stderr := lintRun(t, tt.stdin, strings.Fields(tt.args)...)
		right := strings.HasPrefix(stdout, tt.want)
		if tt.code == codeUsage {
			right = stdout == "" && strings.Contains(stderr, tt.want) && strings.Contains(stderr, "[AGENT-USAGE]")
		}
		if code != tt.code || !right {
			t.Errorf("%s: exit %d\n%s%s", tt.args, code, stdout, stderr)
		}
	}
	t.Chdir(here) // the golden is there
	must.Golden(t, *update, filepath.Join("doctor", "user-data.txt"), text)
}

// The doctor uses the daemon's sampler: a driver that answers, a broken one, none.
func TestAskGPUs(t *testing.T) {
	const smi = "usr/bin/nvidia-smi"
	for _, tt := range []struct {
		files   map[string]string
		devices []string
		trouble string
	}{
		{map[string]string{smi: "echo '0, 550.90.07, 37, 81, 12, 1874, 23034, NVIDIA L4'\nexec sleep 60\n"}, []string{"NVIDIA L4"}, ""}, // as driver 550
		{map[string]string{smi: "echo 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n"}, nil, "mismatch"},
		{nil, nil, "nvidia-smi is not there"},
	} {
		root := tree(t, map[string]string{"dev/nvidiactl": ""})
		for name, script := range tt.files {
			plant(t, root, map[string]string{name: "#!/bin/sh\n" + script})
			must.OK(t, os.Chmod(filepath.Join(root, name), 0o755))
		}
		v, err := askGPUs(t.Context(), root)
		if err != nil || !slices.Equal(v.Devices, tt.devices) || !strings.Contains(v.Trouble, tt.trouble) || len(tt.devices) > 0 && (v.Driver != "550.90.07" || v.Trouble != "") {
			t.Errorf("%+v, %v", v, err)
		}
	}
}

// The daemon's own reports become a list of problems.
func TestDoctorAsksTheDaemon(t *testing.T) {
	m := withDaemon(t)
	m.status = daemon.View{
		Version: "1.2.3", Activity: "beating", Trouble: "MongoDB does not answer", RestartPending: true,
		Drift:     &daemon.DriftView{Values: []bootstrap.Difference{{Path: "/a", Key: "db.type", Old: "mapdb", New: "mongodb"}}, Omitted: 2},
		Warnings:  []bootstrap.Finding{{ID: "AMS-ADDRESS", Text: "no address"}},
		Lifecycle: &lifecycle.View{Trouble: map[string]string{"hook": "denied", "cloud": "silent"}, LaunchHooks: "none"},
	}
	c := m.run("doctor")
	c.ends(codeDegraded)
	for _, trouble := range []string{
		"MongoDB does not answer", "cloud: silent", "hook: denied", "AMS-ADDRESS: no address",
		"Ant Media Server runs with other settings than it will start with: " + bootstrap.RestartHint + "; /a: db.type is mapdb, must be mongodb; and 2 values more",
		"the daemon is of version 1.2.3, and this program of ",
	} {
		must.Contain(t, "doctor", c.stdout.String(), "  warning   AGENT-DAEMON-DEGRADED the daemon: "+trouble)
	}
	must.Contain(t, "doctor", c.stdout.String(), "  good      the daemon: launch hooks: none\n")
	_, version, _ := run(t, nil, "version")
	m.status = daemon.View{Version: strings.Fields(version)[1], Activity: "beating"}
	c = m.run("doctor")
	c.ends(codeDegraded)
	must.Contain(t, "doctor", c.stdout.String(), "  good      the daemon: beating\n")
	m.kill()
	c = m.run("doctor")
	c.ends(codeDegraded)
	must.Contain(t, "doctor", c.stdout.String(), "  good      the daemon: none runs, and none is needed before a join\n")
}
