// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

func TestProperties(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, in string
		want     map[string]string
	}{
		{"separators", "a=1\nb:2\nc 3\nd\t=\t4\ne : 5\nf\n", map[string]string{"a": "1", "b": "2", "c": "3", "d": "4", "e": "5", "f": ""}},
		{"the last wins", "a=1\na=2\n", map[string]string{"a": "2"}},
		{"comments", "#a=1\n  !b=2\n\n   \t\nc=#3\n", map[string]string{"c": "#3"}},
		{"trailing blanks belong to the value", "a=1  \n", map[string]string{"a": "1  "}},
		{"no newline at the end", "a=1", map[string]string{"a": "1"}},
		{"CRLF and CR", "a=1\r\nb=2\rc=3", map[string]string{"a": "1", "b": "2", "c": "3"}},
		{"continuation", "a=1\\\n   2\\\r\n 3\nb=4", map[string]string{"a": "123", "b": "4"}},
		{"a comment is not continued", "#x\\\na=1", map[string]string{"a": "1"}},
		{"a continued line may begin with #", "a=1\\\n#2", map[string]string{"a": "1#2"}},
		{"two backslashes do not continue", "a=1\\\\\nb=2", map[string]string{"a": "1\\", "b": "2"}},
		{"escapes", `a=\t\n\r\f\\\:\=\s`, map[string]string{"a": "\t\n\r\f\\:=s"}},
		{"an unknown escape loses its backslash", `p=p&a/s\s`, map[string]string{"p": "p&a/ss"}},
		{"unicode", `a=w\u00f6rd \ud83d\ude00`, map[string]string{"a": "wörd 😀"}},
		{"latin-1", "a=\xf6", map[string]string{"a": "ö"}},
		{"separators in keys", `a\ b\:c\=d=1`, map[string]string{"a b:c=d": "1"}},
		{"saved by the panel", "db.host=mongodb\\://u\\:p%40ss@h/?a\\=b", map[string]string{"db.host": "mongodb://u:p%40ss@h/?a=b"}},
		{"backslash at the very end", "a=1\\", map[string]string{"a": "1"}},
		{"empty", "", map[string]string{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := parseProperties([]byte(tt.in))
			must.OK(t, err)
			must.NoDiff(t, "properties", got, tt.want)
		})
	}
	for _, bad := range []string{`a=\u12`, `a=\u12g4`, `a=\u+123`} {
		if got, err := parseProperties([]byte(bad)); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
}

func FuzzProperties(f *testing.F) {
	f.Add([]byte("a=1\\\n  b : c\r\n#d\n\\u0041=\\t"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = parseProperties(b) // must not panic
	})
}

func TestMongoURI(t *testing.T) {
	t.Parallel()
	const full, srv = "mongodb://u:p%40@h:1/?x=y", "mongodb+srv://u:p@h"
	tests := []struct {
		release              string
		store                bool
		host, user, password string
		want                 string
	}{
		{"3.0.3", false, "10.0.0.1", "", "", "mongodb://10.0.0.1"},
		{"3.0.3", false, full, "", "", full},
		{"3.0.3", false, srv, "", "", srv},
		{"3.0.3", false, "10.0.0.1", "u", "p", "mongodb://10.0.0.1"}, // not read any more
		{"3.0.3", true, "10.0.0.1", "u", "p", "mongodb://u:p@10.0.0.1"},
		{"3.0.3", true, full, "u", "p", full},
		{"2.17.1", false, "h", "u", "p@", "mongodb://u:p@@h"}, // not encoded
		{"2.4.3", false, "mongodb1.example", "", "", "mongodb://mongodb1.example"},
		{"2.4.3", false, full, "", "", full},
		{"2.4.2.1", false, "mongodb1.example", "", "", "mongodb1.example"}, // broken there
		{"2.4.2", false, full, "", "", full},
		{"2.4.1", false, srv, "", "", srv},
		{"2.4.1", false, full, "", "", "mongodb://" + full},
		{"2.4.0", false, srv, "", "", "mongodb://" + srv},
		{"1.9.0", false, "u:p%40ss@h1,h2/?replicaSet=rs0", "", "", "mongodb://u:p%40ss@h1,h2/?replicaSet=rs0"},
		{"2.13.0-SNAPSHOT", false, full, "", "", full},
	}
	for _, tt := range tests {
		r, err := parseRelease(tt.release)
		must.OK(t, err)
		must.Equal(t, fmt.Sprintf("release %s, store %v, host %q", tt.release, tt.store, tt.host), mongoURI(r, tt.store, tt.host, tt.user, tt.password), tt.want)
	}
}

// The corpus holds the real files of many releases; it lies beside the repository
// on some machines.
func TestCorpusIsReadable(t *testing.T) {
	t.Parallel()
	dirs, err := filepath.Glob("../../../shared/corpus/ams/*")
	if err != nil || len(dirs) == 0 {
		t.Skip("the tier corpus, without its folder ../shared/corpus (docs/testing.md)")
	}
	for _, dir := range dirs {
		version := filepath.Base(dir)
		if version == "3.0.3-panel-saved" {
			version = "3.0.3"
		}
		in, err := readInstallation(dir, version)
		if err != nil {
			t.Errorf("%s: %v", dir, err)
			continue
		}
		// The panel-saved tree is a cluster's as far as its values go, not its beans.
		if in.cluster || in.httpPort != 5080 || len(in.apps) < 2 {
			t.Errorf("%s: cluster %v, port %d, %d applications", dir, in.cluster, in.httpPort, len(in.apps))
		}
	}
}

func TestContainer(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, in string
		ok       bool
	}{
		{"good", `<beans><!-- c --><bean id="a" class="${x:1}"/></beans>`, true},
		{"unclosed", `<beans><bean>`, false},
		{"two dashes in a comment", `<beans><!-- a -- b --></beans>`, false},
		{"nested comment", `<beans><!-- a <!-- b --> c --></beans>`, false},
		{"comment that ends with a dash", `<beans><!-- a ---></beans>`, false},
		{"two roots", `<beans/><beans/>`, false},
		{"text behind the root", `<beans/> cluster end -->`, false},
		{"text where elements belong", `<beans><bean> cluster end --> </bean></beans>`, false},
		{"text in a description", `<beans><bean><description>x</description></bean></beans>`, true},
		{"empty", ``, false},
		{"only a comment", `<!-- a -->`, false},
		{"bad attribute", `<beans a=b/>`, false},
		{"BOM", "\uFEFF<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<beans/>", true},
	}
	for _, tt := range tests {
		file := filepath.Join(t.TempDir(), "x.xml")
		must.OK(t, os.WriteFile(file, []byte(tt.in), 0o644))
		if _, err := readContainer(file); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
