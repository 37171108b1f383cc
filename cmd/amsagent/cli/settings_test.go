// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
)

func lookup(vars map[string]string) func(string) (string, bool) {
	return func(k string) (string, bool) { v, ok := vars[k]; return v, ok }
}

func flags(pairs ...string) map[string]given {
	m := map[string]given{}
	for i := 0; i < len(pairs); i += 2 {
		row, _ := settingByKey(pairs[i])
		m[pairs[i]] = given{text: pairs[i+1], name: "--" + row.flag}
	}
	return m
}

func file(text string) *configFile { return parseConfigFile("/etc/amsagent/config.yaml", []byte(text)) }

// applyTags is withTags for settings that stay in place.
func (s *settings) applyTags(all bool, group string, tags map[string]string) error {
	n, err := s.withTags(all, group, tags)
	*s = *n
	return err
}

func TestPrecedence(t *testing.T) {
	for _, tt := range []struct {
		name       string
		flag       string
		env        string
		file       string
		tag        string
		want, from string
	}{
		{name: "nothing", want: "", from: "default"},
		{name: "tag", tag: "t", want: "t", from: "instance tag amsagent:role"},
		{name: "file over tag", file: "f", tag: "t", want: "f", from: "/etc/amsagent/config.yaml:2"},
		{name: "variable over file", env: "e", file: "f", tag: "t", want: "e", from: "AMSAGENT_ROLE"},
		{name: "flag over variable", flag: "x", env: "e", file: "f", tag: "t", want: "x", from: "--role"},
		{name: "flag over tag", flag: "x", tag: "t", want: "x", from: "--role"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src := sources{lookupEnv: lookup(map[string]string{"AMSAGENT_ROLE": tt.env})}
			if tt.flag != "" {
				src.flags = flags(keyRole, tt.flag)
			}
			if tt.file != "" {
				src.file = file("# settings\nrole: " + tt.file + "\n")
			}
			s, err := resolveSettings(src)
			must.OK(t, err)
			must.OK(t, s.applyTags(true, "", map[string]string{"amsagent:role": tt.tag}))
			if s.Role != tt.want || s.origin(keyRole).String() != tt.from {
				t.Errorf("role %q from %q, want %q from %q", s.Role, s.origin(keyRole), tt.want, tt.from)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	s, err := resolveSettings(sources{})
	must.OK(t, err)
	if s.AMSDir != "/usr/local/antmedia" || s.Provider != "auto" || s.Service != "auto" || s.RemoteIPValve != "auto" ||
		s.Timeout != 5*time.Minute || s.OnFailure != "rollback" || s.Output != "text" || s.LogLevel != slog.LevelInfo ||
		s.Config != "/etc/amsagent/config.yaml" || s.Address != "" || s.Root != "" || len(s.Endpoints) != 0 {
		t.Errorf("%+v", s)
	}
}

// Every row of the table reaches its field from each of its sources.
func TestEverySettingIsRead(t *testing.T) {
	values := map[string]string{
		keyMongo: "10.0.2.4", keyRole: "edge", keyGroup: "edges in eu", keyAddress: "10.0.1.5", keyAMSDir: "/opt/ams",
		keyAMSRelease: "2.14.0", keyProvider: "aws", keyService: "none", keyServiceCommand: "/usr/bin/ams-ctl -q",
		keyRemoteIPValve: "remove", keyTimeout: "90s", keyOnFailure: "keep", keyRoot: "/mnt", keyConfig: "/c.yaml",
		keyOutput: "json", keyLogLevel: "debug", keyColor: "never",
		keyHooks:    "drain,amsagent-*",
		keyAutoJoin: "false", keyBeatInterval: "7s", keyMetrics: "127.0.0.2:9100",
		keyAgentCheck: "127.0.0.2:9101",
		keyServing:    "LiveApp,live*", keyUnhealthyAfter: "7m",
		keyDrainDeadline: "30m", keyRemoteDrain: "false",
	}
	field := func(s *settings, key string) any {
		return map[string]any{
			keyMongo: s.Mongo, keyRole: s.Role, keyGroup: s.Group, keyAddress: s.Address, keyAMSDir: s.AMSDir,
			keyAMSRelease: s.AMSRelease, keyProvider: s.Provider, keyService: s.Service, keyServiceCommand: s.ServiceCommand,
			keyRemoteIPValve: s.RemoteIPValve, keyTimeout: s.Timeout, keyOnFailure: s.OnFailure, keyRoot: s.Root,
			keyAutoJoin: s.AutoJoin, keyBeatInterval: s.BeatInterval, keyMetrics: s.Metrics,
			keyAgentCheck: s.AgentCheck,
			keyServing:    strings.Join(s.Serving, ","), keyUnhealthyAfter: s.UnhealthyAfter,
			keyDrainDeadline: s.DrainDeadline, keyRemoteDrain: s.RemoteDrain,
			keyConfig: s.Config,
			keyOutput: s.Output, keyLogLevel: s.LogLevel, keyColor: s.Color,
			keyHooks: strings.Join(s.Hooks, ","),
		}[key]
	}
	for _, row := range settingsTable() {
		var want any = values[row.key]
		switch row.key {
		case "":
			t.Fatal("no key")
		case keyTimeout:
			want = 90 * time.Second
		case keyBeatInterval:
			want = 7 * time.Second
		case keyUnhealthyAfter:
			want = 7 * time.Minute
		case keyAutoJoin, keyRemoteDrain:
			want = false
		case keyDrainDeadline:
			want = 30 * time.Minute
		case keyLogLevel:
			want = slog.LevelDebug
		}
		if values[row.key] == "" {
			t.Fatalf("the test has no value for %s", row.key)
		}
		check := func(kind string, src sources) {
			t.Helper()
			s, err := resolveSettings(src)
			if err != nil {
				t.Errorf("%s by %s: %v", row.key, kind, err)
				return
			}
			if got := field(s, row.key); got != want {
				t.Errorf("%s by %s: %v, want %v", row.key, kind, got, want)
			}
		}
		check("variable", sources{lookupEnv: lookup(map[string]string{row.env(): values[row.key]})})
		if row.flag != "" {
			check("flag", sources{flags: flags(row.key, values[row.key])})
		}
		if !row.noFile {
			check("file", sources{file: file(row.key + ": " + values[row.key] + "\n")})
		}
	}
}

func TestWrongValues(t *testing.T) {
	for _, tt := range []struct{ key, value, want string }{
		{keyRole, "two words", `"two words" is not a role`},
		{keyRole, "-edge", "is not a role"},
		{keyRole, strings.Repeat("x", 64), "is not a role"},
		{keyGroup, " x", "is not a group name"},
		{keyGroup, "a\nb", "is not a group name"},
		{keyGroup, strings.Repeat("x", 256), "is not a group name"},
		{keyAddress, "node-1", "is not an IP address"},
		{keyAddress, "10.0.0.1:80", "is not an IP address"},
		{keyAddress, "0.0.0.0", "is not the address of one machine"},
		{keyAddress, "255.255.255.255", "is not the address of one machine"},
		{keyAddress, "ff02::1", "is not the address of one machine"},
		{keyAddress, "fe80::1%eth0", "has a zone"},
		{keyMetrics, "localhost:9100", "is no address to listen on"},
		{keyMetrics, ":9100", `":9100" names no address to listen on`},
		{keyServing, "LiveApp,", "is no application"},
		{keyServing, "live[", "is no application"},
		{keyServing, "webapps/LiveApp", "is no application"},
		{keyUnhealthyAfter, "5", "is not a duration"},
		{keyBeatInterval, "10ms", "is outside 1s to 1m"},
		{keyAutoJoin, "maybe", "is not one of true, false"},
		{keyAMSDir, "antmedia", "is not an absolute path"},
		{keyAMSRelease, "latest", "is not a release"},
		{keyAMSRelease, "3", "is not a release"},
		{keyProvider, "gpc", "is not one of auto, aws, azure, alibaba, gcp, generic"},
		{keyService, "sysv", "is not one of auto, systemd, none"},
		{keyServiceCommand, " ", "is not a command"},
		{keyServiceCommand, "a\nb", "is not a command"},
		{keyRemoteIPValve, "drop", "is not one of keep, remove, auto"},
		{keyTimeout, "5", `"5" is not a duration`},
		{keyTimeout, "-5m", "-5m is outside 1s to 24h"},
		{keyTimeout, "25h", "25h is outside 1s to 24h"},
		{keyOnFailure, "undo", "is not one of rollback, keep"},
		{keyOutput, "xml", "is not one of text, json"},
		{keyLogLevel, "chatty", "is not one of debug, info, warn, error"},
		{keyColor, "yes", "is not one of auto, always, never"},
		{keyMongo, "a b", "there is a blank"},
		{keyMongo, "http://h", ""},
		{keyMongo, "mongodb://", ""},
		{keyMongo, "file:mongo", "file:mongo is not an absolute path"},
		{keyMongo, "file:", "is not an absolute path"},
		{keyMongo, "   ", "empty"},
		{keyMongo, "-", "is not a host"},
		{keyMongo, "db-", "neither a host name nor an IP address"},
	} {
		t.Run(tt.key+"="+tt.value, func(t *testing.T) {
			row, _ := settingByKey(tt.key)
			s, err := resolveSettings(sources{lookupEnv: lookup(map[string]string{row.env(): tt.value})})
			if err == nil {
				t.Fatalf("accepted as %q", s.values[tt.key].text)
			}
			if !strings.HasPrefix(err.Error(), row.env()+": ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%q, want the variable's name and %q", err, tt.want)
			}
		})
	}
}

func TestCanonicalValues(t *testing.T) {
	for _, tt := range []struct{ key, value, want string }{
		{keyAddress, "::ffff:10.0.0.1", "10.0.0.1"},
		{keyAddress, "FD00::0001", "fd00::1"},
		{keyAMSDir, "/opt//ams/", "/opt/ams"},
		{keyTimeout, "3600s", "1h"},
		{keyTimeout, "90m", "1h30m"},
		{keyMongo, "file:///etc/amsagent/mongo", "file:/etc/amsagent/mongo"},
		{keyMongo, " 10.0.2.4 ", "10.0.2.4"},
		{keyAMSRelease, "2.14.0-SNAPSHOT", "2.14.0-SNAPSHOT"},
		{keyRole, "Edge", "edge"},
		{keyAutoJoin, "true", "true"},
		{keyAutoJoin, "Yes", "true"},
		{keyAutoJoin, "on", "true"},
		{keyAutoJoin, "FALSE", "false"},
		{keyAutoJoin, "no", "false"},
		{keyAutoJoin, "Off", "false"},
	} {
		row, _ := settingByKey(tt.key)
		if got, err := row.canonical(tt.value); err != nil || got != tt.want {
			t.Errorf("%s %q: %q, %v; want %q", tt.key, tt.value, got, err, tt.want)
		}
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	src := sources{
		flags:     flags(keyRole, "a b"),
		lookupEnv: lookup(map[string]string{"AMSAGENT_TIMEOUT": "5", "AMSAGENT_ROLE": "also wrong"}),
		file:      file("provider: asw\nroel: edge\nservice: nnone\n"),
	}
	want := []string{
		`--role: "a b" is not a role`,
		`AMSAGENT_ROLE: "also wrong" is not a role`,
		`AMSAGENT_TIMEOUT: "5" is not a duration`,
		`/etc/amsagent/config.yaml:1: "asw" is not one of auto, aws, azure, alibaba, gcp, generic`,
		`/etc/amsagent/config.yaml:2: unknown key "roel"`,
		`/etc/amsagent/config.yaml:3: "nnone" is not one of auto, systemd, none`,
	}
	for range 5 {
		_, err := resolveSettings(src)
		if err == nil {
			t.Fatal("accepted")
		}
		if diff := cmp.Diff(want, strings.Split(err.Error(), "\n")); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	}
}

func TestEmptyVariableIsUnset(t *testing.T) {
	s, err := resolveSettings(sources{
		lookupEnv: lookup(map[string]string{"AMSAGENT_ROLE": "", "NO_COLOR": "", "AMSAGENT_TIMEOUT": ""}),
		file:      file("role: edge\n"),
	})
	if err != nil || s.Role != "edge" || s.Color != "auto" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestNoColor(t *testing.T) {
	for _, tt := range []struct {
		name string
		src  sources
		want string
	}{
		{"NO_COLOR", sources{lookupEnv: lookup(map[string]string{"NO_COLOR": "0"})}, "never"},
		{"over the file", sources{lookupEnv: lookup(map[string]string{"NO_COLOR": "1"}), file: file("color: always\n")}, "never"},
		{"ours over it", sources{lookupEnv: lookup(map[string]string{"NO_COLOR": "1", "AMSAGENT_COLOR": "always"})}, "always"},
		{"flag over it", sources{lookupEnv: lookup(map[string]string{"NO_COLOR": "1"}), flags: flags(keyColor, "always")}, "always"},
	} {
		s, err := resolveSettings(tt.src)
		if err != nil || s.Color != tt.want {
			t.Errorf("%s: %q, %v", tt.name, s.Color, err)
		}
	}
}

func TestServiceWithRoot(t *testing.T) {
	env := func(pairs ...string) sources {
		m := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return sources{lookupEnv: lookup(m), flags: flags(keyRoot, "/mnt")}
	}
	withFile := func(src sources, text string) sources { src.file = file(text); return src }
	withFlag := func(src sources, pairs ...string) sources {
		for k, v := range flags(pairs...) {
			src.flags[k] = v
		}
		return src
	}
	for _, tt := range []struct {
		name             string
		src              sources
		service, command string
		from             string
	}{
		{"implied", env(), "none", "", "implied by --root"},
		{"the tree's own file says nothing about this machine", withFile(env(), "service: systemd\n"), "none", "", "implied by --root"},
		{"nor its command", withFile(env(), "service_command: /bin/x\n"), "none", "", "implied by --root"},
		{"variable", env("AMSAGENT_SERVICE", "systemd"), "systemd", "", "AMSAGENT_SERVICE"},
		{"command by variable", env("AMSAGENT_SERVICE_COMMAND", "/bin/x"), "auto", "/bin/x", "default"},
		{"command by flag, kind by file", withFile(withFlag(env(), keyServiceCommand, "/bin/x"), "service: systemd\n"), "auto", "/bin/x", "default"},
		{"kind by flag, command by file", withFile(withFlag(env(), keyService, "systemd"), "service_command: /bin/x\n"), "systemd", "", "--service"},
		{"kind by flag, command by variable", withFlag(env("AMSAGENT_SERVICE_COMMAND", "/bin/x"), keyService, "none"), "none", "", "--service"},
		{"no root, kind by file, command by flag", sources{flags: flags(keyServiceCommand, "/bin/x"), file: file("service: systemd\n")}, "auto", "/bin/x", "default"},
		{"no root, command by file", sources{file: file("service_command: /bin/x\n")}, "auto", "/bin/x", "default"},
		{"root is /", sources{flags: flags(keyRoot, "/"), file: file("service: systemd\n")}, "systemd", "", "/etc/amsagent/config.yaml:1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := resolveSettings(tt.src)
			must.OK(t, err)
			if s.Service != tt.service || s.ServiceCommand != tt.command || s.origin(keyService).String() != tt.from {
				t.Errorf("service %q from %q, command %q", s.Service, s.origin(keyService), s.ServiceCommand)
			}
		})
	}
	for name, src := range map[string]sources{
		"both flags": {flags: flags(keyService, "systemd", keyServiceCommand, "/bin/x")},
		"both lines": {file: file("service: none\nservice_command: /bin/x\n")},
	} {
		if _, err := resolveSettings(src); err == nil || !strings.Contains(err.Error(), "cannot be combined with") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTags(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  map[string]string
		tags map[string]string
		role string
		from string
		err  string
	}{
		{"colon", nil, map[string]string{"amsagent:role": "edge"}, "edge", "instance tag amsagent:role", ""},
		{"dash", nil, map[string]string{"amsagent-role": "edge"}, "edge", "instance tag amsagent-role", ""},
		{"both", nil, map[string]string{"amsagent-role": "a", "amsagent:role": "b"}, "b", "instance tag amsagent:role", ""},
		{"empty", nil, map[string]string{"amsagent:role": ""}, "", "default", ""},
		{"none", nil, nil, "", "default", ""},
		{"wrong", nil, map[string]string{"amsagent:role": "a b"}, "", "", `instance tag amsagent:role: "a b" is not a role`},
		{"file", nil, map[string]string{"amsagent:mongo": "file:/etc/shadow"}, "", "", "instance tag amsagent:mongo: a tag cannot name a file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := resolveSettings(sources{lookupEnv: lookup(tt.env)})
			must.OK(t, err)
			err = s.applyTags(true, "", tt.tags)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("error %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil || s.Role != tt.role || s.origin(keyRole).String() != tt.from {
				t.Errorf("role %q from %q, %v", s.Role, s.origin(keyRole), err)
			}
		})
	}
}

func TestGroupOfTheCloud(t *testing.T) {
	s, err := resolveSettings(sources{})
	must.OK(t, err)
	must.OK(t, s.applyTags(true, "edge-asg", nil))
	if s.Group != "edge-asg" || s.origin(keyGroup).String() != "instance: scaling group" {
		t.Errorf("group %q from %q", s.Group, s.origin(keyGroup))
	}
	must.OK(t, s.applyTags(true, "edge-asg", map[string]string{"amsagent:group": "edges"}))
	if s.Group != "edges" {
		t.Errorf("group %q", s.Group)
	}
}

// A tag that was taken away says nothing any more.
func TestTagTakenAway(t *testing.T) {
	s, err := resolveSettings(sources{})
	must.OK(t, err)
	tags := map[string]string{"amsagent:group": "edges", "amsagent:role": "edge"}
	for range 2 {
		if err := s.applyTags(true, "", tags); err != nil || s.Role != "edge" || s.Group != "edges" {
			t.Fatalf("role %q, group %q, %v", s.Role, s.Group, err)
		}
	}
	delete(tags, "amsagent:group")
	// One that could not be read is not known to be away.
	if err := s.applyTags(false, "", tags); err != nil || s.Role != "edge" || s.Group != "edges" {
		t.Errorf("unread: role %q, group %q, %v", s.Role, s.Group, err)
	}
	if err := s.applyTags(true, "", tags); err != nil || s.Role != "edge" || s.Group != "" || s.origin(keyGroup).Layer == layerTag {
		t.Errorf("role %q, group %q from %q, %v", s.Role, s.Group, s.origin(keyGroup), err)
	}
}

// A malformed tag changes nothing, and keeps no other tag from counting.
func TestMalformedTag(t *testing.T) {
	s, err := resolveSettings(sources{})
	must.OK(t, err)
	for _, tt := range []struct {
		tags  map[string]string
		err   string
		role  string
		group string
	}{
		{map[string]string{"amsagent:role": "two words", "amsagent:group": "edges"}, "instance tag amsagent:role: ", "", "edges"},
		{map[string]string{"amsagent:role": "edge", "amsagent:group": "a\nb"}, "instance tag amsagent:group: ", "edge", "edges"},
		{map[string]string{"amsagent:role": "two words"}, "instance tag amsagent:role: ", "edge", ""},
	} {
		err := s.applyTags(true, "", tt.tags)
		if !errors.Is(err, bootstrap.ErrTags) || !strings.HasPrefix(err.Error(), tt.err) || s.Role != tt.role || s.Group != tt.group {
			t.Errorf("%v: role %q, group %q, %v", tt.tags, s.Role, s.Group, err)
		}
	}
}

func TestMisspeltVariables(t *testing.T) {
	environ := func() []string {
		return []string{"AMSAGENT_MOGNO=10.0.0.1", "AMSAGENT_ROLE=x", "PATH=/bin", "AMSAGENT_XYZZY=", "AMSAGENTX=1"}
	}
	want := []string{
		"the variable AMSAGENT_MOGNO is not a setting and has no effect",
		"the variable AMSAGENT_XYZZY is not a setting and has no effect",
	}
	if diff := cmp.Diff(want, misspeltVariables(environ)); diff != "" {
		t.Error(diff)
	}
}

func TestOriginJSON(t *testing.T) {
	b, err := json.Marshal(origin{Layer: layerFile, Name: "/c.yaml", Line: 3})
	if err != nil || string(b) != `{"layer":"file","name":"/c.yaml","line":3}` {
		t.Errorf("%s, %v", b, err)
	}
	for l := layerDefault; l <= layerImplied; l++ {
		if l.String() == "" {
			t.Errorf("layer %d has no word", l)
		}
	}
}

// An endpoint is an origin in a variable of the environment: ours, or that of the cloud's own SDK. `config` shows it.
func TestFindTag(t *testing.T) {
	for _, tt := range []struct {
		tags metadata.Tags
		want string
	}{
		{nil, ""},
		{metadata.Tags{"role": "edge"}, ""},
		{metadata.Tags{"amsagent:role": "edge"}, "edge"},
		{metadata.Tags{"amsagent-role": "origin"}, "origin"},
		{metadata.Tags{"amsagent:role": "edge", "amsagent-role": "origin"}, "edge"},
		{metadata.Tags{"amsagent:role": " ", "amsagent-role": " origin\t"}, "origin"},
		{metadata.Tags{"AMSAGENT:ROLE": "edge"}, ""},
	} {
		if _, got, ok := findTag(tt.tags, "amsagent:role"); got != tt.want || ok != (tt.want != "") {
			t.Errorf("findTag(%v) = %q, %v, want %q", tt.tags, got, ok, tt.want)
		}
	}
}

func TestEndpointValues(t *testing.T) {
	for _, tt := range []struct{ value, want, wrong string }{
		{"http://169.254.169.254/", "http://169.254.169.254", ""},
		{"http://[fd00:ec2::254]:80", "http://[fd00:ec2::254]:80", ""},
		{"127.0.0.1:1338", "", "not an http or https origin"},
		{"ftp://h", "", "not an http or https origin"},
		{"http://", "", "not an http or https origin"},
		{"http://h/latest", "", "has more than an origin"},
		{"http://h?x", "", "has more than an origin"},
		{"http://h#x", "", "has more than an origin"},
		{"http://u:p@h", "", "an origin has no user and password"},
		{"http://h:0", "", "has no usable port"},
		{"http://h:", "", "has no usable port"},
		{"http://h:99999", "", "has no usable port"},
	} {
		found, errs := readEndpoints(lookup(map[string]string{"AMSAGENT_AWS_ENDPOINT": tt.value, "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://other"}))
		switch {
		case tt.wrong == "" && (len(errs) > 0 || found[metadata.AWS] != tt.want):
			t.Errorf("%s: %v, %v", tt.value, found, errs)
		case tt.wrong != "" && (len(errs) != 1 || !strings.Contains(errs[0].Error(), tt.wrong) || !strings.Contains(errs[0].Error(), "AMSAGENT_AWS_ENDPOINT")):
			t.Errorf("%s: %v", tt.value, errs)
		}
	}
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
		{name: "kept", src: sources{given: bootstrap.Given{ForcedAddress: "10.0.0.2", Settings: map[string]string{keyAddress: "10.0.0.2"}}}, forced: true, want: "10.0.0.2"},
		{name: "in the file", src: sources{given: bootstrap.Given{ForcedAddress: "10.0.0.2"}, file: file("address: 10.0.0.2\n")}, forced: true, want: "10.0.0.2"},
		{name: "another one", src: sources{given: bootstrap.Given{ForcedAddress: "10.0.0.2"}, flags: flags(keyAddress, "10.0.0.3")}},
		{name: "dropped", src: sources{given: bootstrap.Given{ForcedAddress: "10.0.0.2"}, dropped: []string{keyAddress}}},
	} {
		s, err := resolveSettings(tt.src)
		must.OK(t, err)
		if forced, keep := s.addressForced(), s.toKeep(tt.force).ForcedAddress; forced != tt.forced || keep != tt.want {
			t.Errorf("%s: forced: %v, kept %q, want %q", tt.name, forced, keep, tt.want)
		}
	}
}
