// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
)

func lookup(vars map[string]string) func(string) (string, bool) {
	return func(k string) (string, bool) { v, ok := vars[k]; return v, ok }
}

func flags(pairs ...string) map[string]Flag {
	m := map[string]Flag{}
	for i := 0; i < len(pairs); i += 2 {
		row, _ := ByKey(pairs[i])
		m[pairs[i]] = Flag{Text: pairs[i+1], Name: "--" + row.Flag}
	}
	return m
}

func file(text string) *ConfigFile { return parseConfigFile("/etc/amsagent/config.yaml", []byte(text)) }

// resolve is Resolve with an empty environment unless src has one.
func resolve(src Sources) (*Settings, error) {
	if src.LookupEnv == nil {
		src.LookupEnv = lookup(nil)
	}
	src.Environ = func() []string { return nil }
	return Resolve(src)
}

// applyTags is WithTags for settings that stay in place.
func (s *Settings) applyTags(all bool, group string, tags map[string]string) error {
	n, err := s.WithTags(all, group, tags)
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
			src := Sources{LookupEnv: lookup(map[string]string{"AMSAGENT_ROLE": tt.env})}
			if tt.flag != "" {
				src.Flags = flags(KeyRole, tt.flag)
			}
			if tt.file != "" {
				src.File = file("# settings\nrole: " + tt.file + "\n")
			}
			s, err := resolve(src)
			must.OK(t, err)
			must.OK(t, s.applyTags(true, "", map[string]string{"amsagent:role": tt.tag}))
			if s.Role != tt.want || s.Origin(KeyRole).String() != tt.from {
				t.Errorf("role %q from %q, want %q from %q", s.Role, s.Origin(KeyRole), tt.want, tt.from)
			}
		})
	}
}

// Every row of the table reaches its field from each of its sources.
func TestEverySettingIsRead(t *testing.T) {
	values := map[string]any{
		KeyMongo: "10.0.2.4", KeyRole: "edge", KeyGroup: "edges in eu", KeyAddress: "10.0.1.5", KeyAMSDir: "/opt/ams",
		KeyAMSRelease: "2.14.0", KeyProvider: "aws", KeyService: "none", KeyServiceCommand: "/usr/bin/ams-ctl -q",
		KeyRemoteIPValve: "remove", KeyTimeout: 90 * time.Second, KeyOnFailure: "keep", KeyRoot: "/mnt", KeyConfig: "/c.yaml",
		KeyOutput: "json", KeyLogLevel: "debug", KeyColor: "never", KeyHooks: "drain,amsagent-*", keyAutoJoin: false,
		KeyBeatInterval: 7 * time.Second, KeyMetrics: "127.0.0.2:9100", KeyAgentCheck: "127.0.0.2:9101",
		KeyServing: "LiveApp,live*", keyUnhealthyAfter: 7 * time.Minute, KeyDrainDeadline: 30 * time.Minute, keyRemoteDrain: false,
	}
	field := func(s *Settings, key string) any {
		return map[string]any{
			KeyMongo: s.Mongo, KeyRole: s.Role, KeyGroup: s.Group, KeyAddress: s.Address, KeyAMSDir: s.AMSDir,
			KeyAMSRelease: s.AMSRelease, KeyProvider: s.Provider, KeyService: s.Service, KeyServiceCommand: s.ServiceCommand,
			KeyRemoteIPValve: s.RemoteIPValve, KeyTimeout: s.Timeout, KeyOnFailure: s.OnFailure, KeyRoot: s.Root, KeyConfig: s.Config,
			KeyOutput: s.Output, KeyLogLevel: strings.ToLower(s.LogLevel.String()), KeyColor: s.Color, KeyHooks: strings.Join(s.Hooks, ","), keyAutoJoin: s.AutoJoin,
			KeyBeatInterval: s.BeatInterval, KeyMetrics: s.Metrics, KeyAgentCheck: s.AgentCheck,
			KeyServing: strings.Join(s.Serving, ","), keyUnhealthyAfter: s.UnhealthyAfter, KeyDrainDeadline: s.DrainDeadline, keyRemoteDrain: s.RemoteDrain,
		}[key]
	}
	for _, row := range Table() {
		want, ok := values[row.Key]
		if !ok {
			t.Fatalf("the test has no value for %s", row.Key)
		}
		text := fmt.Sprint(want)
		sources := map[string]Sources{"variable": {LookupEnv: lookup(map[string]string{row.Env(): text})}}
		if row.Flag != "" {
			sources["flag"] = Sources{Flags: flags(row.Key, text)}
		}
		if !row.NoFile {
			sources["file"] = Sources{File: file(row.Key + ": " + text + "\n")}
		}
		for kind, src := range sources {
			if s, err := resolve(src); err != nil || field(s, row.Key) != want {
				t.Errorf("%s by %s: %v, want %v: %v", row.Key, kind, field(s, row.Key), want, err)
			}
		}
	}
}

