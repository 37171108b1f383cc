// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/record"
)

// TestRecordingOfARole: a recording of a machine with a RAM role holds neither its credentials nor what the API was asked.
func TestRecordingOfARole(t *testing.T) {
	t.Parallel()
	f := rolled(t)
	f.Set(latest+"user-data", "#!/bin/sh\nexport PASSWORD=hunter2\n# amsagent-mongo=mongodb://u:hunter3@h/\n# amsagent-role=edge\n")
	s := newAPIServer(t, map[string][]answer{"ListTagResources": {good(`{"TagResources":[{"TagKey":"secret-project","TagValue":"x"}]}`)}})
	dir := filepath.Join(t.TempDir(), "recording")
	p := open(t, f, func(o *cloud.Options) { o.Record, o.Endpoints[alibaba.EndpointECS] = dir, s.URL })
	if _, err := p.Instance(t.Context()); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 8 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	role := false
	for _, file := range files {
		b, err := os.ReadFile(filepath.Join(dir, file.Name()))
		if err != nil {
			t.Fatal(err)
		}
		text := file.Name() + string(b)
		for _, secret := range []string{"STS.key1", "s3cret", "token1", "ams-node", "hunter", "secret-project", "x-acs", "token-"} {
			if strings.Contains(text, secret) {
				t.Errorf("%s holds %q:\n%s", file.Name(), secret, b)
			}
		}
		role = role || strings.Contains(text, "amsagent-role=edge")
	}
	if !role {
		t.Error("the role is not in the recording")
	}
}

// What the policy does not know is not written, and neither is what is not of the form that it knows.
func TestPolicy(t *testing.T) {
	t.Parallel()
	for path, bodies := range map[string]map[string]string{
		document: {
			"<html>":            "REDACTED: not a JSON object",
			`{"x":{"y":"z"}}`:   "{\n  \"x\": null\n}",
			`{"mac":"n'est"}`:   "{\n  \"mac\": \"REDACTED\"\n}",
			`{"instance-id":1}`: "{\n  \"instance-id\": null\n}",
		},
		meta + "instance-id":                     {"somebody": "REDACTED"},
		meta + "something-new":                   {"secret": "REDACTED"},
		latest + "vendor-data":                   {"secret": "REDACTED"},
		roles + "ams-node":                       {"secret": "REDACTED"},
		latest + "maintenance/other":             {"secret": "REDACTED"},
		eventsPath:                               {"<html>": "REDACTED: not understood", `[{"EventId":"e-7","EventType":"A.Reboot","Secret":"x"}]`: `[{"EventId":"e-1","EventType":"A.Reboot"}]`},
		latest + "user-data":                     {"password: x\n": "# REDACTED\n"},
		meta + "network/interfaces/macs/x/other": {"secret": "REDACTED"},
		meta + "instance/spot/termination-time":  {"2026-11-20T17:03:00Z": "2026-11-20T17:03:00Z"},
	} {
		for body, want := range bodies {
			if got := alibaba.Policy().Body(record.NewMapper(), path, []byte(body)); got != want {
				t.Errorf("%s: %s became %s, want %s", path, body, got, want)
			}
		}
	}
}
