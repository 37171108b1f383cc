// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
)

// TestManyApplications: a server with 325 applications, whose files are of the size that the server writes, joins and
// leaves again: plan, journal and undo record hold them all.
func TestManyApplications(t *testing.T) {
	t.Parallel()
	const many, size = 325, 9 << 10
	m := ownTree(t, "3.0", "3.0.3")
	before := map[string][]byte{}
	for i := range many {
		app := fmt.Sprintf("app%03d", i)
		dir := filepath.Join(m.Root, ams.DefaultDir, "webapps", app, "WEB-INF")
		must.OK(t, os.MkdirAll(dir, 0o755))
		text := fmt.Sprintf("appName=%[1]s\ndb.name=%[1]s\ndb.type=mapdb\ndb.host=localhost\ndb.user=\ndb.password=\n", app)
		for n := 0; len(text) < size; n++ {
			text += fmt.Sprintf("settings.of%s.%04d=%s\n", app, n, strings.Repeat("x", 40))
		}
		name := filepath.Join(dir, "red5-web.properties")
		before[name] = []byte(text)
		must.OK(t, os.WriteFile(name, before[name], 0o644))
	}
	req := JoinRequest{Offline: true, Address: "10.0.0.7", Valve: ValveKeep}
	var err error
	if req.Mongo, err = cluster.ParseTarget("10.0.2.4"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Join(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	for name := range before {
		if b, err := os.ReadFile(name); err != nil || !bytes.Contains(b, []byte("10.0.2.4")) {
			t.Fatalf("%s does not name the cluster: %v", name, err)
		}
	}
	if _, err := m.Leave(t.Context(), LeaveRequest{Offline: true}); err != nil {
		t.Fatal(err)
	}
	for name, want := range before {
		if b, err := os.ReadFile(name); err != nil || !bytes.Equal(b, want) {
			t.Fatalf("%s was not given back: %v", name, err)
		}
	}
}