func TestWrongValues(t *testing.T) {
	for _, tt := range []struct{ key, value, want string }{
		{KeyRole, "two words", `"two words" is not a role`},
		{KeyRole, "-edge", "is not a role"},
		{KeyRole, strings.Repeat("x", 64), "is not a role"},
		{KeyGroup, " x", "is not a group name"},
		{KeyGroup, "a\nb", "is not a group name"},
		{KeyGroup, strings.Repeat("x", 256), "is not a group name"},
		{KeyAddress, "node-1", "is not an IP address"},
		{KeyAddress, "10.0.0.1:80", "is not an IP address"},
		{KeyAddress, "0.0.0.0", "is not the address of one machine"},
		{KeyAddress, "ff02::1", "is not the address of one machine"},
		{KeyAddress, "fe80::1%eth0", "has a zone"},
		{KeyMetrics, "localhost:9100", "is no address to listen on"},
		{KeyMetrics, ":9100", `":9100" names no address to listen on`},
		{KeyServing, "LiveApp,live[", `"live[" is not the name of an application`},
		{KeyServing, "webapps/LiveApp", "is not the name of an application"},
		{KeyHooks, "drain,", `"" is not the name of a hook`},
		{keyUnhealthyAfter, "5", "is not a duration"},
		{KeyBeatInterval, "10ms", "is outside 1s to 1m"},
		{keyAutoJoin, "maybe", "is not one of true, false"},
		{KeyAMSDir, "antmedia", "is not an absolute path"},
		{KeyAMSRelease, "latest", "is not a release"},
		{KeyAMSRelease, "3", "is not a release"},
		{KeyProvider, "gpc", "is not one of auto, aws, azure, alibaba, gcp, generic"},
		{KeyServiceCommand, " ", "is not a command"},
		{KeyServiceCommand, "a\nb", "is not a command"},
		{KeyTimeout, "5", `"5" is not a duration`},
		{KeyTimeout, "-5m", "-5m is outside 1s to 24h"},
		{KeyTimeout, "25h", "25h is outside 1s to 24h"},
		{KeyMongo, "a b", "there is a blank"},
		{KeyMongo, "http://h", ""},
		{KeyMongo, "mongodb://", ""},
		{KeyMongo, "file:mongo", "file:mongo is not an absolute path"},
		{KeyMongo, "file:", "is not an absolute path"},
		{KeyMongo, "   ", "empty"},
		{KeyMongo, "-", "is not a host"},
		{KeyMongo, "db-", "neither a host name nor an IP address"},
	} {
		t.Run(tt.key+"="+tt.value, func(t *testing.T) {
			row, _ := ByKey(tt.key)
			s, err := resolve(Sources{LookupEnv: lookup(map[string]string{row.Env(): tt.value})})
			if err == nil {
				t.Fatalf("accepted as %q", s.Values[tt.key].Text)
			}
			if !strings.HasPrefix(err.Error(), row.Env()+": ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%q, want the variable's name and %q", err, tt.want)
			}
		})
	}
}

func TestCanonicalValues(t *testing.T) {
	for _, tt := range []struct{ key, value, want string }{
		{KeyAddress, "::ffff:10.0.0.1", "10.0.0.1"},
		{KeyAddress, "FD00::0001", "fd00::1"},
		{KeyAMSDir, "/opt//ams/", "/opt/ams"},
		{KeyTimeout, "3600s", "1h"},
		{KeyTimeout, "90m", "1h30m"},
		{KeyTimeout, "3605s", "1h0m5s"},
		{KeyTimeout, "1s", "1s"},
		{KeyMongo, "file:///etc/amsagent/mongo", "file:/etc/amsagent/mongo"},
		{KeyMongo, " 10.0.2.4 ", "10.0.2.4"},
		{KeyAMSRelease, "2.14.0-SNAPSHOT", "2.14.0-SNAPSHOT"},
		{KeyRole, "Edge", "edge"},
		{keyAutoJoin, "true", "true"},
		{keyAutoJoin, "Yes", "true"},
		{keyAutoJoin, "on", "true"},
		{keyAutoJoin, "FALSE", "false"},
		{keyAutoJoin, "no", "false"},
		{keyAutoJoin, "Off", "false"},
	} {
		row, _ := ByKey(tt.key)
		if got, err := row.Canonical(tt.value); err != nil || got != tt.want {
			t.Errorf("%s %q: %q, %v; want %q", tt.key, tt.value, got, err, tt.want)
		}
	}
}

