// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// The server writes in place: a crash or a full disk leaves a part of the file, or nothing. That is no edit, and never gets
// into the record. The part is kept beside the file: a person's edit may look like that.
func TestTornFile(t *testing.T) {
	t.Parallel()
	const host = "mongodb://u:p@10.0.0.1/?w=1"
	parts := map[string]func(whole string) string{
		"empty":        func(string) string { return "" },
		"zeros":        func(s string) string { return strings.Repeat("\x00", len(s)) },
		"zeros behind": func(s string) string { return s[:50] + strings.Repeat("\x00", len(s)-50) },
		"date alone":   func(s string) string { return s[:strings.Index(s, "\n")+1] },
		"half a date":  func(string) string { return "#Sat No" },
		"half a line":  func(s string) string { return s[:strings.Index(s, "db.host")+12] },
		"without ours": func(s string) string { return s[:strings.Index(s, "db.password")] },
		"cut escape":   func(s string) string { return s[:strings.Index(s, "\n")+1] + "a=\\u00" },
	}
	for name, cut := range parts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTree(t)
			original := snapshot(t, s)
			join(t, s, host)
			joined := snapshot(t, s)
			half := cut(stored(t, content(t, s, appPath)))
			put(t, s, appPath, half)
			if half != "" {
				kept := "-rw-r----- " + half
				joined[SavedName(appPath)], original[SavedName(appPath)] = kept, kept
			}
			p := join(t, s, host)
			must.NoDiff(t, "torn", p.Torn, []string{appPath})
			must.Equal(t, "conflicts", len(p.Conflicts), 0)
			must.NoDiff(t, "made whole", snapshot(t, s), joined)
			// A leave makes it whole, too.
			put(t, s, appPath, half)
			undoAll(t, s)
			must.NoDiff(t, "after the leave", snapshot(t, s), original)
		})
	}
}

func TestNotTorn(t *testing.T) {
	rec := &FileRecord{
		Kind: KindProperties, Existed: true, Original: []byte("a=1\nb=2\nc=3\nd=4\n"),
		Keys: []Key{{Name: "a", Wrote: "2"}},
	}
	for text, want := range map[string]bool{
		"a=9\n":                            false, // an installer's, or a person's
		"b=2\nc=3":                         false,
		javaDate + "a=2\nb=2\nc=3\nd=4\n":  false,
		javaDate + "a=2\nb=2\n":            false, // a person removed some
		javaDate + "b=2\nc=3\nd=4\n":       true,  // the server drops no key
		javaDate + "a=2\nb=2\nc=3\nd=4\ne": true,
		"# Sat, a note\nb=2":               false,
		"# a note and nothing else\n":      true,
		"b=\\u00\n":                        false, // malformed, and that is said
	} {
		must.Equal(t, text, torn(rec, []byte(text)), want)
	}
}

// Of a file that no record knows nothing can be made.
func TestTornUnknown(t *testing.T) {
	t.Parallel()
	s := newTree(t)
	for text, want := range map[string]error{"": ErrEmpty, javaDate + "http.po": ErrTorn, "#Sat No": ErrTorn, "#": ErrTorn} {
		put(t, s, serverPath, text)
		err := s.NewPlan(nil).Edit(Target{Path: serverPath, Kind: KindProperties}, noEdit)
		failsWith(t, text, err, want)
	}
}

// One second is waited for all files of a plan that are being written, however many
// their owner emptied.
func TestTornIsWaitedForOnce(t *testing.T) {
	t.Parallel()
	s := newTree(t)
	reads, all := 0, []int(nil)
	s.hook = func(call, name string) error {
		if call == "openat" && strings.HasSuffix(name, ".properties") {
			reads++
		}
		return nil
	}
	for _, path := range []string{serverPath, appPath, rootTarget} {
		put(t, s, path, "")
	}
	plan := s.NewPlan(nil)
	for _, path := range propertyPaths {
		reads = 0
		failsWith(t, path, plan.Edit(Target{Path: path, Kind: KindProperties}, noEdit), ErrEmpty)
		all = append(all, reads)
	}
	if len(all) < 2 || all[0] < emptyPolls || slices.Max(all[1:]) > all[0]/10 {
		t.Errorf("calls for each file: %v; want the first alone to be waited for", all)
	}
}

// FuzzTorn: whatever a file held before a join, what the server stored of it is whole, and the beginning of that is
// taken for whole only where all is in it that the join wrote. A file of a person that has a key, and no zeros, is never torn.
func FuzzTorn(f *testing.F) {
	for _, seed := range []struct{ orig, now string }{
		{"db.type=mapdb\ndb.host=localhost\ndb.password=", javaDate + "db.host=x"},
		{javaDate + "db.host : localhost\r\n", javaDate},
		{"", "#Sat Nov 21 00:34:56 UTC"},
		{"db.host=\\\na", javaDate + "a=\\u00"},
		{"# a note\nb=\\u0041\n", "# a note and nothing else\n"},
		{"a=1\ndb.host=b", "b=2"},
		{"0", "\x000"},
		{"\x00", "0"},
		{"db.host=a\ndb.host=b\n", "#\xa0Sat\tNov 1 00:34:56 x 2026\n=\n"},
		{"a=\\\n  b\\n\\\n", "#Sat Nov 21 00:34:56 UTC 2026"},
	} {
		for at := range uint16(9) {
			f.Add([]byte(seed.orig), []byte(seed.now), 7*at)
		}
	}
	f.Fuzz(func(t *testing.T, orig, now []byte, at uint16) {
		rec, written := joinedProperties(t, orig, "db.host", "mongodb://u:p@10.0.0.1/?w=1")
		unknown, known := torn(nil, now), torn(rec, now)
		if unknown && !known {
			t.Errorf("%q is torn without a record", now)
		}
		zeros := bytes.IndexByte(now, 0) >= 0 // of a power cut
		if p, err := ParseProperties(now); known && !zeros && !storedByJava(now) && (err != nil || len(p.last) > 0) {
			t.Errorf("%q, which no server stored, is torn", now)
		}
		whole := []byte(stored(t, string(written)))
		ours := properties(t, written)
		got := properties(t, whole)
		delete(got, "written.by.the.server")
		if !maps.Equal(got, ours) || bytes.IndexByte(whole, 0) >= 0 {
			t.Skip("not what Java stores") // the stand-in for it knows few escapes
		}
		for _, text := range [][]byte{whole, append(bytes.Clone(whole), "more=1\n"...)} {
			if torn(rec, text) || torn(nil, text) {
				t.Errorf("%q is torn", text)
			}
		}
		part := whole[:int(at)%len(whole)]
		for _, part := range [][]byte{part, part[:bytes.LastIndexByte(part, '\n')+1]} {
			if torn(rec, part) {
				continue
			}
			left := properties(t, part)
			for _, k := range rec.Keys {
				key := k.Name
				if got, ok := left[key]; !ok || got != ours[key] {
					t.Errorf("%q is whole, with %s as %q, %v", part, key, got, ok)
				}
			}
		}
	})
}
