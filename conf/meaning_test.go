// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

func TestSameProperties(t *testing.T) {
	const plain = "db.type=mongodb\ndb.host=mongodb://u:p@h/?a=b\nname=L\\u00E4rm\n"
	tests := []struct {
		name, other string
		same        bool
	}{
		{"escaped signs", "db.type=mongodb\ndb.host=mongodb\\://u\\:p@h/?a\\=b\nname=L\\u00e4rm\n", true},
		{"order, a date and a comment", "#Sat Nov 21 00:34:56 UTC 2026\nname=L\\u00E4rm\n! note\ndb.host=mongodb://u:p@h/?a=b\ndb.type=mongodb\n", true},
		{"whitespace and other separators", "  db.type : mongodb\ndb.host mongodb\\://u:p@h/?a=b\nname\t=  L\\u00e4rm\n", true},
		{"continuation lines", "db.type=mon\\\n   godb\ndb.host=mongodb://u:p@h\\\n/?a=b\nname=L\\u00e4rm\n", true},
		{"carriage returns", strings.ReplaceAll(plain, "\n", "\r\n"), true},
		{"Latin-1", "db.type=mongodb\ndb.host=mongodb://u:p@h/?a=b\nname=L\xe4rm", true},
		{"the last duplicate wins", "db.type=mapdb\n" + plain, true},
		{"the last duplicate is another one", plain + "db.type=mapdb\n", false},
		{"a trailing blank is part of a value", strings.Replace(plain, "=mongodb\n", "=mongodb \n", 1), false},
		{"a key more", plain + "x=\n", false},
		{"a key less", "db.type=mongodb\ndb.host=mongodb://u:p@h/?a=b\n", false},
		{"another key", strings.Replace(plain, "name", "nam", 1), false},
		{"malformed escape", plain + "# \nx=\\u00\n", false},
		{"empty", "", false},
	}
	for _, tt := range tests {
		must.Equal(t, tt.name, sameMeaning(KindProperties, []byte(plain), []byte(tt.other)), tt.same)
	}
}

func TestSameBeans(t *testing.T) {
	const plain = `<beans a="1" b="2"><bean id="x"><value>a &amp; b</value></bean></beans>`
	tests := []struct {
		name, other string
		same        bool
	}{
		{"attribute order and quotes", `<beans b='2'  a="1"><bean id="x" ><value>a &amp; b</value></bean></beans>`, true},
		{"CDATA", `<beans a="1" b="2"><bean id="x"><value><![CDATA[a & b]]></value></bean></beans>`, true},
		{"entities", `<beans a="&#49;" b="2"><bean id="x"><value>a &#x26; b</value></bean></beans>`, true},
		{"split text", `<beans a="1" b="2"><bean id="x"><value>a <!-- and --><![CDATA[&]]> b</value></bean></beans>`, true},
		{"whitespace and comments", "<beans a=\"1\" b=\"2\">\n\t<!-- note -->\n <bean id=\"x\">\n<value>a &amp; b</value></bean>\n</beans>\n", true},
		{"other text", `<beans a="1" b="2"><bean id="x"><value>a &amp; c</value></bean></beans>`, false},
		{"other value", `<beans a="1" b="3"><bean id="x"><value>a &amp; b</value></bean></beans>`, false},
		{"commented out", `<beans a="1" b="2"><!-- <bean id="x"><value>a &amp; b</value></bean> --></beans>`, false},
		{"no XML", `<beans a="1" b="2"><bean id="x">`, false},
	}
	for _, tt := range tests {
		must.Equal(t, tt.name, sameMeaning(KindContainer, []byte(plain), []byte(tt.other)), tt.same)
	}
}

// javaDate is the first line of a file that Java stored.
const javaDate = "#Sat Nov 21 00:34:56 UTC 2026\n"