func TestNoColor(t *testing.T) {
	for _, tt := range []struct {
		name string
		src  Sources
		want string
	}{
		{"empty", Sources{LookupEnv: lookup(map[string]string{"NO_COLOR": ""})}, "auto"},
		{"NO_COLOR", Sources{LookupEnv: lookup(map[string]string{"NO_COLOR": "0"})}, "never"},
		{"over the file", Sources{LookupEnv: lookup(map[string]string{"NO_COLOR": "1"}), File: file("color: always\n")}, "never"},
		{"ours over it", Sources{LookupEnv: lookup(map[string]string{"NO_COLOR": "1", "AMSAGENT_COLOR": "always"})}, "always"},
		{"flag over it", Sources{LookupEnv: lookup(map[string]string{"NO_COLOR": "1"}), Flags: flags(KeyColor, "always")}, "always"},
	} {
		s, err := resolve(tt.src)
		if err != nil || s.Color != tt.want {
			t.Errorf("%s: %q, %v", tt.name, s.Color, err)
		}
	}
}

func TestServiceWithRoot(t *testing.T) {
	env := func(pairs ...string) Sources {
		m := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return Sources{LookupEnv: lookup(m), Flags: flags(KeyRoot, "/mnt")}
	}
	withFile := func(src Sources, text string) Sources { src.File = file(text); return src }
	withFlag := func(src Sources, pairs ...string) Sources {
		for k, v := range flags(pairs...) {
			src.Flags[k] = v
		}
		return src
	}
	for _, tt := range []struct {
		name             string
		src              Sources
		service, command string
		from             string
	}{
		{"implied", env(), "none", "", "implied by --root"},
		{"the tree's own file says nothing about this machine", withFile(env(), "service: systemd\n"), "none", "", "implied by --root"},
		{"nor its command", withFile(env(), "service_command: /bin/x\n"), "none", "", "implied by --root"},
		{"variable", env("AMSAGENT_SERVICE", "systemd"), "systemd", "", "AMSAGENT_SERVICE"},
		{"command by variable", env("AMSAGENT_SERVICE_COMMAND", "/bin/x"), "auto", "/bin/x", "default"},
		{"command by flag, kind by file", withFile(withFlag(env(), KeyServiceCommand, "/bin/x"), "service: systemd\n"), "auto", "/bin/x", "default"},
		{"kind by flag, command by file", withFile(withFlag(env(), KeyService, "systemd"), "service_command: /bin/x\n"), "systemd", "", "--service"},
		{"kind by flag, command by variable", withFlag(env("AMSAGENT_SERVICE_COMMAND", "/bin/x"), KeyService, "none"), "none", "", "--service"},
		{"no root, kind by file, command by flag", Sources{Flags: flags(KeyServiceCommand, "/bin/x"), File: file("service: systemd\n")}, "auto", "/bin/x", "default"},
		{"no root, command by file", Sources{File: file("service_command: /bin/x\n")}, "auto", "/bin/x", "default"},
		{"root is /", Sources{Flags: flags(KeyRoot, "/"), File: file("service: systemd\n")}, "systemd", "", "/etc/amsagent/config.yaml:1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := resolve(tt.src)
			must.OK(t, err)
			if s.Service != tt.service || s.ServiceCommand != tt.command || s.Origin(KeyService).String() != tt.from {
				t.Errorf("service %q from %q, command %q", s.Service, s.Origin(KeyService), s.ServiceCommand)
			}
		})
	}
	for name, src := range map[string]Sources{
		"both flags": {Flags: flags(KeyService, "systemd", KeyServiceCommand, "/bin/x")},
		"both lines": {File: file("service: none\nservice_command: /bin/x\n")},
	} {
		if _, err := resolve(src); err == nil || !strings.Contains(err.Error(), "cannot be combined with") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTags(t *testing.T) {
	for _, tt := range []struct {
		name                          string
		tags                          map[string]string
		role, from, group, cloudGroup string
	}{
		{name: "colon", tags: map[string]string{"amsagent:role": "edge"}, role: "edge", from: "instance tag amsagent:role"},
		{name: "dash", tags: map[string]string{"amsagent-role": "edge"}, role: "edge", from: "instance tag amsagent-role"},
		{name: "both", tags: map[string]string{"amsagent-role": "a", "amsagent:role": "b"}, role: "b", from: "instance tag amsagent:role"},
		{name: "one is empty", tags: map[string]string{"amsagent:role": " ", "amsagent-role": " b\t"}, role: "b", from: "instance tag amsagent-role"},
		{name: "empty", tags: map[string]string{"amsagent:role": ""}, from: "default"},
		{name: "other names", tags: map[string]string{"role": "edge", "AMSAGENT:ROLE": "edge"}, from: "default"},
		{name: "the cloud's group", cloudGroup: "edge-asg", from: "default", group: "edge-asg"},
		{name: "a tag over the cloud's group", tags: map[string]string{"amsagent:group": "edges"}, cloudGroup: "edge-asg", from: "default", group: "edges"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := resolve(Sources{})
			must.OK(t, err)
			err = s.applyTags(true, tt.cloudGroup, tt.tags)
			if err != nil || s.Role != tt.role || s.Origin(KeyRole).String() != tt.from || s.Group != tt.group {
				t.Errorf("role %q from %q, group %q, %v", s.Role, s.Origin(KeyRole), s.Group, err)
			}
		})
	}
}

