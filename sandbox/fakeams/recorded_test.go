// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

// The files that a real server wrote at its start lie beside the repository on some
// machines. Read and written again by the stand-in they have the same lines.
func TestRecordedSettings(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../../shared/corpus/real/*/webapps/*/WEB-INF/red5-web.properties")
	if err != nil || len(files) == 0 {
		t.Skip("the tier corpus, without its folder ../shared/corpus (docs/testing.md)")
	}
	saved, err := parseProperties(savedSettings)
	must.OK(t, err)
	for _, file := range files {
		recorded, err := os.ReadFile(file)
		must.OK(t, err)
		lines := strings.Split(string(recorded), "\n")
		at, err := time.Parse("#Mon Jan 02 15:04:05 UTC 2006", lines[0])
		if strings.Contains(file, "/root/") {
			if err == nil {
				t.Errorf("%s: the server wrote the console's file, and the stand-in does not", file)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		props, err := parseProperties(recorded)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		ours := strings.Split(javaProperties(props, at), "\n")
		slices.Sort(ours)
		slices.Sort(lines)
		must.NoDiff(t, file+": the server (-) and the stand-in (+)", ours, lines)
		if !strings.Contains(file, "/2.17.1/") {
			continue // the stand-in adds what this release adds
		}
		for key := range saved {
			if _, ok := props[key]; !ok {
				t.Errorf("%s: the stand-in adds %s, and the server does not", file, key)
			}
		}
	}
}
