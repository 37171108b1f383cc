// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/files"
)

// Kind says which editor a file belongs to, and so how its spans are found
// again after somebody else edited it.
type Kind string

// The kinds.
const (
	KindProperties Kind = "properties"
	KindContainer  Kind = "container"
	KindHosts      Kind = "hosts"
	// KindWhole is a file of ours, or one replaced as a whole.
	KindWhole Kind = "whole"
)

// Record is what undoing needs to know of the files one or more commits
// changed: for every span its former bytes. It may hold passwords that the
// files held; it is written with mode 0600.
type Record struct {
	Version int           `json:"version"` // of this format: 1
	Files   []*FileRecord `json:"files"`
	// Dirs are the directories made for files that were not there, outermost
	// first, below the root.
	Dirs []string `json:"dirs,omitempty"`
	// Known are the settings files that the first commit was planned for, changed or not: one
	// that is not among them came later. Nil in the records of releases that did not note them.
	Known []string `json:"known,omitempty"`
}

// FileRecord is the undo record of one file.
type FileRecord struct {
	// Path is the file as it was named, below the root; a link stays a link.
	Path string `json:"path"`
	Kind Kind   `json:"kind"`
	// Existed is false for a file that we made: undoing removes it.
	Existed bool `json:"existed"`
	// Original is the whole file as the first commit found it, and Spans turn
	// it into what the last commit wrote.
	Original []byte `json:"original,omitempty"`
	Spans    []Span `json:"spans,omitempty"`
	// Owner is whose file Original was. Nil where there was none, and in the records of
	// releases that did not note it: these go by nothing but the path.
	Owner *Owner `json:"owner,omitempty"`
	// Mode is the permission bits as found. We change them only to take a file
	// that now holds a secret out of the world's sight.
	Mode fs.FileMode `json:"mode"`
	// WrittenMode is the permission bits as we left them.
	WrittenMode fs.FileMode `json:"written_mode"`
	// Written is the SHA-256 of what we wrote.
	Written string `json:"written_sha256"`
}

// Owner is the user and the group of a file.
type Owner struct {
	UID int `json:"uid"`
	GID int `json:"gid"`
}

// of gives the record where it is about the file that is there now: what it knows may go
// into it. Whoever may exchange the file must not read by his own what he could not read
// before. Otherwise it is nil.
func (f *FileRecord) of(now File) *FileRecord {
	if f == nil || f.Owner != nil && !now.shows(*f.Owner, f.Mode) {
		return nil
	}
	return f
}

// found gives the mode of before our changes, where the file still has its owner and the mode
// that we gave it; otherwise the one it has.
func (f *FileRecord) found(now File) fs.FileMode {
	if f == nil || now.Mode != f.WrittenMode || f.Owner != nil && now.UID != f.Owner.UID {
		return files.Plain(now.Mode)
	}
	return files.Plain(f.Mode)
}

// shows reports whether nobody can read the file who could not read one of that owner and mode.
// A user shows his own files to whom he likes; root's may have been moved here by another user.
func (f File) shows(was Owner, mode fs.FileMode) bool {
	group := mode&0o040 != 0 && f.GID == was.GID
	switch {
	case !f.Exists() || mode&0o004 != 0:
		return true
	case f.UID != 0:
		return f.UID == was.UID || group
	}
	return f.Mode&0o004 == 0 && (f.Mode&0o040 == 0 || group)
}

// File finds the record of path.
func (r *Record) File(path string) *FileRecord {
	if r == nil {
		return nil
	}
	for _, f := range r.Files {
		if f.Path == path {
			return f
		}
	}
	return nil
}

// Conflict is one place that somebody else edited after us, so that it could
// not simply be put back.
type Conflict struct {
	Path   string `json:"path"`
	Anchor string `json:"anchor,omitempty"`
	Msg    string `json:"message"`
}

func (c Conflict) String() string { return c.Path + ": " + c.Msg }

// Undone is the outcome of undoing one file in memory.
type Undone struct {
	Bytes []byte
	// Remove says that the file was not there before us.
	Remove bool
	// Exact says that Bytes are the very bytes the first commit found.
	Exact bool
	// Keep says that Bytes lose edits of others: the file as it is is to be kept.
	Keep      bool
	Conflicts []Conflict
}

// Undo gives what current becomes when our spans are put back. Where current is
// what we wrote, that is the original, byte for byte. In a file of settings that
// was edited since, only the keys that we set get their former values; a container
// is switched back as it stands. Other files are given back whole, and the edited
// one is kept beside them. current is nil when the file is gone.
func (f *FileRecord) Undo(current []byte) (Undone, error) {
	written, err := applySpans(f.Original, f.Spans)
	if err != nil {
		return Undone{}, fmt.Errorf("undo record of %s: %w", f.Path, err)
	}
	u, err := f.undo(current, written)
	if !u.Remove && u.Bytes == nil {
		u.Bytes = []byte{} // an empty file is not a missing one
	}
	return u, err
}

