// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestAzure(t *testing.T) {
	t.Parallel()
	vm := filepath.Join(t.TempDir(), "vm.json")
	if err := os.WriteFile(vm, []byte(`{"zone": "2", "priority": "Spot"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	said, cmd := serve(t, "azure", "--vm", vm, "--id", "5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d0009", "--name", "edge_9", "--ip", "10.0.3.4",
		"--tag", "amsagent-role=origin", "--tag", "env=prod", "--versions", "2021-02-01")
	ask := func(method, url string) string {
		t.Helper()
		req, err := http.NewRequest(method, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Metadata", "true")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	origin, control := said["endpoint"].(string), "http://"+said["control"].(string)
	text := ask(http.MethodGet, origin+"/metadata/instance?api-version=2021-02-01")
	for _, want := range []string{`"vmId":"5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d0009"`, `"name":"edge_9"`, `"privateIpAddress":"10.0.3.4"`, `"zone":"2"`, `"priority":"Spot"`, `{"name":"env","value":"prod"}`, `{"name":"amsagent-role","value":"origin"}`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	if text := ask(http.MethodGet, origin+"/metadata/instance?api-version=2021-12-13"); !strings.Contains(text, "newest-versions") {
		t.Errorf("a version that is not served: %s", text)
	}
	ask(http.MethodPost, control+"/event?type=Preempt&lead=30000")
	if text := ask(http.MethodGet, origin+"/metadata/scheduledevents?api-version=2020-07-01"); !strings.Contains(text, `"Resources":["edge_9"]`) {
		t.Errorf("events: %s", text)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if status := ended(t, cmd); status != 0 {
		t.Errorf("exit %d", status)
	}
	for _, args := range [][]string{{"azure", "--tag", "x"}, {"azure", "extra"}, {"azure", "--vm", "/nowhere"}} {
		if status, _, _ := run(t, sandbox(t, args...)); status == 0 {
			t.Errorf("%v: exit 0", args)
		}
	}
}
