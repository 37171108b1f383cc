// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/internal/must"
)

// A text and its findings: AGENT-LINT-CRLF:3 is the id without its prefix, and the line. Warnings end in ~, unknown ones in ?.
type example struct{ name, src, found string }

const config = "#cloud-config\n"

func examples() []example {
	const join = "amsagent join --mongo 10.0.2.4\n"
	return []example{
		{"one line, as it should be", "#!/bin/sh\n" + join, ""},

		// What cloud-init and the kernel make of the first line.
		{"empty", "", "HEADER:0"},
		{"only line feeds", "\n \n", "HEADER:0"},
		{"neither a script nor a cloud-config", join, "HEADER:1"},
		{"a cloud-config without its first line", "runcmd:\n- " + join, "HEADER:1"},
		{"a byte order mark", "\ufeff#!/bin/sh\n" + join, "HEADER:1"},
		{"an empty line before the first", "\n#!/bin/sh\n" + join, "HEADER:1"},
		{"a blank before #cloud-config", " " + config + "runcmd: []\n", "HEADER:1"},
		{"line feeds lost", "#!/bin/bashapt-get -q updateamsagent join --mongo 10.0.2.4\n", "HEADER:1"},
		{"line feeds lost, and one command", "#!/bin/bash reboot\n", "HEADER:1"},
		{"line feeds written as letters", `#!/bin/bash\ncd /opt\n` + join, "HEADER:1"},
		{"line feeds written as letters, after an option", `#!/bin/sh -e\namsagent` + "\n", "HEADER:1"},
		{"a cloud-config with line feeds written as letters", `#cloud-config\nruncmd:\n- echo` + "\n", "YAML:1"},
		{"line ends of the first Macs", "#!/bin/sh\rreboot\r", "HEADER:1"},
		{"two options", "#!/bin/bash -e -u\n" + join, "HEADER:1"},
		{"no path", "#!bash\n" + join, "HEADER:1"},
		{"no interpreter", "#!\n" + join, "HEADER:1"},
		{"an unknown interpreter", "#!/bin/bsah\n" + join, "HEADER:1"},
		{"env without an interpreter", "#!/usr/bin/env\n" + join, "HEADER:1"},
		{"an option", "#! /bin/sh -eu\n" + join, ""},
		{"a long option", "#!/bin/bash --login \n" + join, ""},
		{"env", "#!/usr/bin/env bash\n" + join, ""},
		{"env with options", "#!/usr/bin/env -S bash -e -u\n" + join, ""},
		{"a versioned interpreter", "#!/opt/venv/bin/python3.12\nprint()\n", ""},
		{"line ends of Windows", "#!/bin/sh\r\n" + join + "\r\n", "CRLF:0~"},
		{"one line that ends as on Windows", "#!/bin/sh\namsagent join --mongo 10.0.2.4\r\n", "CRLF:2"},
		{"a cloud-config of Windows", "#cloud-config\r\nruncmd:\r\n  - echo x\r\n", ""},

		// Formats that are not read are never good.
		{"MIME", "Content-Type: multipart/mixed; boundary=x\nMIME-Version: 1.0\n\n--x\nContent-Type: text/x-shellscript\n\n#!/bin/sh\n" + join, "FORMAT:0?"},
		{"MIME of which a line is seen", "MIME-Version: 1.0\n\n./start.sh -p pw9\n", "FORMAT:0? PASSWORD:3"},
		{"a script that cloud-init takes for MIME", "#!/bin/sh\necho 'MIME-Version: 1.0' >mail\n", "FORMAT:0?"},
		{"gzip", zipped("#!/bin/sh\n"), "FORMAT:0?"},
		{"base64", base64.StdEncoding.EncodeToString([]byte("#!/bin/sh\nreboot\n"))[:20] + "\n" + base64.StdEncoding.EncodeToString([]byte("#!/bin/sh\nreboot\n"))[20:], "FORMAT:0?"},
		{"gzip in base64", base64.StdEncoding.EncodeToString([]byte(zipped("#!/bin/sh\n"))), "FORMAT:0?"},
		{"a word that is base64 by chance", "reboot00\n", "HEADER:1"},
		{"UTF-16", "\xff\xfe#\x00!\x00", "FORMAT:0?"},
		{"UTF-16, the other order", "\xfe\xff\x00#\x00!", "FORMAT:0?"},
		{"an archive with a script that has no #!", "#cloud-config-archive\n- type: text/x-shellscript\n  content: |\n    cd /usr/local/antmedia\n    " + join, "FORMAT:0?"},
		{"addresses", "#include\nhttps://boot.example.com/a\n", "FORMAT:0?"},
		{"addresses, once", "#include-once\nhttps://boot.example.com/a\n", "FORMAT:0?"},
		{"a template", "## template: jinja\n" + config + "runcmd:\n- echo {{ v1.instance_id }}\n", "FORMAT:0?"},
		{"a boot hook", "#cloud-boothook\n#!/bin/sh\n", "FORMAT:0?"},
		{"a part handler", "#part-handler\n", "FORMAT:0?"},
		{"a patch", "#cloud-config-jsonp\n[]\n", "FORMAT:0?"},
		{"Windows", "<powershell>\n", "FORMAT:0?"},

		// A cloud-config.
		{"a cloud-config", config + "packages: [curl]\nruncmd:\n  - echo x\n  - [sh, -c, 'echo y']\n  -\n  - |\n    echo z\n    echo z\nbootcmd: [reboot]\n", ""},
		{"no keys", config, "YAML:1"},
		{"a list", config + "- echo x\n", "YAML:1"},
		{"a tab", config + "runcmd:\n\t- echo x\n", "YAML:3"},
		{"a bracket that is open", config + "runcmd: [ echo\npackages: x\n", "YAML:1"},
		{"a tab in a script", config + "write_files:\n  - path: /x\n    content: |\n      a\n      \tb\n", ""},
		{"runcmd twice", config + "runcmd:\n  - " + join + "runcmd:\n  - echo hi\n", "YAML:4"},
		{"a key twice, deeper", config + "users:\n  - name: a\n    sudo: x\n    name: b\n", "YAML:5"},
		{"merged keys", config + "x-a: &a {k: v}\nx-b: {<<: *a, k: w}\n", ""},
		{"a misspelt key", config + "run_cmd:\n  - echo x\nWrite-Files: []\npackage: [curl]\nruncmds: []\nmy_own: 1\nrun: 1\n", "KEY:2~ KEY:4~ KEY:5~ KEY:6~"},
		{"a colon", config + "runcmd:\n  - echo Joining: now\n  - " + join, "RUNCMD:3"},
		{"a number", config + "runcmd:\n  - amsagent join --mongo 10.0.2.9 # 5\n  - 3\n", "RUNCMD:4"},
		{"booleans of YAML 1.1 and 1.2", config + "bootcmd:\n  - yes\n  - true\n  - 'yes'\n  - !!str off\n", "RUNCMD:3 RUNCMD:4"},
		{"runcmd as a string", config + "runcmd: |\n  " + join, "RUNCMD:2"},
		{"runcmd without a value", config + "runcmd:\n", "RUNCMD:2"},
		{"runcmd as a mapping", config + "runcmd:\n  a: echo x\n", "RUNCMD:2"},
		{"a list with one string", config + "runcmd:\n  - [\"amsagent join --mongo 10.0.2.9\"]\n", "RUNCMD:3"},
		{"numbers in a list", config + "runcmd:\n  - [chmod, 0755, /x]\n  - [a, {b: c}]\n", "RUNCMD:3~ RUNCMD:4~"},
		{"aliases", config + "x: &x [ [a b], 3 ]\ny: &y [z]\nruncmd: *x\nbootcmd: *y\n", "RUNCMD:2 RUNCMD:2"},

		// The vendor's script.
		{"the guide", "#!/bin/bash\ncd /usr/local/antmedia\n./change_server_mode.sh cluster 10.0.2.4\n", "SWITCH:3"},
		{"sudo, a path, a variable, and more on the line", "#!/bin/bash\nsudo bash /usr/local/antmedia/change_server_mode.sh cluster \"${MONGO_IP}\" && echo done\n", "SWITCH:2"},
		{"a name becomes Redis", "#!/bin/sh\n/usr/local/antmedia/change_server_mode.sh cluster db.internal:27017 >/dev/null 2>&1\n", "SWITCH:2"},
		{"a URI asks nothing", "#!/bin/sh\n./change_server_mode.sh cluster 'mongodb://10.0.2.4/?replicaSet=rs0&w=1' # ours\n", ""},
		{"an answer", "#!/bin/sh\nyes | ./change_server_mode.sh cluster 10.0.2.4\n", ""},
		{"an answer behind it", "#!/bin/bash\n./change_server_mode.sh cluster 10.0.2.4 <<< y\n", ""},
		{"an answer, and Redis all the same", "#!/bin/sh\nyes | ./change_server_mode.sh cluster db.internal\n", "SWITCH:2"},
		{"the guide's placeholder", "#!/bin/bash\n./change_server_mode.sh cluster <MongoIP>\n", "SWITCH:2"},
		{"standalone, and a comment", "#!/bin/sh\n# ./change_server_mode.sh cluster 10.0.2.4\n./change_server_mode.sh standalone\n", ""},
		{"in a cloud-config", config + "runcmd:\n  - cd /x && ./change_server_mode.sh cluster 10.0.2.4\n  - [ /x/change_server_mode.sh, cluster, 10.0.2.4 ]\n  - \"./change_server_mode.sh cluster db\"\n", "SWITCH:3 SWITCH:4 SWITCH:5"},
		{"over two lines", "#!/bin/bash\n$AMS_DIR/change_server_mode.sh cluster \\\n  $MONGODB_HOST && \\\n ./start.sh\n", "SWITCH:2"},

		// A restart after a join.
		{
			"a restart of what the join has proved",
			"#!/bin/sh\n" + join + "\n# restart\nsudo service antmedia restart\namsagent join --mongo 10.0.2.4 && systemctl restart antmedia.service\nif true; then\n  " + join + "  systemctl restart antmedia # now\nfi\n",
			"RESTART:5 RESTART:6 RESTART:9",
		},
		{"the same in YAML", config + "runcmd:\n  - " + join + "  - service antmedia restart\n", "RESTART:4"},
		{
			"other forms of a restart",
			"#!/bin/sh\n" + join + "/usr/sbin/service antmedia restart\n" + join + "systemctl --no-block restart antmedia\n" + join +
				"systemctl enable --now antmedia\nsleep 5\necho done\nsudo /bin/systemctl restart nginx antmedia.service\n" + join + "systemctl stop antmedia\nsystemctl start antmedia\n",
			"RESTART:3 RESTART:5 RESTART:10 RESTART:12",
		},
		{"a start, and the restart of another service", "#!/bin/sh\n" + join + "systemctl enable --now antmedia\nsystemctl start antmedia\nsystemctl restart antmedia-exporter\n", ""},
		{
			"a join before systemd starts services",
			config + "bootcmd:\n  - echo x\n  - sudo amsagent join --mongo 10.0.2.9\n  - [amsagent, join, --mongo, 10.0.2.9]\n  - amsagent join --offline --mongo 10.0.2.9\n  - [sh, -c, 'amsagent join --mongo x']\nruncmd:\n  - " + join,
			"RUNCMD:4 RUNCMD:5 RUNCMD:7",
		},
		{
			"restarts with another cause",
			"#!/bin/sh\n" + join + "sed -i s/a/b/ /usr/local/antmedia/conf/red5.properties\nservice antmedia restart\n" +
				"amsagent join --mongo 10.0.2.4 ||\nservice antmedia restart\nif amsagent join --mongo 10.0.2.4; then\n  service antmedia restart\nfi\n",
			"",
		},
		{
			"restarts after a join that restarts nothing",
			"#!/bin/sh\namsagent join --offline --mongo 10.0.2.4\nsystemctl restart antmedia\namsagent join --service none --mongo 10.0.2.4\nservice antmedia restart\n" +
				"amsagent join --service=none --mongo 10.0.2.4\nservice antmedia restart\namsagent join --dry-run --mongo 10.0.2.4 && systemctl restart antmedia\n" +
				"echo then run 'amsagent join'\nservice antmedia restart\n",
			"",
		},

		// Passwords and other secrets.
		{"a password for join", "#!/bin/sh\nsleep 1 && \\\n  amsagent join --role edge --mongo 'mongodb://u:hunter22@10.0.2.4/?a=b&c=d' --group x\n", "PASSWORD:2"},
		{"a password for another command, with =", "#!/bin/sh\namsagent doctor --mongo=mongodb+srv://u:hunter22@a.b.c/\n", "PASSWORD:2"},
		{"a password in a variable", "#!/bin/sh\namsagent join --mongo \"mongodb://u:${PW}@10.0.2.4/\"\n", "PASSWORD:2"},
		{"start.sh", "#!/bin/bash\ncd /usr/local/antmedia\nsudo ./start.sh -m cluster -h 10.0.2.9 -u admin -p hunter22\n", "PASSWORD:3"},
		{"start.sh with a URI", "#!/bin/bash\n./start.sh -m cluster -h mongodb://u:hunter22@10.0.2.9\n", "PASSWORD:2"},
		{"start.sh without a password", "#!/bin/bash\n./start.sh -m cluster -h 10.0.2.9\n", ""},
		{"create_app.sh", "#!/bin/bash\nbash create_app.sh -n live -c true -m 10.0.2.9 -u admin -s hunter22\ncreate_app.sh -n live -p /usr/local/antmedia\n", "PASSWORD:2"},
		{"create_app.sh in a list", config + "runcmd:\n  - [ /usr/local/antmedia/create_app.sh, -n, live, -c, \"true\", -m, \"mongodb://u:hunter22@10.0.2.9\" ]\n", "PASSWORD:3"},
		{"--password", "#!/bin/bash\n./start.sh --password=hunter22\n./start.sh --password hunter22\n", "PASSWORD:2 PASSWORD:3"},
		{"change_server_mode.sh", "#!/bin/sh\n  ./change_server_mode.sh cluster 10.0.2.4 admin 'hunter22'\n", "PASSWORD:2 SWITCH:2"},
		{"change_server_mode.sh with a URI", "#!/bin/sh\n./change_server_mode.sh cluster mongodb://u:hunter22@10.0.2.4\n", "PASSWORD:2"},
		{"a password of another program", "#!/bin/sh\nssh -p 22 host\nmysql -p\n", ""},
		{
			"secrets", "#!/bin/sh\nexport DB_PASSWORD='hunter22'\nexport AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE\necho mongodb://u:hunter22@db/ >/x\nDB_PASSWORD=$(fetch)\npassword: file:/x\nexport TOKEN=\"$T\"\n",
			"SECRET:2 SECRET:3 SECRET:4",
		},
		{"secrets of other names", "#!/bin/sh\nexport PGPASS=hunter22\nmyapp --jwt-key=hunter22 --role edge\nOPTIONS=\"pwd=hunter22 x=y\"\nCOMPASS=north\n", "SECRET:2 SECRET:3 SECRET:4"},
		{"a private key", config + "write_files:\n- content: |\n    -----BEGIN RSA PRIVATE KEY-----\n    aHVudGVyMjI=\n    -----END RSA PRIVATE KEY-----\n", "SECRET:4"},
		{
			"values that are not secrets", "#!/bin/sh\ncat >x.js <<'END'\nconst password = (user) => read(user);\ntoken = key['SecurityToken']\nEND\n" +
				"echo mongodb://amsagent:PASSWORD@$hosts/admin\nprintf 'mongodb://amsagent:%s@%s/admin' \"$p\" \"$h\"\nSECRET_NAME=ams-mongo\nPASSWORD_FILE=mongo.password\n",
			"",
		},
		{"secrets with brackets", "#!/bin/sh\nPASSWORD='p(ss)word'\necho 'mongodb://u:p(ss)word@db/' >/x\n", "SECRET:2 SECRET:3"},
	}
}

