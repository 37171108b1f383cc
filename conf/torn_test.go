// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
)

// The server writes in place: a crash or a full disk leaves a part of the file,
// or nothing. That is no edit, and never gets into the record. The
// part is kept beside the file: a person's edit may look like that.
func TestTornFile(t *testing.T) {
	t.Parallel()
	const path = "/ams/webapps/Live App/WEB-INF/red5-web.properties"
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
			must.OK(t, planCluster(t, s, host).Commit("join"))
			joined := snapshot(t, s)
			real := filepath.Join(s.Root, path)
			b, err := os.ReadFile(real)
			must.OK(t, err)
			half := cut(string(stored(t, b)))
			must.OK(t, os.WriteFile(real, []byte(half), 0o640))
			kept := func(all map[string]string) map[string]string {
				if text := all[SavedName(path)]; !strings.HasSuffix(text, half) || (text == "") != (half == "") {
					t.Errorf("kept is %q", text)
				}
				delete(all, SavedName(path))
				return all
			}
			p := planCluster(t, s, host)
			if d := cmp.Diff([]string{path}, p.Torn); d != "" || len(p.Conflicts) > 0 {
				t.Fatalf("torn (-want +got):\n%s\nconflicts %v", d, p.Conflicts)
			}
			must.OK(t, p.Commit("join"))
			if d := cmp.Diff(joined, kept(snapshot(t, s))); d != "" {
				t.Errorf("made whole (-want +got):\n%s", d)
			}
			// A leave makes it whole, too.
			must.OK(t, os.WriteFile(real, []byte(half), 0o640))
			undoAll(t, s)
			if d := cmp.Diff(original, kept(snapshot(t, s))); d != "" {
				t.Errorf("after the leave (-want +got):\n%s", d)
			}
		})
	}
}

func TestNotTorn(t *testing.T) {
	rec := &FileRecord{
		Kind: KindProperties, Existed: true, Original: []byte("a=1\nb=2\nc=3\nd=4\n"),
		Keys: []Key{{Name: "a", Wrote: "2"}},
	}
	const date = "#Sat Nov 21 00:34:56 UTC 2026\n"
	for text, want := range map[string]bool{
		"a=9\n":                        false, // an installer's, or a person's
		"b=2\nc=3":                     false,
		date + "a=2\nb=2\nc=3\nd=4\n":  false,
		date + "a=2\nb=2\n":            false, // a person removed some
		date + "b=2\nc=3\nd=4\n":       true,  // the server drops no key
		date + "a=2\nb=2\nc=3\nd=4\ne": true,
		"# Sat, a note\nb=2":           false,
		"# a note and nothing else\n":  true,
		"b=\\u00\n":                    false, // malformed, and that is said
	} {
		if got := torn(rec, []byte(text)); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

// Of a file that no record knows nothing can be made.
func TestTornUnknown(t *testing.T) {
	t.Parallel()
	s := newTree(t)
	real := filepath.Join(s.Root, propertyPaths[0])
	for text, want := range map[string]error{"": ErrEmpty, "#Sat Nov 21 00:34:56 UTC 2026\nhttp.po": ErrTorn, "#Sat No": ErrTorn, "#": ErrTorn} {
		must.OK(t, os.WriteFile(real, []byte(text), 0o640))
		err := s.NewPlan(nil).Edit(Target{Path: propertyPaths[0], Kind: KindProperties}, func([]byte) ([]Span, error) { return nil, nil })
		if !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", text, err, want)
		}
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
	plan := s.NewPlan(nil)
	for _, path := range propertyPaths {
		f, err := s.Read(path)
		must.OK(t, err)
		must.OK(t, os.WriteFile(filepath.Join(s.Root, f.Target), nil, f.Mode))
		reads = 0
		err = plan.Edit(Target{Path: path, Kind: KindProperties}, func([]byte) ([]Span, error) { return nil, nil })
		if !errors.Is(err, ErrEmpty) {
			t.Errorf("%s: %v", path, err)
		}
		all = append(all, reads)
	}
	if len(all) < 2 || all[0] < emptyPolls || slices.Max(all[1:]) > all[0]/10 {
		t.Errorf("calls for each file: %v; want the first alone to be waited for", all)
	}
}

// A file that Java itself refuses is given back by its lines, or put back whole and kept
// beside.
func TestUndoOfMalformed(t *testing.T) {
	for name, edit := range map[string]func(string) string{
		"a line of it":    func(s string) string { return "x=\\uZZZZ\n" + s },
		"one of our keys": func(s string) string { return strings.Replace(s, "db.host=", "db.host=\\uZZZZ", 1) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newTree(t)
			path := propertyPaths[1]
			real := filepath.Join(s.Root, path)
			original, err := os.ReadFile(real)
			must.OK(t, err)
			plan := s.NewPlan(nil)
			err = plan.Edit(Target{Path: path, Kind: KindProperties}, func(src []byte) ([]Span, error) {
				p, err := ParseProperties(src)
				if err != nil {
					return nil, err
				}
				p.Set("db.host", "secret", nil)
				return p.Spans(), nil
			})
			must.OK(t, err)
			must.OK(t, plan.Commit("join"))
			b, err := os.ReadFile(real)
			must.OK(t, err)
			edited := edit(string(b))
			must.OK(t, os.WriteFile(real, []byte(edited), 0o640))
			record, err := s.Record()
			must.OK(t, err)
			// Another join touches it not at all.
			err = s.NewPlan(record).Edit(Target{Path: path, Kind: KindProperties}, func([]byte) ([]Span, error) { return nil, nil })
			if _, ok := errors.AsType[*SyntaxError](err); !ok {
				t.Errorf("a join: %v", err)
			}
			undo, err := s.PlanUndo(record)
			must.OK(t, err)
			must.OK(t, undo.CommitUndo("leave"))
			want := string(original)
			if kept, err := os.ReadFile(real + ".amsagent-saved"); err != nil || string(kept) != edited {
				t.Errorf("kept %q, %v", kept, err)
			}
			if now, err := os.ReadFile(real); err != nil || string(now) != want {
				t.Errorf("%v, got\n%s\nwant\n%s", err, now, want)
			}
		})
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
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
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

// FuzzTorn: whatever a file held before a join, what the server stored of it is whole, and the beginning of that is
// taken for whole only where all is in it that the join wrote. A file of a person that has a key, and no zeros, is never torn.
func FuzzTorn(f *testing.F) {
	const date = "#Sat Nov 21 00:34:56 UTC 2026\n"
	for _, seed := range []struct{ orig, now string }{
		{"db.type=mapdb\ndb.host=localhost\ndb.password=", date + "db.host=x"},
		{date + "db.host : localhost\r\n", date},
		{"", "#Sat Nov 21 00:34:56 UTC"},
		{"db.host=\\\na", date + "a=\\u00"},
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
		whole := stored(t, written)
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
