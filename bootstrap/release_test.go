// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
)

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
			m := joinedTree(t)
			m.Service, m.Serving, m.Release = running(), []string{"LiveApp"}, ams.Release{Version: tt.files}
			put(t, m, filepath.Join(ams.DefaultDir, "webapps/LiveApp", ams.InitializedName), "")
			edit(t, m, "conf/red5.properties", "nodeGroup=", tt.settings+"nodeGroup=")
			if name == "upgraded, and standalone" {
				shipped, err := os.ReadFile(filepath.Join(treesDir, "3.0", ofContainer))
				must.OK(t, err)
				put(t, m, filepath.Join(ams.DefaultDir, ofContainer), string(shipped))
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
				return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body))}, nil
			})}
			s, err := m.Status(t.Context(), StatusRequest{})
			if err != nil || s.Process.Release == nil {
				t.Fatalf("%+v, %v", s, err)
			}
			r := *s.Process.Release
			if r.Match != tt.want || r.Running != tt.running || r.Files != tt.files || (r.Why == "") != (tt.want != ReleaseUnknown) {
				t.Errorf("%+v, want %s", r, tt.want)
			}
			named := slices.ContainsFunc(s.Disagree, func(d Finding) bool { return d.ID == "STATUS-RELEASE" })
			if named != (tt.want == ReleaseOlder) {
				t.Errorf("%+v", s.Disagree)
			}
		})
	}
}