func zipped(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(text))
	_ = w.Close()
	return b.String()
}

func TestCheck(t *testing.T) {
	for _, tt := range examples() {
		t.Run(tt.name, func(t *testing.T) {
			var found []string
			for _, f := range Check(tt.src, nil) {
				mark := map[bootstrap.Severity]string{bootstrap.Warning: "~", bootstrap.Unknown: "?"}[f.Severity]
				found = append(found, fmt.Sprintf("%s:%d%s", strings.TrimPrefix(f.ID, "AGENT-LINT-"), f.Line, mark))
				if f.Text == "" || f.Hint == "" || !slices.Contains(IDs(), f.ID) || strings.Contains(f.Text+f.Hint, "hunter22") {
					t.Errorf("%+v", f)
				}
			}
			must.Equal(t, "found", strings.Join(found, " "), tt.found)
			if left := Check(tt.src, nil, IDs()...); len(left) > 0 {
				t.Errorf("ignored: %+v", left)
			}
		})
	}
}

// TestCommands: the agent gets the command lines, from wherever they stand, and no text of others.
func TestCommands(t *testing.T) {
	const text = "#!/bin/sh\n# amsagent nodes\nuntil fetch | amsagent join --mongo file:- --role \"$ROLE\"; do sleep 5; done\n" +
		"A=b sudo /usr/bin/amsagent drain --now >/dev/null 2>&1 &\necho amsagent leave 'amsagent leave'\nif ! amsagent status; then\n  amsagent \\\n    doctor\nfi\n"
	var seen []string
	found := Check(text, func(program string, args []string) (_, _ string) {
		if program == "amsagent" {
			seen = append(seen, strings.Join(args, " "))
		}
		return map[bool]string{true: "refused"}[program == "amsagent" && args[0] == "doctor"], "hint"
	})
	must.NoDiff(t, "commands", seen, []string{"join --mongo file:- --role $ROLE", "drain --now", "status", "doctor"})
	if want := []Finding{{bootstrap.Finding{ID: idCommand, Severity: bootstrap.Bad, Text: "refused", Hint: "hint"}, 7}}; !slices.Equal(found, want) {
		t.Errorf("%+v", found)
	}
}