func (f *FileRecord) undo(current, written []byte) (Undone, error) {
	switch {
	case current == nil:
		u := Undone{Remove: true, Exact: !f.Existed}
		if f.Existed {
			u.Conflicts = []Conflict{{Path: f.Path, Msg: "was removed since; it is left removed"}}
		}
		return u, nil
	case bytes.Equal(current, written):
		return Undone{Bytes: f.Original, Remove: !f.Existed, Exact: true}, nil
	case f.Existed && bytes.Equal(current, f.Original):
		return Undone{Bytes: f.Original, Exact: true}, nil
	case !f.Existed:
		return Undone{Bytes: current, Remove: true, Keep: true, Conflicts: []Conflict{{
			Path: f.Path, Msg: "was edited since we made it; it is removed, the edited file is kept beside it as " + savedName(f.Path),
		}}}, nil
	}
	switch f.Kind {
	case KindProperties:
		return f.undoProperties(current)
	case KindContainer:
		return f.undoContainer(current)
	case KindWhole:
		// A release that marks its sections was installed over one that did not.
		if marked(current) && !marked(f.Original) {
			return f.undoContainer(current)
		}
	case KindHosts:
		return Undone{Bytes: dropMarkedHost(current)}, nil
	}
	return f.whole("was edited since"), nil
}

// marked reports whether a file is a jee-container.xml with marked sections.
func marked(src []byte) bool {
	c, err := ParseContainer(src)
	return err == nil && c.Marked()
}

// whole gives the file back whole, whatever it holds by now.
func (f *FileRecord) whole(why string) Undone {
	return Undone{Bytes: f.Original, Keep: true, Conflicts: []Conflict{{
		Path: f.Path, Msg: why + "; the former file is put back, the edited one is kept beside it as " + savedName(f.Path),
	}}}
}

// undoToLeave is [FileRecord.Undo] for a machine that leaves. What the file's owner can
// make of it at any time does not keep it from leaving: settings that Java itself
// refuses, and a jee-container.xml whose sections cannot be switched, are given back whole.
func (f *FileRecord) undoToLeave(current []byte) (Undone, error) {
	u, err := f.Undo(current)
	syntax, malformed := errors.AsType[*SyntaxError](err)
	layout, unswitched := errors.AsType[*LayoutError](err)
	switch {
	case malformed && f.Kind == KindProperties:
		return f.whole("cannot be read as settings any more: " + syntax.Error()), nil
	case malformed:
		return f.whole("is no XML any more: " + syntax.Error()), nil
	case (unswitched || errors.Is(err, ErrUnmarked)) && IsStandalone(current):
		// As that of an upgrade, whose server may not start with the former one.
		return Undone{Bytes: current, Conflicts: []Conflict{{
			Path: f.Path, Msg: "has sections that cannot be switched, but is a standalone server's: it stays as it is",
		}}}, nil
	case unswitched:
		return f.whole("cannot be made standalone any more: " + layout.Error()), nil
	case errors.Is(err, ErrUnmarked):
		return f.whole("has no cluster section any more"), nil
	}
	return u, err
}

// IsStandalone reports whether a jee-container.xml makes no cluster node, whatever can be switched in it.
func IsStandalone(container []byte) bool {
	doc, err := readBeans(container)
	return err == nil && doc.mode() == ModeStandalone
}

// holdsOurs reports whether current has something in it that undoing would take
// back.
func (f *FileRecord) holdsOurs(current []byte) bool {
	if current == nil {
		return false
	}
	u, err := f.Undo(current)
	return err != nil || u.Remove || !bytes.Equal(u.Bytes, current)
}

// check proves that the record can be gone by.
func (r *Record) check() error {
	for _, f := range r.Files {
		if f == nil {
			return errors.New("it has an entry that is empty")
		}
		if err := f.check(); err != nil {
			return err
		}
	}
	for _, d := range r.Dirs {
		if !isClean(d) {
			return fmt.Errorf("%q is no path of a folder", d)
		}
	}
	return nil
}

// check proves that the record is whole: that it makes of the original what was
// written.
func (f *FileRecord) check() error {
	if !isClean(f.Path) {
		return fmt.Errorf("%q is no path of a file", f.Path)
	}
	if f.Kind == KindProperties {
		for _, s := range f.Spans {
			if !strings.HasPrefix(s.Anchor, keyAnchor) {
				return fmt.Errorf("%s: %q names no key", f.Path, s.Anchor)
			}
		}
	}
	written, err := applySpans(f.Original, f.Spans)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Path, err)
	}
	if sum(written) != f.Written {
		return fmt.Errorf("%s: it does not give what was written", f.Path)
	}
	return nil
}

