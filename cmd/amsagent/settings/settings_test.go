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

// Every row of the table reaches its field from each of its sources.
func TestEverySettingIsRead(t *testing.T) {
	values := map[string]any{
		KeyMongo: "10.0.2.4", KeyRole: "edge", KeyGroup: "edges in eu", KeyAddress: "10.0.1.5", KeyAMSDir: "/opt/ams",
		KeyAMSRelease: "2.14.0", KeyProvider: "aws", KeyService: "none", KeyServiceCommand: "/usr/bin/ams-ctl -q",
		KeyRemoteIPValve: "remove", KeyTimeout: 90 * time.Second, KeyOnFailure: "keep", KeyRoot: "/mnt", KeyConfig: "/c.yaml",
		KeyOutput: "json", KeyLogLevel: "debug", KeyColor: "never", KeyHooks: "drain,amsagent-*", "auto_join": false,
		KeyBeatInterval: 7 * time.Second, KeyMetrics: "127.0.0.2:9100", KeyAgentCheck: "127.0.0.2:9101",
		KeyServing: "LiveApp,live*", "unhealthy_after": 7 * time.Minute, KeyDrainDeadline: 30 * time.Minute, "remote_drain": false,
	}
	field := func(s *Settings, key string) any {
		return map[string]any{
			KeyMongo: s.Mongo, KeyRole: s.Role, KeyGroup: s.Group, KeyAddress: s.Address, KeyAMSDir: s.AMSDir,
			KeyAMSRelease: s.AMSRelease, KeyProvider: s.Provider, KeyService: s.Service, KeyServiceCommand: s.ServiceCommand,
			KeyRemoteIPValve: s.RemoteIPValve, KeyTimeout: s.Timeout, KeyOnFailure: s.OnFailure, KeyRoot: s.Root, KeyConfig: s.Config,
			KeyOutput: s.Output, KeyLogLevel: strings.ToLower(s.LogLevel.String()), KeyColor: s.Color, KeyHooks: strings.Join(s.Hooks, ","), "auto_join": s.AutoJoin,
			KeyBeatInterval: s.BeatInterval, KeyMetrics: s.Metrics, KeyAgentCheck: s.AgentCheck,
			KeyServing: strings.Join(s.Serving, ","), "unhealthy_after": s.UnhealthyAfter, KeyDrainDeadline: s.DrainDeadline, "remote_drain": s.RemoteDrain,
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
		{"unhealthy_after", "5", "is not a duration"},
		{KeyBeatInterval, "10ms", "is outside 1s to 1m"},
		{"auto_join", "maybe", "is not one of true, false"},
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
		{"auto_join", "true", "true"},
		{"auto_join", "Yes", "true"},
		{"auto_join", "on", "true"},
		{"auto_join", "FALSE", "false"},
		{"auto_join", "no", "false"},
		{"auto_join", "Off", "false"},
	} {
		row, _ := ByKey(tt.key)
		if got, err := row.Canonical(tt.value); err != nil || got != tt.want {
			t.Errorf("%s %q: %q, %v; want %q", tt.key, tt.value, got, err, tt.want)
		}
	}
}

// The service of this machine is not that of a tree below another root.
func TestServiceWithRoot(t *testing.T) {
	type m = map[string]string
	below, command := []string{KeyRoot, "/mnt"}, []string{KeyRoot, "/mnt", KeyServiceCommand, "/bin/x"}
	for _, tt := range []struct {
		name  string
		flags []string
		vars  m
		file  string
		// want is service, command and origin, or the error after "!".
		want string
	}{
		{name: "implied", flags: below, want: "none  implied by --root"},
		{name: "the tree's own file says nothing about this machine", flags: below, file: "service: systemd\n", want: "none  implied by --root"},
		{name: "nor its command", flags: below, file: "service_command: /bin/x\n", want: "none  implied by --root"},
		{name: "variable", flags: below, vars: m{"AMSAGENT_SERVICE": "systemd"}, want: "systemd  AMSAGENT_SERVICE"},
		{name: "command by variable", flags: below, vars: m{"AMSAGENT_SERVICE_COMMAND": "/bin/x"}, want: "auto /bin/x default"},
		{name: "command by flag, kind by file", flags: command, file: "service: systemd\n", want: "auto /bin/x default"},
		{name: "kind by flag, command by file", flags: append(below, KeyService, "systemd"), file: "service_command: /bin/x\n", want: "systemd  --service"},
		{name: "kind by flag, command by variable", flags: append(below, KeyService, "none"), vars: m{"AMSAGENT_SERVICE_COMMAND": "/bin/x"}, want: "none  --service"},
		{name: "no root, kind by file, command by flag", flags: command[2:], file: "service: systemd\n", want: "auto /bin/x default"},
		{name: "no root, command by file", file: "service_command: /bin/x\n", want: "auto /bin/x default"},
		{name: "root is /", flags: []string{KeyRoot, "/"}, file: "service: systemd\n", want: "systemd  /etc/amsagent/config.yaml:1"},
		{name: "both flags", flags: append(command, KeyService, "systemd"), want: "!cannot be combined with"},
		{name: "both lines", file: "service: none\nservice_command: /bin/x\n", want: "!cannot be combined with"},
	} {
		s, err := resolve(Sources{LookupEnv: lookup(tt.vars), Flags: flags(tt.flags...), File: file(tt.file)})
		if fails, ok := strings.CutPrefix(tt.want, "!"); ok {
			if err == nil || !strings.Contains(err.Error(), fails) {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		must.OK(t, err)
		must.Equal(t, tt.name, fmt.Sprintf("%s %s %s", s.Service, s.ServiceCommand, s.Origin(KeyService)), tt.want)
	}
}

func TestTags(t *testing.T) {
	type m = map[string]string
	for _, tt := range []struct {
		name       string
		tags       m
		cloudGroup string
		want       string // role, its origin, and the group
	}{
		{name: "colon", tags: m{"amsagent:role": "edge"}, want: "edge, instance tag amsagent:role, "},
		{name: "dash", tags: m{"amsagent-role": "edge"}, want: "edge, instance tag amsagent-role, "},
		{name: "both", tags: m{"amsagent-role": "a", "amsagent:role": "b"}, want: "b, instance tag amsagent:role, "},
		{name: "one is empty", tags: m{"amsagent:role": " ", "amsagent-role": " b\t"}, want: "b, instance tag amsagent-role, "},
		{name: "empty", tags: m{"amsagent:role": ""}, want: ", default, "},
		{name: "other names", tags: m{"role": "edge", "AMSAGENT:ROLE": "edge"}, want: ", default, "},
		{name: "the cloud's group", cloudGroup: "edge-asg", want: ", default, edge-asg"},
		{name: "a tag over the cloud's group", tags: m{"amsagent:group": "edges"}, cloudGroup: "edge-asg", want: ", default, edges"},
	} {
		s, err := resolve(Sources{})
		must.OK(t, err)
		must.OK(t, s.applyTags(true, tt.cloudGroup, tt.tags))
		must.Equal(t, tt.name, fmt.Sprintf("%s, %s, %s", s.Role, s.Origin(KeyRole), s.Group), tt.want)
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
		s, err := resolve(Sources{LookupEnv: lookup(map[string]string{"AMSAGENT_AWS_ENDPOINT": tt.value, "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://other"})})
		if tt.wrong == "" {
			must.OK(t, err)
			must.Equal(t, tt.value, s.Endpoints[metadata.AWS], tt.want)
		} else if err == nil || len(Flatten(err)) != 1 || !strings.Contains(err.Error(), tt.wrong) || !strings.Contains(err.Error(), "AMSAGENT_AWS_ENDPOINT") {
			t.Errorf("%s: %v", tt.value, err)
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
		if forced, keep := s.JoinRequest().ForceAddress, s.ToKeep(tt.force).ForcedAddress; forced != tt.forced || keep != tt.want {
			t.Errorf("%s: forced: %v, kept %q, want %q", tt.name, forced, keep, tt.want)
		}
	}
}
