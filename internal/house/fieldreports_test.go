// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package house

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// fieldReports is how many reports of other people's clusters have become a test here; docs/clouds/adding.md lists them.
const fieldReports = 15

var fieldReport = regexp.MustCompile(`(?m)^func (TestFieldReport([0-9]{2})_[A-Za-z0-9_]+)\(`)

// What once went wrong in somebody's cluster is played as a test of its own, by number, and the document says where: none is
// lost when code moves.
func TestEveryFieldReportIsATest(t *testing.T) {
	tests := map[string]bool{}
	var doc string
	for _, f := range checkout(t) {
		switch {
		case f.path == "docs/clouds/adding.md":
			doc = string(f.read(t))
		case strings.HasSuffix(f.path, "_test.go"):
			for _, m := range fieldReport.FindAllStringSubmatch(string(f.read(t)), -1) {
				tests[m[1]] = true
			}
		}
	}
	for n := 1; n <= fieldReports; n++ {
		number := fmt.Sprintf("%02d", n)
		_, row, found := strings.Cut(doc, "\n| "+number+" |")
		row, _, _ = strings.Cut(row, "\n")
		named := mentioned.FindAllString(row, -1)
		if !found || len(named) == 0 {
			t.Errorf("docs/clouds/adding.md has no row with a test for field report %s", number)
		}
		for _, name := range named {
			if !strings.HasPrefix(name, "TestFieldReport"+number+"_") {
				t.Errorf("the row of field report %s names %s", number, name)
			}
		}
	}
	for _, name := range mentioned.FindAllString(doc, -1) {
		if !tests[name] {
			t.Errorf("docs/clouds/adding.md names %s, which there is not", name)
		}
	}
	for name := range tests {
		if n := name[len("TestFieldReport"):][:2]; n < "01" || n > fmt.Sprint(fieldReports) {
			t.Errorf("%s: there is no such field report", name)
		}
	}
}

var mentioned = regexp.MustCompile(`\bTestFieldReport[0-9]{2}_[A-Za-z0-9_]+`)
