// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

func digest(t *testing.T, kind Kind, src string) string {
	t.Helper()
	d, err := DigestFile(kind, []byte(src), func(key string) bool { return key == "own" })
	must.OK(t, err)
	if len(d) != 2*digestSize {
		t.Errorf("%q", d)
	}
	return d
}

// Properties with one meaning have one digest, whatever their spelling; those that must differ between nodes do not count.
func TestDigestProperties(t *testing.T) {
	const base = "cors=https://a.example\nport=5080\nhost=10.0.0.5\nown=1\nserver.licence_key=one\nuri=mongodb://u:secret@h1/?x=y\n"
	want := digest(t, KindProperties, base)
	for name, src := range map[string]string{
		"order, comments and escapes": "#Fri Nov 20 06:08:30 UTC 2026\nuri=mongodb\\://u\\:secret@h1/?x\\=y\n! a\nserver.licence_key : one\nown=1\nhost 10.0.0.5\nport = 5\\\n  080\ncors=https\\://\\u0061.example\n",
		"line ends":                   strings.ReplaceAll(base, "\n", "\r\n"),
		"trailing spaces":             strings.ReplaceAll(base, "5080\n", "5080  \n"),
		"an earlier line":             "port=1\n" + base,
		"another address":             strings.ReplaceAll(base, "10.0.0.5", "fd00::7"),
		"another secret":              strings.ReplaceAll(base, "one", "two"),
		"another password":            strings.ReplaceAll(base, "secret", "hush"),
		"its own key":                 strings.ReplaceAll(base, "own=1\n", ""),
	} {
		must.Equal(t, name, digest(t, KindProperties, src), want)
	}
	for name, src := range map[string]string{
		"a value":           strings.ReplaceAll(base, "a.example", "b.example"),
		"a missing key":     strings.ReplaceAll(base, "port=5080\n", ""),
		"one more key":      base + "x=\n",
		"no secret":         strings.ReplaceAll(base, "one", ""),
		"a host behind one": strings.ReplaceAll(base, "@h1", "@h2"),
		"a loopback":        strings.ReplaceAll(base, "10.0.0.5", "127.0.0.1"),
		"all addresses":     strings.ReplaceAll(base, "10.0.0.5", "0.0.0.0"),
	} {
		if got := digest(t, KindProperties, src); got == want {
			t.Errorf("%s: the same digest", name)
		}
	}
	if d, err := DigestFile(KindProperties, []byte(`a=\u12`), nil); err == nil || d != "" {
		t.Errorf("malformed: %q, %v", d, err)
	}
}

func TestDigestContainer(t *testing.T) {
	const base = `<beans><bean id="a" class="A"><property name="x" value="1"/><entry key="keystorePass" value="one"/></bean>` +
		`<property name="password"><value>secret</value></property></beans>`
	want := digest(t, KindContainer, base)
	for name, src := range map[string]string{
		"comments, spaces and order": "<beans>\n\t<!-- x -->\n<bean class='A' id='a'>\n<property value='1' name='x'></property><entry key=\"keystorePass\" value=\"one\"/></bean><property name=\"password\"><value>secret</value></property></beans>",
		"a secret attribute":         strings.ReplaceAll(base, "one", "two"),
		"a secret text":              strings.ReplaceAll(base, "secret", "hush"),
	} {
		must.Equal(t, name, digest(t, KindContainer, src), want)
	}
	for name, src := range map[string]string{
		"a value":         strings.ReplaceAll(base, `"1"`, `"2"`),
		"one bean less":   strings.ReplaceAll(base, `<property name="x" value="1"/>`, ""),
		"a comment ended": strings.ReplaceAll(base, "</beans>", "<a/></beans>"),
	} {
		if got := digest(t, KindContainer, src); got == want {
			t.Errorf("%s: the same digest", name)
		}
	}
	if _, err := DigestFile(KindContainer, []byte("<beans>"), nil); err == nil {
		t.Error("no error although the file is cut")
	}
}
