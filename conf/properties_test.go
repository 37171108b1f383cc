// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// TestPropertiesGrammar has what java.util.Properties of OpenJDK 17 answers for the same bytes. Package readback's tests ask it.
func TestPropertiesGrammar(t *testing.T) {
	tests := []struct {
		name, src string
		want      map[string]string
	}{
		{"plain", "a=1\nb=2\n", map[string]string{"a": "1", "b": "2"}},
		{"separators", "a = 1\nb: 2\nc 3\nd\t:\t4\ne  =  = 5\n", map[string]string{"a": "1", "b": "2", "c": "3", "d": "4", "e": "= 5"}},
		{"last duplicate wins", "a=1\na=2\n", map[string]string{"a": "2"}},
		{"comments", "#a=1\n  !b=2\nc=#3\n", map[string]string{"c": "#3"}},
		{"no newline at the end", "a=1\nb=", map[string]string{"a": "1", "b": ""}},
		{"crlf", "a=1\r\nb=2\r\n", map[string]string{"a": "1", "b": "2"}},
		{"cr", "a=1\rb=2\r", map[string]string{"a": "1", "b": "2"}},
		{"key alone", "a\nb\n", map[string]string{"a": "", "b": ""}},
		{"continuation", "a=1\\\n   2\\\r\n\t3\nb=4", map[string]string{"a": "123", "b": "4"}},
		{"continuation at the end", "a=1\\", map[string]string{"a": "1"}},
		{"continuation then end", "a=1\\\n", map[string]string{"a": "1"}},
		{"an empty line ends a continuation", "a=1\\\n\nb=2", map[string]string{"a": "1", "b": "2"}},
		{"a comment sign behind a continuation is text", "a=1\\\n#2\nb=3", map[string]string{"a": "1#2", "b": "3"}},
		{"a comment behind a lone backslash is a comment", "\\\n#a=1\nb=2", map[string]string{"b": "2"}},
		{"two backslashes are no continuation", "a=1\\\\\nb=2", map[string]string{"a": `1\`, "b": "2"}},
		{"escapes", `a=\t\n\r\f\\\s\:\=` + "\n", map[string]string{"a": "\t\n\r\f\\s:="}},
		{"unicode escapes", `a=\u00e4\u20AC\uD83D\uDE00`, map[string]string{"a": "ä€😀"}},
		{"latin-1", "a=\xe4\n", map[string]string{"a": "ä"}},
		{"escaped key", `a\=b\:c\ d=1`, map[string]string{"a=b:c d": "1"}},
		{"trailing spaces belong to the value", "a=1  \n", map[string]string{"a": "1  "}},
		{"leading spaces do not", "  a=   1\n", map[string]string{"a": "1"}},
		{"form feed is a blank", "a\f=\f1\n", map[string]string{"a": "1"}},
		{"empty", "", map[string]string{}},
		{"only spaces", " \n\t\n", map[string]string{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := ParseProperties([]byte(tt.src))
			must.OK(t, err)
			must.NoDiff(t, "values", properties(t, []byte(tt.src)), tt.want)
			must.Equal(t, "printed back", string(p.Bytes()), tt.src)
		})
	}
}

func TestPropertiesMalformedEscape(t *testing.T) {
	for _, src := range []string{`a=1` + "\n" + `b=\u12`, "\n" + `b\uZZZZ=1`} {
		_, err := ParseProperties([]byte(src))
		want := `line 2: malformed \uxxxx escape`
		if err == nil || err.Error() != want {
			t.Errorf("ParseProperties(%q) = %v, want %s", src, err, want)
		}
	}
}

func TestPropertiesSet(t *testing.T) {
	tests := []struct{ name, src, key, value, want string }{
		{"replaces the value only", "# c\na = 1\nb=2\n", "a", "9", "# c\na = 9\nb=2\n"},
		{"equal value changes nothing", "a=x\\:y\n", "a", "x:y", "a=x\\:y\n"},
		{"the duplicate that wins", "a=1\na=2\n", "a", "3", "a=1\na=3\n"},
		{"a comment that looks like it", "#a=1\nmya=2\na=3\n", "a", "4", "#a=1\nmya=2\na=4\n"},
		{"crlf stays", "a=1\r\nb=2\r\n", "a", "9", "a=9\r\nb=2\r\n"},
		{"over a continuation", "a=1\\\n  2\nb=3\n", "a", "9", "a=9\nb=3\n"},
		{"key alone", "a\nb=1\n", "a", "9", "a=9\nb=1\n"},
		{"key alone to empty", "a\nb=1\n", "a", "", "a\nb=1\n"},
		{"blank separator, value begins with a sign", "a 1\n", "a", "=9", "a \\=9\n"},
		{"appends with a newline", "a=1\n", "b", "2", "a=1\nb=2\n"},
		{"appends without a newline", "a=1", "b", "2", "a=1\nb=2"},
		{"appends crlf", "a=1\r\n", "b", "2", "a=1\r\nb=2\r\n"},
		{"appends behind an open continuation", "a=1\\", "b", "2", "a=1\\\n\nb=2"},
		{"appends behind an open continuation with newline", "a=1\\\n", "b", "2", "a=1\\\n\nb=2\n"},
		{"appends behind an open continuation with spaces", "a=1\\\n  ", "b", "2", "a=1\\\n  \n\nb=2"},
		{"appends to nothing", "", "b", "2", "b=2\n"},
		{"escapes what must be", "a=1\n", "a", " b\\c\td\u00e9😀", "a=\\ b\\\\c\\td\\u00E9\\uD83D\\uDE00\n"},
		{"leaves alone what need not", "a=1\n", "a", "mongodb://u:p%40@h/?x=1&y=2#!", "a=mongodb://u:p%40@h/?x=1&y=2#!\n"},
		{
			"behind JSON over lines without backslashes", "settings.x={\n  \"a\": 1,\n  \"list\": [\n    2\n  ]\n}\ndb.host=a\n", "db.host", "b",
			"settings.x={\n  \"a\": 1,\n  \"list\": [\n    2\n  ]\n}\ndb.host=b\n",
		},
		{"before JSON over lines", "db.host=a\nx={\n\"db\": \"db.host=c\"}\n", "db.host", "b", "db.host=b\nx={\n\"db\": \"db.host=c\"}\n"},
		{"appended again with other separators", "db.host=a\ndb.host : b\ndb.host\tc\n", "db.host", "d", "db.host=a\ndb.host : b\ndb.host\td\n"},
		{"appended behind a line without an end", "x=truedb.host=a\n", "db.host", "b", "x=truedb.host=a\ndb.host=b\n"},
		{"strange key", "a=1\n", "x y=:#", "2", "a=1\nx\\ y\\=\\:#=2\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := ParseProperties([]byte(tt.src))
			must.OK(t, err)
			p.Set(tt.key, tt.value, nil)
			must.Equal(t, "the file", string(p.Bytes()), tt.want)
			must.Equal(t, "read back", properties(t, p.Bytes())[tt.key], tt.value)
		})
	}
}

func TestPropertiesSetTwice(t *testing.T) {
	p, err := ParseProperties([]byte("a=1\n"))
	must.OK(t, err)
	p.Set("a", "2", nil)
	p.Set("b", "3", nil)
	p.Set("a", "1", nil)
	p.Set("b", "4", nil)
	must.Equal(t, "the file", string(p.Bytes()), "a=1\nb=4\n")
	must.Equal(t, "spans", len(p.Spans()), 1) // a is what it was
}

func FuzzProperties(f *testing.F) {
	for _, s := range []string{"a=1\n", "a\\\n b:c", "#x\r\n!y\r\na b\\", "a=\\u00e4", "\\\n#", "a=1\\\n  ", "a\na\n=\n :\n"} {
		f.Add([]byte(s), "a", "v")
		f.Add([]byte(s), "new key", " =\\\u00e9\n")
	}
	f.Fuzz(func(t *testing.T, src []byte, key, value string) {
		p, err := ParseProperties(src)
		if err != nil {
			return
		}
		if !bytes.Equal(p.Bytes(), src) {
			t.Fatalf("%q printed back as %q", src, p.Bytes())
		}
		if key == "" || key != strings.ToValidUTF8(key, "\ufffd") || value != strings.ToValidUTF8(value, "\ufffd") {
			return
		}
		original := properties(t, src)
		p.Set(key, value, nil)
		out := p.Bytes()
		want := maps.Clone(original)
		want[key] = value
		must.NoDiff(t, fmt.Sprintf("%q after Set(%q, %q): %q", src, key, value, out), properties(t, out), want)
		if n := len(p.Spans()); n > 1 {
			t.Fatalf("one edit made %d spans", n)
		}
		rec := recordOf(KindProperties, src, p)
		u, err := rec.Undo(out)
		if err != nil || !bytes.Equal(u.Bytes, src) {
			t.Fatalf("%q: undone to %q, %v", src, u.Bytes, err)
		}
		// An unrelated line in front: our span must be found again.
		if _, taken := want["zz.unrelated"]; taken {
			return
		}
		moved := append([]byte("zz.unrelated=1\n"), out...)
		u, err = rec.Undo(moved)
		must.OK(t, err)
		undone := properties(t, u.Bytes)
		for k, was := range original {
			must.Equal(t, fmt.Sprintf("%q: key %q after undoing a moved file", src, k), undone[k], was)
		}
	})
}
