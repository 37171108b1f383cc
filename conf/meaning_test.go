// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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
		if got := sameMeaning(KindProperties, []byte(plain), []byte(tt.other)); got != tt.same {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.same)
		}
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
		if got := sameMeaning(KindContainer, []byte(plain), []byte(tt.other)); got != tt.same {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.same)
		}
	}
}

// stored is how java.util.Properties.store writes a file of the server.
func stored(t *testing.T, src []byte) []byte {
	t.Helper()
	p, err := ParseProperties(src)
	must.OK(t, err)
	escape := strings.NewReplacer(`\`, `\\`, ":", `\:`, "=", `\=`, "#", `\#`, "!", `\!`, "\t", `\t`, "\n", `\n`)
	b := bytes.NewBufferString("#Sat Nov 21 00:34:56 UTC 2026\n")
	keys := p.Keys()
	for i := range keys {
		key := keys[len(keys)-1-i]
		value, _ := p.Get(key)
		b.WriteString(escape.Replace(key) + "=" + escape.Replace(value) + "\n")
	}
	b.WriteString("written.by.the.server=true\n")
	return b.Bytes()
}

// The server saves every settings file at each start. That is no change, and the
// record that undoes the join stays valid.
func TestPlanAfterServerStored(t *testing.T) {
	const host = "mongodb://u:p@10.0.0.1:27017/?authSource=admin&w=1"
	s := newTree(t)
	must.OK(t, planCluster(t, s, host).Commit("join"))
	rewritten := map[string]string{}
	for _, path := range propertyPaths {
		f, err := s.Read(path)
		must.OK(t, err)
		rewritten[path] = string(stored(t, f.Bytes))
		must.OK(t, os.WriteFile(filepath.Join(s.Root, f.Target), []byte(rewritten[path]), f.Mode))
	}
	before := snapshot(t, s)
	again := planCluster(t, s, host)
	for _, f := range again.Changed() {
		t.Errorf("%s is planned as changed:\n%s", f.Before.Path, f.Diff())
	}
	must.OK(t, again.Commit("join"))
	if d := cmp.Diff(before, snapshot(t, s)); d != "" {
		t.Errorf("a second join wrote (-before +after):\n%s", d)
	}

	// One file differs in fact: it alone is written, and the records of the others stay.
	replaceIn(t, s, "/ams/conf/red5.properties", "mongodb", "mangodb")
	again = planCluster(t, s, host)
	if got := again.Changed(); len(got) != 1 || got[0].Before.Path != "/ams/conf/red5.properties" {
		t.Fatalf("changed: %d files", len(got))
	}
	must.OK(t, again.Commit("join"))
	if len(planCluster(t, s, host).Changed()) > 0 {
		t.Error("the plan after that changes something")
	}

	// Another database, reverted after the server has stored the files again.
	second := planCluster(t, s, "10.0.0.2")
	must.OK(t, second.Commit("join"))
	for _, path := range propertyPaths {
		f, err := s.Read(path)
		must.OK(t, err)
		must.OK(t, os.WriteFile(filepath.Join(s.Root, f.Target), stored(t, f.Bytes), f.Mode))
	}
	if conflicts, err := second.Revert("rollback"); err != nil || len(conflicts) > 0 {
		t.Fatal(err, conflicts)
	}
	if len(planCluster(t, s, host).Changed()) > 0 {
		t.Error("the rollback did not lead back to the first join's values")
	}
	undoAll(t, s)
	for _, path := range propertyPaths {
		f, err := s.Read(path)
		must.OK(t, err)
		p, err := ParseProperties(f.Bytes)
		must.OK(t, err)
		for key, want := range map[string]string{"db.host": "localhost", "clusterdb.host": "localhost", "db.type": "mapdb", "written.by.the.server": "true"} {
			if got, ok := p.Get(key); ok && got != want {
				t.Errorf("%s: %s is %q after the undo, want %q", path, key, got, want)
			}
		}
		if _, ok := p.Get("added.key"); ok {
			t.Errorf("%s: the key that join added is still there", path)
		}
	}
}

// A file that only has to leave the world's sight keeps its bytes, and its record.
func TestPlanChangesModeAlone(t *testing.T) {
	s := newTree(t)
	original := snapshot(t, s)
	must.OK(t, planCluster(t, s, "h:1").Commit("join"))
	const path = "/ams/webapps/Live App/WEB-INF/red5-web.properties"
	f, err := s.Read(path)
	must.OK(t, err)
	real := filepath.Join(s.Root, path)
	saved := stored(t, f.Bytes)
	must.OK(t, os.WriteFile(real, saved, 0o640))
	must.OK(t, os.Chmod(real, 0o664))
	must.OK(t, planCluster(t, s, "h:1").Commit("join"))
	if now, err := s.Read(path); err != nil || !bytes.Equal(now.Bytes, saved) || now.Mode != 0o660 {
		t.Errorf("mode %o, %v; same bytes: %v", now.Mode, err, bytes.Equal(now.Bytes, saved))
	}
	undoAll(t, s)
	after := snapshot(t, s)
	if !strings.Contains(after[path], "db.host=localhost\n") || !strings.HasPrefix(after[path], "-rw-rw-r--") {
		t.Errorf("after the undo: %q", after[path])
	}
	delete(original, path)
	delete(after, path)
	if d := cmp.Diff(original, after); d != "" {
		t.Errorf("other files (-want +got):\n%s", d)
	}
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
