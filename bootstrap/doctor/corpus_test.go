// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/internal/must"
)

// corpusDir holds real configuration files of AMS, beside the project.
const corpusDir = "../../../shared/corpus/ams"

// TestCorpus looks at the real files of every release, as they were shipped and after a join: nothing is wrong with them.
func TestCorpus(t *testing.T) {
	dirs, err := os.ReadDir(corpusDir)
	if err != nil {
		t.Skip("the tier corpus, without its folder ../shared/corpus (docs/testing.md)")
	}
	for _, d := range dirs {
		t.Run(d.Name(), func(t *testing.T) {
			c := newClinic(t)
			c.remove(ams.DefaultDir)
			must.OK(t, os.CopyFS(c.at(ams.DefaultDir), os.DirFS(filepath.Join(corpusDir, d.Name()))))
			release(strings.TrimSuffix(d.Name(), "-panel-saved"))(c)
			files := []string{bootstrap.IDInstall, bootstrap.IDRelease, bootstrap.IDSections, bootstrap.IDFile, idApps, bootstrap.IDFileOwner, idSettings}
			look := func(when string) {
				t.Helper()
				for _, id := range files {
					for _, r := range c.check(id) {
						if r.Severity != Good {
							t.Errorf("%s: %s is %s: %s", when, r.ID, r.Severity, r.Text)
						}
					}
				}
			}
			look("as shipped")
			c.join("10.0.2.4")
			look("after a join")
		})
	}
}