// undoContainer toggles the sections that are there.
func (f *FileRecord) undoContainer(current []byte) (Undone, error) {
	c, err := ParseContainer(current)
	if err != nil {
		return Undone{}, fmt.Errorf("%s was edited since we wrote it: %w", f.Path, err)
	}
	if err := c.SetMode(ModeStandalone); err != nil {
		return Undone{}, fmt.Errorf("%s was edited since we wrote it: %w", f.Path, err)
	}
	u := Undone{Bytes: c.Bytes()}
	for _, s := range f.Spans {
		if s.Anchor == anchorValve && !c.HasRemoteIPValve() {
			u.Conflicts = append(u.Conflicts, Conflict{f.Path, s.Anchor, "the file was edited since, and the RemoteIpValve stays out; put it back by hand: " + string(bytes.TrimSpace(s.Old))})
		}
	}
	return u, nil
}

// undoProperties finds the keys again, wherever they now stand and however
// their values are now escaped: saving settings in the web panel rewrites the
// whole file.
func (f *FileRecord) undoProperties(current []byte) (Undone, error) {
	p, err := ParseProperties(current)
	if err != nil {
		return Undone{}, fmt.Errorf("%s was edited since we wrote it: %w", f.Path, err)
	}
	orig, err := ParseProperties(f.Original)
	if err != nil {
		return Undone{}, fmt.Errorf("undo record of %s: %w", f.Path, err)
	}
	writtenBytes, err := applySpans(f.Original, f.Spans)
	if err != nil {
		return Undone{}, err
	}
	written, err := ParseProperties(writtenBytes)
	if err != nil {
		return Undone{}, fmt.Errorf("undo record of %s: %w", f.Path, err)
	}
	var u Undone
	var added []string
	for _, s := range f.Spans {
		key := s.key()
		now, present := p.Get(key)
		if ours, _ := written.Get(key); present && s.Added && now == ours {
			added = append(added, key)
		}
	}
	// First, so that what stands at the end of the file is known for the rest. Last
	// added first: at the end of a file without a newline each line came with the
	// newline before it.
	for _, key := range slices.Backward(added) {
		if current, err = dropLine(current, key); err != nil {
			return Undone{}, err
		}
	}
	if len(added) > 0 {
		if p, err = ParseProperties(current); err != nil {
			return Undone{}, err
		}
	}
	var spans []Span
	for _, s := range f.Spans {
		key := s.key()
		now, present := p.Get(key)
		was, _ := orig.Get(key)
		ours, _ := written.Get(key)
		switch {
		case slices.Contains(added, key):
		case !present:
			if !s.Added {
				u.Conflicts = append(u.Conflicts, Conflict{f.Path, s.Anchor, key + " was removed since; it is left removed"})
			}
		case now == ours:
			spans = append(spans, p.putBack(s, orig.entries[orig.last[key]]))
		case now == was:
			// Already what it was.
		case s.Standalone != nil && now == *s.Standalone:
			// The server was switched to standalone in between.
		default:
			msg := key + " was edited since"
			if s.Standalone != nil {
				p.Set(key, *s.Standalone, nil)
				msg += "; its standalone value is written"
			}
			u.Conflicts = append(u.Conflicts, Conflict{f.Path, s.Anchor, msg})
		}
	}
	if u.Bytes, err = applySpans(p.src, append(spans, p.Spans()...)); err != nil {
		return Undone{}, err
	}
	return u, nil
}

// key is the key that a span of a properties file sets.
func (s Span) key() string { return strings.TrimPrefix(s.Anchor, keyAnchor) }

// putBack gives the span that puts the former value back where the key stands
// now: the former bytes where they still mean the same there, otherwise the value
// written anew.
func (p *Properties) putBack(s Span, was property) Span {
	e := p.entries[p.last[s.key()]]
	back := Span{Anchor: s.Anchor, Off: e.valOff, Old: p.src[e.valOff:e.end], New: s.Old}
	switch {
	case e.sep != was.sep && e.sep == sepNone && was.value != "":
		back.New = []byte("=" + escapeValue(was.value, false))
	case e.sep != was.sep:
		back.New = []byte(escapeValue(was.value, e.sep == sepBlank))
	case e.end < len(p.src):
		back.New = closed(s.Old, p.src[e.end])
	}
	return back
}

// closed is a raw value without what would make it go on in the line below when
// next follows. A backslash in front of the end of the file means nothing to Java;
// one in front of a line end takes the next line for a part of the value, and so
// does one in front of a CR that becomes half of a CR LF.
func closed(raw []byte, next byte) []byte {
	line := raw
	if next == '\n' {
		line = bytes.TrimSuffix(raw, []byte{'\r'})
	}
	if n := len(line) - len(bytes.TrimRight(line, `\`)); n%2 == 1 {
		return line[:len(line)-1]
	}
	return raw
}

// dropLine removes the line of key's winning entry.
func dropLine(src []byte, key string) ([]byte, error) {
	p, err := ParseProperties(src)
	if err != nil {
		return nil, err
	}
	off, end, ok := p.lineSpan(key)
	if !ok {
		return src, nil
	}
	return slices.Delete(p.src, off, end), nil
}

// SavedName is where a copy of the file at path is kept if undoing would lose
// edits of it.
func SavedName(path string) string { return savedName(path) }

// savedName is where an edited file is kept that undoing would lose.
func savedName(path string) string { return path + ".amsagent-saved" }

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
