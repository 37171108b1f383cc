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

// Kind selects the editor of a file.
type Kind string

// The kinds.
const (
	KindProperties Kind = "properties"
	KindContainer  Kind = "container"
	KindHosts      Kind = "hosts"
	// KindWhole is a file of the agent, or one that is replaced as a whole.
	KindWhole Kind = "whole"
)

// Record contains what an undo of one or more commits needs. It may contain passwords and has mode 0600.
type Record struct {
	Files []*FileRecord `json:"files"`
	// Dirs are the directories that were made, outermost first, below the root.
	Dirs []string `json:"dirs,omitempty"`
	// Known are the settings files of the first commit, changed or not. Others were added later.
	Known []string `json:"known,omitempty"`
}

// FileRecord is the undo record of one file.
type FileRecord struct {
	// Path is below the root, with links as they were given.
	Path string `json:"path"`
	Kind Kind   `json:"kind"`
	// Existed is false for a file that the agent made. An undo removes it.
	Existed bool `json:"existed"`
	// Original is the file before the first commit. Spans turn it into the last commit's.
	Original []byte `json:"original,omitempty"`
	Spans    []Span `json:"spans,omitempty"`
	// Owner is Original's.
	Owner Owner `json:"owner"`
	// Mode is the permissions before the first commit. The agent only removes those of others (0o007), for a secret.
	Mode fs.FileMode `json:"mode"`
	// WrittenMode is the permissions after the commit.
	WrittenMode fs.FileMode `json:"written_mode"`
	// Written is the SHA-256 of the committed content.
	Written string `json:"written_sha256"`
}

// Owner is a file's user and group.
type Owner struct {
	UID int `json:"uid"`
	GID int `json:"gid"`
}

// of returns f, or nil if its content must not go into the present file: whoever replaced the file must not read
// what was unreadable before.
func (f *FileRecord) of(now File) *FileRecord {
	if f == nil || f.Existed && !now.shows(f.Owner, f.Mode) {
		return nil
	}
	return f
}

// found returns the mode from before the commit, if owner and mode are still the written ones, and else the
// present mode.
func (f *FileRecord) found(now File) fs.FileMode {
	if f == nil || now.Mode != f.WrittenMode || f.Existed && now.UID != f.Owner.UID {
		return files.Plain(now.Mode)
	}
	return files.Plain(f.Mode)
}

// shows reports whether only users who could read the old file can read this one. Owners may share their own
// files, but another user may have moved one of root's here.
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

// File returns the record of path, or nil.
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

// Conflict is a place that was edited since and not simply restored.
type Conflict struct {
	Path   string `json:"path"`
	Anchor string `json:"anchor,omitempty"`
	Msg    string `json:"message"`
}

func (c Conflict) String() string { return c.Path + ": " + c.Msg }

// Undone is the result of [FileRecord.Undo].
type Undone struct {
	Bytes []byte
	// Remove reports that the file did not exist.
	Remove bool
	// Exact reports that Bytes are the original.
	Exact bool
	// Keep reports that edits get lost: a copy of the present file must be kept.
	Keep      bool
	Conflicts []Conflict
}

// Undo reverts the commit in current, or nil for a missing file. An unedited file becomes the original. In an
// edited settings file only the agent's keys are reverted, and a container is toggled. Other edited files are
// restored whole.
func (f *FileRecord) Undo(current []byte) (Undone, error) {
	written, err := applySpans(f.Original, f.Spans)
	if err != nil {
		return Undone{}, fmt.Errorf("undo record of %s: %w", f.Path, err)
	}
	u, err := f.undo(current, written)
	if !u.Remove && u.Bytes == nil {
		u.Bytes = []byte{} // empty, not missing
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
		// A release with marked sections was installed over one without.
		if marked(current) && !marked(f.Original) {
			return f.undoContainer(current)
		}
	case KindHosts:
		return Undone{Bytes: dropMarkedHost(current)}, nil
	}
	return f.whole("was edited since"), nil
}

func marked(src []byte) bool {
	c, err := ParseContainer(src)
	return err == nil && c.Marked()
}

// whole restores the original.
func (f *FileRecord) whole(why string) Undone {
	return Undone{Bytes: f.Original, Keep: true, Conflicts: []Conflict{{
		Path: f.Path, Msg: why + "; the former file is put back, the edited one is kept beside it as " + savedName(f.Path),
	}}}
}

// undoToLeave is [FileRecord.Undo] for a leave, which the file's owner must not be able to block: invalid
// settings, and containers that cannot be toggled, are restored whole.
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
		// For example from an upgrade, whose server may not start with the old file.
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

// IsStandalone reports whether a jee-container.xml has no cluster bean, whether or not it can be toggled.
func IsStandalone(container []byte) bool {
	toks, err := parseXML(container)
	return err == nil && countBeans(toks, clusterBean) == 0
}

// holdsOurs reports whether an undo would change current.
func (f *FileRecord) holdsOurs(current []byte) bool {
	if current == nil {
		return false
	}
	u, err := f.Undo(current)
	return err != nil || u.Remove || !bytes.Equal(u.Bytes, current)
}

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

// check verifies that the spans turn the original into the written content.
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

// undoContainer toggles the present sections.
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

// undoProperties searches the keys: the web panel rewrites the whole file when it saves settings.
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
	// Added lines first, so that the end of the file is known, and the last one first: without a final newline,
	// each line brought the newline before it.
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
			// Restored already.
		case s.Standalone != nil && now == *s.Standalone:
			// The server was made standalone since.
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

func (s Span) key() string { return strings.TrimPrefix(s.Anchor, keyAnchor) }

// putBack returns the span that restores a value: with its former bytes if they have the same meaning here.
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

// closed removes a final backslash that would continue the value in the next line, given the byte next. At the end
// of a file Java ignores it. A CR before it may become half of a CR LF.
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

// SavedName returns the path for a copy of an edited file that an undo replaces.
func SavedName(path string) string { return savedName(path) }

func savedName(path string) string { return path + ".amsagent-saved" }

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
