// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
)

// What does not need MongoDB is compared without it. Of a node that is not ready status says what its row and `nodes` say, once.
func TestStatusFindings(t *testing.T) {
	t.Parallel()
	up, failed := ams.State{Activity: ams.ActivityActive}, ams.State{Activity: ams.ActivityFailed}
	live := ams.Liveness{State: ams.Live}
	refused := []ams.AppAnswer{{Name: "LiveApp", State: ams.AppRefused}}
	type row struct {
		state   cluster.State
		serving *cluster.Serving
		fresh   bool // the server's document
	}
	for name, tt := range map[string]struct {
		process ProcessView
		row     *row // nil without MongoDB
		want    string
	}{
		"stopped":  {ProcessView{Service: "/opt/ctl.sh", State: failed}, nil, "bad STATUS-STOPPED, see /var/log/antmedia/ant-media-server.log; start it: amsagent join"},
		"liveness": {ProcessView{State: up, Liveness: ams.Liveness{State: ams.LiveBroken, Code: 500}}, nil, "warning STATUS-LIVENESS"},
		"well":     {ProcessView{State: up, Liveness: live}, nil, ""},

		"ready":                         {ProcessView{}, &row{cluster.StateActive, &cluster.Serving{Up: true}, true}, ""},
		"not known":                     {ProcessView{}, &row{cluster.StateActive, nil, true}, ""},
		"no service, died just now":     {ProcessView{}, &row{cluster.StateActive, &cluster.Serving{Why: "refused"}, true}, "AMS-NOT-SERVING"},
		"no service, dead":              {ProcessView{}, &row{cluster.StateActive, &cluster.Serving{Why: "refused"}, false}, "AMS-NOT-SEEN"},
		"no service, dead, old agent":   {ProcessView{}, &row{cluster.StateActive, nil, false}, "AMS-NOT-SEEN"},
		"no service, drained":           {ProcessView{}, &row{cluster.StateDraining, &cluster.Serving{}, false}, ""},
		"nothing but the console":       {ProcessView{Liveness: live}, &row{cluster.StateActive, &cluster.Serving{Why: "no application is known"}, true}, "AMS-NOT-SERVING"},
		"applications, which are named": {ProcessView{Liveness: live, Applications: refused}, &row{cluster.StateActive, &cluster.Serving{}, true}, "AMS-NOT-SERVING"},
		"a service that is stopped":     {ProcessView{State: failed}, &row{cluster.StateActive, &cluster.Serving{}, false}, "STATUS-STOPPED"},
	} {
		s := &Status{Files: FilesView{Mode: conf.ModeCluster}, Process: tt.process}
		if tt.row != nil {
			s.Row = RowView{
				Looked: true, Agent: cluster.Signal{Known: true, Fresh: true}, Fresh: tt.row.fresh,
				Registry: &cluster.Node{State: tt.row.state, Heartbeat: cluster.Heartbeat{Serving: tt.row.serving, Seq: 7}},
			}
		}
		s.compare(&State{Phase: PhaseJoined})
		got := ""
		if len(s.Disagree) > 0 {
			got = string(s.Disagree[0].Severity) + " " + ids(s.Disagree) + ", " + s.Disagree[0].Hint
		}
		if !strings.Contains(got, tt.want) || got != "" && tt.want == "" {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// The list of the ids of disagreements is that of the code.
func TestStatusIDs(t *testing.T) {
	t.Parallel()
	src, err := os.ReadFile("status.go")
	must.OK(t, err)
	var want []string
	for _, m := range regexp.MustCompile(`add\("([A-Z]+-[A-Z-]+)"`).FindAllSubmatch(src, -1) {
		want = append(want, string(m[1]))
	}
	slices.Sort(want)
	must.NoDiff(t, "ids", slices.Sorted(slices.Values(StatusIDs())), slices.Compact(want))
}

// Files that an offline join edited are the agent's, not foreign. Without the agent's state they are.
func TestStatusOfOfflineJoin(t *testing.T) {
	t.Parallel()
	m := newTree(t, joinedTo(testMongo, "10.0.1.7"))
	for _, want := range []string{"STATUS-JOINING", "STATUS-FOREIGN"} {
		s, err := m.Status(t.Context(), StatusRequest{})
		must.OK(t, err)
		if got := ids(s.Disagree); strings.Contains(got, "STATUS-JOINING") != (want == "STATUS-JOINING") || strings.Contains(got, "STATUS-FOREIGN") != (want == "STATUS-FOREIGN") {
			t.Errorf("%s, want %s", got, want)
		}
		do(t, m, without(StateDir))
	}
}

// After an upgrade the server that runs is compared with its files. A release that is not known is not the same.
func TestStatusRelease(t *testing.T) {
	t.Parallel()
	const app, console = "/LiveApp/rest/v2/version", "/rest/v2/version"
	const refused = "Invalid App JWT Token" // with the status 403
	version := func(v string) string {
		return `{"versionName":"` + v + `","versionType":"Enterprise Edition","buildNumber":"20260504_1300"}`
	}
	for name, tt := range map[string]struct {
		files    string // release
		settings string // added to red5.properties
		answers  map[string]string
		down     bool
		want     ReleaseMatch
		running  string
	}{
		"the same":                 {"3.0.3", "", map[string]string{app: version("3.0.3")}, false, ReleaseSame, "3.0.3"},
		"upgraded":                 {"3.0.3", "", map[string]string{app: version("2.17.1")}, false, ReleaseOlder, "2.17.1"},
		"upgraded, and standalone": {"3.0.3", "", map[string]string{app: version("2.17.1")}, false, ReleaseOlder, "2.17.1"},
		"a later pre-release":      {"3.0.3", "", map[string]string{app: version("3.0.3-SNAPSHOT")}, false, ReleaseOlder, "3.0.3-SNAPSHOT"},
		"downgraded":               {"2.17.1", "", map[string]string{app: version("3.0.3")}, false, ReleaseOlder, "3.0.3"},
		"refused":                  {"3.0.3", "", map[string]string{app: refused}, false, ReleaseUnknown, ""},
		"by the server's token": {
			"3.0.3", "server.jwtServerControlEnabled=true\nserver.jwtServerSecretKey=hush\n",
			map[string]string{app: refused, console: version("2.17.1")},
			false, ReleaseOlder, "2.17.1",
		},
		"another program":       {"3.0.3", "", map[string]string{app: "<html>"}, false, ReleaseUnknown, ""},
		"a build without one":   {"3.0.3", "", map[string]string{app: `{"versionName":null}`}, false, ReleaseUnknown, ""},
		"files without one":     {"", "", map[string]string{app: version("3.0.3")}, false, ReleaseUnknown, "3.0.3"},
		"no application serves": {"3.0.3", "", nil, true, ReleaseUnknown, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newTree(t, joined, with(initialized, ""), edited(serverFile, "nodeGroup=", tt.settings+"nodeGroup="), serving(running()))
			m.Serving, m.Release = []string{"LiveApp"}, ams.Release{Version: tt.files}
			if name == "upgraded, and standalone" {
				put(t, m, beansFile, content(t, newTree(t), beansFile))
			}
			m.HTTP = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				body, status := tt.answers[r.URL.Path], http.StatusOK
				switch {
				case tt.down:
					return nil, syscall.ECONNREFUSED
				case body == "" || (r.URL.Path == console) != (r.Header.Get("ProxyAuthorization") != ""):
					status = http.StatusNotFound
				case body == refused:
					status = http.StatusForbidden
				}
				return answer(status, body)
			})}
			s, err := m.Status(t.Context(), StatusRequest{})
			if err != nil || s.Process.Release == nil {
				t.Fatalf("%+v, %v", s, err)
			}
			r := *s.Process.Release
			if r.Match != tt.want || r.Running != tt.running || r.Files != tt.files || (r.Why == "") != (tt.want != ReleaseUnknown) {
				t.Errorf("%+v, want %s", r, tt.want)
			}
			must.Equal(t, "it is reported", strings.Contains(ids(s.Disagree), "STATUS-RELEASE"), tt.want == ReleaseOlder)
		})
	}
}
