// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"maps"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// properties reads a file as Java does, as a map.
func properties(t *testing.T, src []byte) map[string]string {
	t.Helper()
	p, err := ParseProperties(src)
	if err != nil {
		t.Fatalf("%q: %v", src, err)
	}
	out := map[string]string{}
	for _, k := range p.Keys() {
		out[k], _ = p.Get(k)
	}
	return out
}

// joinedProperties sets one key as a join does, and gives the record of it.
func joinedProperties(t *testing.T, src []byte, key, value string) (*FileRecord, []byte) {
	t.Helper()
	p, err := ParseProperties(src)
	if err != nil {
		t.Skip("no properties")
	}
	local := "localhost"
	p.Set(key, value, &local)
	written := p.Bytes()
	return recordOf(KindProperties, src, p), written
}

// recordOf is the record of an edit, as a plan makes it.
func recordOf(kind Kind, before []byte, edited interface {
	Bytes() []byte
	Spans() []Span
},
) *FileRecord {
	return newFileRecord("/x", kind, before, edited.Bytes(), edited.Spans(), File{})
}

// TestUndoKeepsTheNextLine: putting a value back takes no other line with it,
// and a value of ours is found again under another separator.
func TestUndoKeepsTheNextLine(t *testing.T) {
	for name, tt := range map[string]struct{ orig, from, to, want string }{
		"backslash at the end":        {`host \`, "", "\nkey=v\n", "host \nkey=v\n"},
		"backslash, blank line":       {"host=\\\n", "", "\nkey=v", "host=\nkey=v"},
		"backslash and CR":            {"host=\\\r", "", "\nkey=v", "host=\nkey=v"},
		"backslash and CR, CR after":  {"host=\\\r", "", "\rkey=v", "host=\rkey=v"},
		"two backslashes":             {`host=a\\`, "", "\nkey=v", "host=a\\\\\nkey=v"},
		"a blank for the sign":        {"host=a\n", "host=", "host ", "host a\n"},
		"a blank, value with a sign":  {"host=\\=a\n", "host=", "host ", "host \\=a\n"},
		"a sign for the blank":        {"host a\n", "host ", "host=", "host=a\n"},
		"a colon for the sign":        {"host=a\n", "host=", "host:", "host:a\n"},
		"no separator, then a blank":  {"host\n", "host=", "host ", "host \n"},
		"Java's spelling":             {"host=a\\:b\n", "", "key=v\n", "host=a\\:b\nkey=v\n"},
		"an escaped sign":             {"host=\\=a\n", "", "key=v\n", "host=\\=a\nkey=v\n"},
		"a blank, another sign":       {"host==a\n", "host=", "host ", "host \\=a\n"},
		"added behind a continuation": {"a=b\\", "", "\nkey=v\n", "a=b\\\n\nkey=v\n"},
	} {
		rec, written := joinedProperties(t, []byte(tt.orig), "host", "10.0.0.1")
		current := append(bytes.Clone(written), tt.to...)
		if tt.from != "" {
			current = bytes.Replace(written, []byte(tt.from), []byte(tt.to), 1)
		}
		u, err := rec.Undo(current)
		must.OK(t, err)
		noConflict(t, u.Conflicts)
		must.Equal(t, name, string(u.Bytes), tt.want)
	}
}

// TestUndoOfTwoLines: an operator appended a line of a key that the join had set. No line of ours stays, not even one
// that the server does not read: it may hold a password.
func TestUndoOfTwoLines(t *testing.T) {
	for name, tt := range map[string]struct{ orig, more, want string }{
		"added, and copied":           {"a=1\n", "host=10.0.0.1\n", "a=1\n"},
		"added, copied, open end":     {"a=1", "\nhost=10.0.0.1", "a=1"},
		"added, and a value before":   {"a=1\n", "host=b\nhost=10.0.0.1\n", "a=1\nhost=b\n"},
		"added, and a value behind":   {"a=1\n", "host=b\n", "a=1\nhost=localhost\n"},
		"changed, and copied":         {"host=a\n", "host=10.0.0.1\n", "host=a\n"},
		"changed, and restored":       {"host=a\n", "host=a\n", "host=a\n"},
		"changed, and a value behind": {"host=a\n", "x=1\nhost=b\n", "x=1\nhost=localhost\n"},
		"ours was there before":       {"host=10.0.0.1\nhost=a\n", "x=1\n", "host=10.0.0.1\nhost=a\nx=1\n"},
	} {
		rec, written := joinedProperties(t, []byte(tt.orig), "host", "10.0.0.1")
		u, err := rec.Undo(append(written, tt.more...))
		must.OK(t, err)
		must.Equal(t, name, string(u.Bytes), tt.want)
	}
}

// TestUndoHosts: our line goes, wherever others wrote around it.
func TestUndoHosts(t *testing.T) {
	const before, other = "127.0.0.1 localhost\n", "10.0.0.9 other\n"
	const former, line = "10.0.0.1\tnode\t# added by amsagent\n", "10.0.0.2\tnode\t# added by amsagent\n"
	for name, tt := range map[string]struct{ original, current, want string }{
		"our line":                     {before, before + line + other, before + other},
		"a file that we made":          {"", line + other, other},
		"a former line without an end": {strings.TrimSuffix(former, "\n"), line + other, former + other},
	} {
		rec := &FileRecord{Path: ownHosts, Kind: KindHosts, Existed: tt.original != "", Original: []byte(tt.original), Written: "another"}
		u, err := rec.Undo([]byte(tt.current))
		must.OK(t, err)
		noConflict(t, u.Conflicts)
		must.Equal(t, name, string(u.Bytes), tt.want)
		must.Equal(t, name+": it is removed", u.Remove, false)
	}
}

// FuzzUndo appends what a user of the machine may append after a join: undoing
// gives every key the value it had, and takes nothing of what was appended.
func FuzzUndo(f *testing.F) {
	f.Add([]byte(`clusterdb.host \`), []byte("\nkey=v\n"))
	f.Add([]byte("clusterdb.host=\\\r"), []byte("\nkey=v\r"))
	f.Add([]byte("a=b\r\nclusterdb.host : localhost\r\n"), []byte("x y"))
	f.Add([]byte("clusterdb.host"), []byte("\n! note\n"))
	f.Add([]byte("a=b\\\n"), []byte("clusterdb.host=x\\"))
	f.Fuzz(func(t *testing.T, orig, more []byte) {
		const key = "clusterdb.host"
		rec, written := joinedProperties(t, orig, key, "10.0.0.1")
		if len(rec.Keys) == 0 {
			t.Skip("nothing of ours")
		}
		if got := properties(t, written)[key]; got != "10.0.0.1" {
			t.Fatalf("joined: %q in %q", got, written)
		}
		u, err := rec.Undo(written)
		if err != nil || !bytes.Equal(u.Bytes, orig) {
			t.Fatalf("undone at once: %q, %v; want %q", u.Bytes, err, orig)
		}
		current := append(bytes.Clone(written), more...)
		if _, err := ParseProperties(current); err != nil {
			t.Skip("no properties")
		}
		now := properties(t, current)
		u, err = rec.Undo(current)
		if err != nil {
			t.Fatalf("%q: %v", current, err)
		}
		if now[key] != "10.0.0.1" {
			t.Skip("edited: the standalone form is another test")
		}
		want, got := maps.Clone(now), properties(t, u.Bytes)
		value, was := properties(t, orig)[key]
		want[key] = value
		if !was {
			delete(want, key)
		}
		// An earlier line of the same key shows again when the last one goes.
		if !was && got[key] != "10.0.0.1" {
			delete(got, key)
		}
		if !maps.Equal(got, want) {
			t.Errorf("orig %q, current %q, undone %q:\ngot  %q\nwant %q", orig, current, u.Bytes, got, want)
		}
	})
}

// FuzzStateFiles reads what stands in the state directory, whatever it is: a journal that can be used or a typed error, and
// what is read is written as it was.
func FuzzStateFiles(f *testing.F) {
	s := newTree(f)
	join(f, s, "10.0.0.1")
	good, err := s.read(s.statePath(undoName), maxRecordSize)
	must.OK(f, err)
	f.Add(good.Bytes)
	f.Add([]byte(sealed(f, `{"id":"1","record":{"files":[null]}}`)))
	f.Add([]byte(sealed(f, `{"id":"1","files":[{"target":"/a/b","after":"`+sum([]byte("a"))+`","data":"YQ=="}]}`)))
	f.Add([]byte(sealed(f, `{"id":"1","record":{"files":[{"path":"/a","kind":"properties","spans":[{"off":9223372036854775807,"old":"YQ=="}]}]}}`)))
	f.Fuzz(func(t *testing.T, data []byte) {
		j, err := decodeJournal("/undo.json", data)
		if err != nil {
			if j != nil {
				t.Fatal("an error has no journal")
			}
			return
		}
		if j.Record != nil {
			for _, file := range j.Record.Files {
				_, _ = file.Undo([]byte("a=b\n"))
			}
		}
		out, err := j.encode(maxJournal)
		must.OK(t, err)
		if _, err := decodeJournal("/undo.json", out); err != nil {
			t.Fatalf("written and not read again: %v", err)
		}
	})
}