// stored is how java.util.Properties.store writes a file of the server.
func stored(t *testing.T, src string) string {
	t.Helper()
	p, err := ParseProperties([]byte(src))
	must.OK(t, err)
	escape := strings.NewReplacer(`\`, `\\`, ":", `\:`, "=", `\=`, "#", `\#`, "!", `\!`, "\t", `\t`, "\n", `\n`)
	text := javaDate
	for _, key := range slices.Backward(p.Keys()) {
		value, _ := p.Get(key)
		text += escape.Replace(key) + "=" + escape.Replace(value) + "\n"
	}
	return text + "written.by.the.server=true\n"
}

// The server saves every settings file at each start. That is no change, and the
// record that undoes the join stays valid.
func TestPlanAfterServerStored(t *testing.T) {
	const host = "mongodb://u:p@10.0.0.1:27017/?authSource=admin&w=1"
	s := newTree(t)
	join(t, s, host)
	settings := []string{serverPath, appPath, rootTarget}
	store := func() {
		for _, path := range settings {
			put(t, s, path, stored(t, content(t, s, path)))
		}
	}
	store()
	before := snapshot(t, s)
	must.NoDiff(t, "files that a second join would change", planCluster(t, s, host).ChangedPaths(), []string(nil))
	join(t, s, host)
	must.NoDiff(t, "the files after a second join", snapshot(t, s), before)

	// One file differs in fact: it alone is written, and the records of the others stay.
	replaceIn(t, s, serverPath, "mongodb", "mangodb")
	must.NoDiff(t, "files that a join would change", planCluster(t, s, host).ChangedPaths(), []string{serverPath})
	join(t, s, host)
	must.NoDiff(t, "files that the next one would change", planCluster(t, s, host).ChangedPaths(), []string(nil))

	// Another database, reverted after the server has stored the files again.
	second := join(t, s, "10.0.0.2")
	store()
	if conflicts := reverted(t, second); len(conflicts) > 0 {
		t.Fatal(conflicts)
	}
	must.NoDiff(t, "files that differ from the first join's", planCluster(t, s, host).ChangedPaths(), []string(nil))
	undoAll(t, s)
	for _, path := range settings {
		got := properties(t, []byte(content(t, s, path)))
		for key, want := range map[string]string{"db.host": "localhost", "clusterdb.host": "localhost", "db.type": "mapdb", "written.by.the.server": "true"} {
			if value, ok := got[key]; ok && value != want {
				t.Errorf("%s: %s is %q after the undo, want %q", path, key, value, want)
			}
		}
		if _, ok := got["added.key"]; ok {
			t.Errorf("%s: the key that join added is still there", path)
		}
	}
}

// A file that only has to leave the world's sight keeps its bytes, and its record.
func TestPlanChangesModeAlone(t *testing.T) {
	s := newTree(t)
	original := snapshot(t, s)
	join(t, s, "h:1")
	saved := stored(t, content(t, s, appPath))
	put(t, s, appPath, saved)
	must.OK(t, os.Chmod(at(s, appPath), 0o664))
	join(t, s, "h:1")
	must.Equal(t, "the file", snapshot(t, s)[appPath], "-rw-rw---- "+saved)
	undoAll(t, s)
	after := snapshot(t, s)
	if !strings.Contains(after[appPath], "db.host=localhost\n") || !strings.HasPrefix(after[appPath], "-rw-rw-r--") {
		t.Errorf("after the undo: %q", after[appPath])
	}
	delete(original, appPath)
	delete(after, appPath)
	must.NoDiff(t, "the other files", after, original)
}

// FuzzSameMeaning compares two versions of a file as the daemon does each minute, whatever the server's user wrote: two
// that mean the same do so both ways round, and what is shown of them has bounds.
func FuzzSameMeaning(f *testing.F) {
	f.Add([]byte("a=b\n#c\n"), []byte("#Sat Nov 21 00:34:56 UTC 2026\na=\\u0062\n"))
	f.Add([]byte("password=x\\\n  y"), []byte("password: z"))
	f.Add([]byte(standaloneXML), []byte(clusterXML))
	f.Add([]byte("<beans><a b='c' d='e'>x<![CDATA[y]]></a></beans>"), []byte("<beans><a d=\"e\" b=\"c\">xy</a></beans>"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		for _, kind := range []Kind{KindProperties, KindContainer, KindHosts, KindWhole} {
			if !sameMeaning(kind, a, bytes.Clone(a)) {
				t.Errorf("%s: %q is not itself", kind, a)
			}
			if sameMeaning(kind, a, b) != sameMeaning(kind, b, a) {
				t.Errorf("%s: %q and %q are the same one way round only", kind, a, b)
			}
			p := PlannedFile{Before: File{Path: "/x", Bytes: a}, After: b, Kind: kind}
			_ = p.Diff()
			for _, d := range p.Differences() {
				if len(d.Key) > maxShown || len(d.Old) > maxShown+len(maskChanged) || len(d.New) > maxShown+len(maskChanged)+len(another) {
					t.Errorf("%s: %q and %q: shown %+v", kind, a, b, d)
				}
			}
		}
		_ = torn(nil, a)
	})
}
