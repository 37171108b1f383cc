// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
)

// A join of a release newer than the agent follows the files: unknown sections and keys stay as they are. Files without the
// known marks are refused.
func TestNewerRelease(t *testing.T) {
	t.Parallel()
	const container = "conf/jee-container.xml"
	m := ownTree(t, "3.0", "4.2.0")
	edit(t, m, container, "</beans>", "\t<!-- recorder start\n\t<bean id=\"recorder\" class=\"io.antmedia.Recorder\"/>\n\trecorder end -->\n\t<bean id=\"new\" class=\"io.antmedia.New\"/>\n</beans>")
	edit(t, m, "conf/red5.properties", "http.port=", "cluster.note=${new}\nhttp.port=")
	edit(t, m, "webapps/LiveApp/WEB-INF/red5-web.properties", "db.type=", "settings.of.tomorrow={\"a\"\\:1}\ndb.type=")
	before := treeFiles(t, m)
	joinOffline(t, m, testMongo, "10.0.1.7")
	b, err := os.ReadFile(filepath.Join(m.Root, ams.DefaultDir, container))
	must.OK(t, err)
	for _, want := range []string{"<!-- cluster start -->", "<!-- recorder start\n", `<bean id="new" class="io.antmedia.New"/>`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the container lacks %q", want)
		}
	}
	if res := leaveOffline(t, m); !res.Exact {
		t.Errorf("%+v", res)
	}
	if diff := cmp.Diff(before, treeFiles(t, m)); diff != "" {
		t.Errorf("after the leave (-want +got):\n%s", diff)
	}

	// Without the marks there is nothing to switch.
	m = ownTree(t, "3.0", "4.2.0")
	real := filepath.Join(m.Root, ams.DefaultDir, container)
	if b, err = os.ReadFile(real); err != nil {
		t.Fatal(err)
	}
	must.OK(t, os.WriteFile(real, []byte(strings.NewReplacer("cluster start", "mode cluster", "cluster end", "mode end").Replace(string(b))), 0o644))
	before = treeFiles(t, m)
	_, err = m.Join(t.Context(), JoinRequest{Mongo: mustTarget(t, testMongo), Address: "10.0.1.7", Offline: true, Valve: ValveKeep})
	var refused *PreflightError
	if !errors.As(err, &refused) || !strings.Contains(ids(refused.Findings), IDSections) {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff(before, treeFiles(t, m)); diff != "" {
		t.Errorf("after the refusal (-want +got):\n%s", diff)
	}
}