// A removed tag has no effect.
func TestTagTakenAway(t *testing.T) {
	s, err := resolve(Sources{})
	must.OK(t, err)
	tags := map[string]string{"amsagent:group": "edges", "amsagent:role": "edge"}
	for range 2 {
		if err := s.applyTags(true, "", tags); err != nil || s.Role != "edge" || s.Group != "edges" {
			t.Fatalf("role %q, group %q, %v", s.Role, s.Group, err)
		}
	}
	delete(tags, "amsagent:group")
	// One that could not be read may still be there.
	if err := s.applyTags(false, "", tags); err != nil || s.Role != "edge" || s.Group != "edges" {
		t.Errorf("unread: role %q, group %q, %v", s.Role, s.Group, err)
	}
	if err := s.applyTags(true, "", tags); err != nil || s.Role != "edge" || s.Group != "" || s.Origin(KeyGroup).Layer == FromTag {
		t.Errorf("role %q, group %q from %q, %v", s.Role, s.Group, s.Origin(KeyGroup), err)
	}
}

// A malformed tag changes nothing, and keeps no other tag from counting.
func TestMalformedTag(t *testing.T) {
	s, err := resolve(Sources{})
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
		{map[string]string{"amsagent:mongo": "file:/etc/shadow"}, "instance tag amsagent:mongo: a tag cannot name a file", "", ""},
	} {
		err := s.applyTags(true, "", tt.tags)
		if !errors.Is(err, bootstrap.ErrTags) || !strings.HasPrefix(err.Error(), tt.err) || s.Role != tt.role || s.Group != tt.group {
			t.Errorf("%v: role %q, group %q, %v", tt.tags, s.Role, s.Group, err)
		}
	}
}

func TestOriginJSON(t *testing.T) {
	b, err := json.Marshal(Origin{Layer: FromFile, Name: "/c.yaml", Line: 3})
	if err != nil || string(b) != `{"layer":"file","name":"/c.yaml","line":3}` {
		t.Errorf("%s, %v", b, err)
	}
	for l := FromDefault; l <= layerImplied; l++ {
		if l.String() == "" {
			t.Errorf("layer %d has no word", l)
		}
	}
}

// An endpoint is an origin in a variable of the environment: ours, or that of the cloud's own SDK.
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
		found, errs := readEndpoints(func(name string) string {
			return map[string]string{"AMSAGENT_AWS_ENDPOINT": tt.value, "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://other"}[name]
		})
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
		src           Sources
		force, forced bool
		want          string
	}{
		{name: "not forced", src: Sources{Flags: flags(KeyAddress, "10.0.0.2")}},
		{name: "forced now", src: Sources{Flags: flags(KeyAddress, "10.0.0.2")}, force: true, want: "10.0.0.2"},
		{name: "kept", src: Sources{Given: bootstrap.Given{ForcedAddress: "10.0.0.2", Settings: map[string]string{KeyAddress: "10.0.0.2"}}}, forced: true, want: "10.0.0.2"},
		{name: "in the file", src: Sources{Given: bootstrap.Given{ForcedAddress: "10.0.0.2"}, File: file("address: 10.0.0.2\n")}, forced: true, want: "10.0.0.2"},
		{name: "another one", src: Sources{Given: bootstrap.Given{ForcedAddress: "10.0.0.2"}, Flags: flags(KeyAddress, "10.0.0.3")}},
		{name: "dropped", src: Sources{Given: bootstrap.Given{ForcedAddress: "10.0.0.2"}, Dropped: []string{KeyAddress}}},
	} {
		s, err := resolve(tt.src)
		must.OK(t, err)
		if forced, keep := s.addressForced(), s.ToKeep(tt.force).ForcedAddress; forced != tt.forced || keep != tt.want {
			t.Errorf("%s: forced: %v, kept %q, want %q", tt.name, forced, keep, tt.want)
		}
	}
}
