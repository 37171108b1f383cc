// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/redact"
)

func TestDiffMasksSecrets(t *testing.T) {
	before := "a=1\nclusterdb.host=localhost\ndb.password=old secret\nserver.jwtServerSecretKey=k\\\n  ey\nb=2\n"
	after := "a=1\nclusterdb.host=mongodb://me:p%40ss@h1,h2/?a=b\ndb.password=new secret\nserver.jwtServerSecretKey=k\\\n  ey\nb=2\n"
	got := Diff("/ams/conf/red5.properties", KindProperties, []byte(before), []byte(after))
	want := `--- a/ams/conf/red5.properties
+++ b/ams/conf/red5.properties
@@ -1,5 +1,5 @@
 a=1
-clusterdb.host=localhost
-db.password=***
+clusterdb.host=mongodb://me:***@h1,h2/?a=b
+db.password=*** (another one)
 server.jwtServerSecretKey=***
 b=2
`
	must.NoDiff(t, "the files", got, want)
	if got := Diff("/etc/amsagent/mongo", KindWhole, nil, []byte("me:s3cret@h1/?x=y\n")); strings.Contains(got, "s3cret") {
		t.Errorf("a string without a scheme leaks:\n%s", got)
	}
	if got := Diff("/f", KindContainer, []byte("<a/>"), []byte(`<a v="mongodb://u:s3c@ret@h/"/>`)); strings.Contains(got, "s3c") || strings.Contains(got, "ret@") {
		t.Errorf("XML leaks:\n%s", got)
	}
}

// A password may hold what ends a word elsewhere. That of a former join is among no known secrets, so only its place
// shows what it is.
func TestFormerPasswordMasked(t *testing.T) {
	const path, now = "/red5.properties", "mongodb://u:other@h/x"
	for _, tt := range []struct{ former, shown string }{
		{"mongodb://u:pa'ss22@h/x", "mongodb://u:***@h/x"},
		{`mongodb://u:pa"ss22@h/x`, "mongodb://u:***@h/x"},
		{"mongodb://u:pa`ss22@h/x", "mongodb://u:***@h/x"},
		{"mongodb://u:pa<ss22>@h/x", "mongodb://u:***@h/x"},
		{"mongodb://u:pa ss22@h/x", "mongodb://u:***@h/x"},
		{"u:pa'ss22@h/x", "u:***@h/x"},
		{"mongodb://u:mypass=ss22@h/x", "mongodb://u:***"},
		{"u:pa'ss22@h,mongodb://h2:1/x", "u:***@h,mongodb://h2:1/x"},
		{"mongodb://u@h/?authMechanismProperties=AWS_SESSION_TOKEN:ss22&w=1", "mongodb://u@h/?authMechanismProperties=***&w=1"},
		{"mongodb://u@h/?proxyPassword=a'ss22&w=1", "mongodb://u@h/?proxyPassword=***&w=1"},
	} {
		before, after := []byte("a=1\ndb.host="+tt.former+"\n"), []byte("a=1\ndb.host="+now+"\n")
		said := Diff(path, KindProperties, before, after)
		for _, d := range (PlannedFile{Before: File{Path: path, Bytes: before, Mode: 0o644}, After: after, Mode: 0o644, Kind: KindProperties}).Differences() {
			if said += d.String(); d.Old != tt.shown {
				t.Errorf("%s is shown as %s, want %s", tt.former, d.Old, tt.shown)
			}
		}
		// In a comment, and where the file does not parse; a word ends at a blank and at a tag there.
		if !strings.ContainsAny(tt.former, " <") {
			said += string(Redact(KindProperties, []byte("#db.host="+tt.former+"\n"))) + string(Redact(KindProperties, append(before, "c=\\u12\n"...)))
		}
		if strings.Contains(said, "ss22") || !strings.Contains(said, "-db.host="+tt.shown) {
			t.Errorf("%s:\n%s", tt.former, said)
		}
	}
	if got := string(Redact(KindContainer, []byte(`<a u='mongodb://u:pa"ss22@h'/><b c='d:e'/>`))); got != `<a u='mongodb://u:***@h'/><b c='d:e'/>` {
		t.Errorf("XML: %s", got)
	}
}