// The hint is the line to type.
func TestHints(t *testing.T) {
	for src, want := range map[string]string{
		"#!/bin/sh\n./change_server_mode.sh cluster 10.0.2.4\n":             "amsagent join --mongo 10.0.2.4",
		"#!/bin/sh\n./change_server_mode.sh cluster \"$MONGO\"\n":           "amsagent join --mongo $MONGO",
		"#!/bin/sh\n./change_server_mode.sh cluster <MongoIP>\n":            "amsagent join --mongo ADDRESS",
		"#!/bin/sh\n./start.sh -m cluster -h 10.0.2.9 -u admin -p hunter22": "amsagent join --mongo file:PATH",
		config + "runcmd:\n- echo a: b\n":                                   "- 'COMMAND'",
		config + "runcmds: []\n":                                            "write runcmd:",
	} {
		if f := Check(src, nil); len(f) != 1 || !strings.Contains(f[0].Hint, want) {
			t.Errorf("%q: %+v", src, f)
		}
	}
}

// TestCloudInit asks cloud-init's own code: of its keys none is misspelt, and it runs the commands that are found good.
func TestCloudInit(t *testing.T) {
	tool, err := exec.LookPath("cloud-init")
	if err != nil {
		t.Skip("cloud-init is not installed")
	}
	b, err := os.ReadFile(tool)
	must.OK(t, err)
	first, _, _ := strings.Cut(string(b), "\n")
	python := strings.Fields(strings.TrimPrefix(first, "#!"))
	texts := map[string]string{}
	for _, tt := range examples() {
		if strings.HasPrefix(tt.src, config) {
			texts[tt.name] = tt.src
		}
	}
	in, err := json.Marshal(texts)
	must.OK(t, err)
	cmd := exec.CommandContext(t.Context(), python[0], append(python[1:], "-c", `import json, sys
from cloudinit import util
from cloudinit.config.schema import get_schema
schema = get_schema()
keys = sorted({k for s in schema['$defs'].values() for k in s.get('properties', {}) if s is not None} if 'allOf' not in schema else
    {k for ref in schema['allOf'] for k in schema['$defs'][ref['$ref'].split('/')[-1]].get('properties', {})})
runs = {}
for name, text in json.load(sys.stdin).items():
    try:
        cfg = util.load_yaml(text, default=None)
        for key in ('runcmd', 'bootcmd'):
            if key in cfg: util.shellify(cfg[key])
        runs[name] = True
    except Exception:
        runs[name] = False
json.dump({'keys': keys, 'runs': runs}, sys.stdout)
`)...)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cloud-init's own code: %v", err)
	}
	var asked struct {
		Keys []string
		Runs map[string]bool
	}
	if err := json.Unmarshal(out, &asked); err != nil || len(asked.Keys) < 50 {
		t.Fatalf("%v: %s", err, out)
	}
	for _, key := range asked.Keys {
		if similar := similarKey(key); similar != "" {
			t.Errorf("%s is cloud-init's key, and not a misspelt %s", key, similar)
		}
	}
	for name, text := range texts {
		fails := slices.ContainsFunc(Check(text, nil), func(f Finding) bool {
			return f.Severity == bootstrap.Bad && (f.ID == idYAML && !strings.Contains(f.Text, "stands in line") || f.ID == idRuncmd && strings.Contains(f.Text, "runs none"))
		})
		if fails == asked.Runs[name] {
			t.Errorf("%s: cloud-init runs it: %t", name, asked.Runs[name])
		}
	}
}

func FuzzCheck(f *testing.F) {
	for _, tt := range examples() {
		f.Add([]byte(tt.src))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		for _, found := range Check(string(src), nil) {
			if found.Line < 0 || found.Line > bytes.Count(src, []byte("\n"))+1 {
				t.Errorf("line %d: %+v", found.Line, found)
			}
		}
	})
}
