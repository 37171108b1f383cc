// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"io/fs"
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
			target := filepath.Join(c.root, ams.DefaultDir)
			c.remove("usr/local/antmedia")
			must.OK(t, os.CopyFS(target, os.DirFS(filepath.Join(corpusDir, d.Name()))))
			err := filepath.WalkDir(target, func(p string, e fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				mode := fs.FileMode(0o644)
				if e.IsDir() {
					mode = 0o755
				}
				return os.Chmod(p, mode)
			})
			must.OK(t, err)
			version := strings.TrimSuffix(d.Name(), "-panel-saved")
			release(version)(c)
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