// Twelve kinds of secrets that files have beside the line that changes: in comments, under the vendor's own names, in XML.
func TestDiffShowsNoSecret(t *testing.T) {
	const secret = "hunter2"
	for _, line := range []string{
		"rtmps.keystorepass=%s", "jmx.keystorepass=%s", "server_key_pass=%s", "db.pwd=%s", "apiKey=%s", "srt.passphrase: %s",
		"privateKey=%s", "jwtKey=%s", "#clusterdb.password=%s", "# mongodb://u:%s@h/", "! db.password %s", "s3.accessKey=a\\\n  %s",
		"clusterCommunicationKey=%s", `settings.note={"private_key"\: "%s", "x"\:1}`,
	} {
		line = fmt.Sprintf(line, secret)
		before := "a=1\n" + line + "\nb=2\n"
		got := Diff("/f", KindProperties, []byte(before), []byte(strings.Replace(before, "a=1", "a=2", 1)))
		if strings.Contains(got, secret) || !strings.Contains(got, " b=2") || !strings.Contains(got, redact.Placeholder) {
			t.Errorf("%s:\n%s", line, got)
		}
		// The same where the file does not parse.
		if got := string(Redact(KindProperties, []byte(before+"c=\\u12\n"))); strings.Contains(got, secret) || !strings.Contains(got, "c=\\u12") {
			t.Errorf("in a broken file:\n%s", got)
		}
	}
	for _, line := range []string{
		`<bean id="b"><property name="password" value="hunter2"/></bean>`,
		"<property name=\"keystorePass\">\n<value>hunter2</value>\n</property>",
		`<!-- <entry key="apiKey" value="hunter2"/> -->`,
		`<Connector keystorePass='hunter2' port="5443"/>`,
	} {
		before := "<beans>\n<a/>\n" + line + "\n</beans>\n"
		got := Diff("/f", KindContainer, []byte(before), []byte(strings.Replace(before, "<a/>", "<b/>", 1)))
		if strings.Contains(got, secret) || !strings.Contains(got, redact.Placeholder) {
			t.Errorf("%s:\n%s", line, got)
		}
	}
}

func TestDifferences(t *testing.T) {
	f := PlannedFile{
		Kind: KindProperties, Mode: 0o640,
		Before: File{Path: "/p", Mode: 0o640, Bytes: []byte("db.host=mongodb\\://u\\:one@h\nsame=\\u00e4\njwtSecretKey=a\ngone=1\n")},
		After:  []byte("db.host=mongodb://u:two@h\nsame=\\u00E4\njwtSecretKey=b\nnew=\n"),
	}
	var got []string
	for _, d := range f.Differences() {
		got = append(got, d.String())
	}
	want := []string{
		"/p: db.host is mongodb://u:***@h, must be mongodb://u:*** (another one)@h",
		"/p: gone is 1, must be (missing)",
		"/p: jwtSecretKey is ***, must be *** (another one)",
		"/p: new is (missing), must be (empty)",
	}
	must.NoDiff(t, "the files", got, want)
}

// The server's user writes the values: the shown part is short, and
// different values are not shown the same.
func TestDifferencesBounded(t *testing.T) {
	long := strings.Repeat("ä", 100_000)
	f := PlannedFile{
		Kind:   KindProperties,
		Before: File{Path: "/p", Bytes: []byte("a=x" + long + "\nsame=" + long + "1\npassword=" + long + "\nk" + long + "=1\n")},
		After:  []byte("a=" + long + "\nsame=" + long + "2\npassword=" + long + "1\n"),
	}
	list := f.Differences()
	if len(list) != 4 {
		t.Fatalf("%d differences", len(list))
	}
	for _, d := range list {
		if d.Old == d.New {
			t.Errorf("%.20s: both are %q", d.Key, d.Old)
		}
		for _, text := range []string{d.Key, d.Old, strings.TrimSuffix(d.New, another)} {
			if len(text) > maxShown || !utf8.ValidString(text) {
				t.Errorf("%.20s: %d bytes, %q at the end", d.Key, len(text), text[max(0, len(text)-10):])
			}
		}
	}
}
