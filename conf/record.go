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
	// Original is the file before the first commit.
	Original []byte `json:"original,omitempty"`
	// Written is the SHA-256 of the last commit's content; "" means no file.
	Written string `json:"written_sha256"`
	// Replaced is that of an own file's former content: a process that was killed may not have replaced it.
	Replaced string `json:"replaced_sha256,omitempty"`
	// Folders counts those made for an own file. An undo removes them if empty.
	Folders int `json:"folders,omitempty"`
	// Keys are what the commits changed in a settings file, for an undo after another program wrote the file, too.
	Keys []Key `json:"keys,omitempty"`
	// Valve has the removed beans of a container.
	Valve string `json:"valve,omitempty"`
	// Owner is Original's.
	Owner Owner `json:"owner"`
	// Mode is the permissions before the first commit. The agent only removes those of others (0o007), for a secret.
	Mode fs.FileMode `json:"mode"`
	// WrittenMode is the permissions after the commit.
	WrittenMode fs.FileMode `json:"written_mode"`
}

// Key is a changed property.
type Key struct {
	Name  string  `json:"name"`
	Was   *string `json:"was,omitempty"` // nil: the file did not have it
	Wrote string  `json:"wrote"`
	// Standalone, if not nil, replaces a value that was edited since.
	Standalone *string `json:"standalone,omitempty"`
}

// Owner is a file's user and group.
type Owner struct {
	UID int `json:"uid"`
	GID int `json:"gid"`
}

// of returns f, or nil if its content must not go into the present file: the user who replaced the file
// must not read what was unreadable before.
func (f *FileRecord) of(now File) *FileRecord {
	if f == nil || f.Existed && !now.shows(f.Owner, f.Mode) {
		return nil
	}
	return f
}

// found returns the mode from before the commit, if the file is missing or owner and mode are still the written ones, and else
// the present mode.
func (f *FileRecord) found(now File) fs.FileMode {
	if f == nil || now.Exists() && (now.Mode != f.WrittenMode || f.Existed && now.UID != f.Owner.UID) {
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

// newFileRecord leads from after, made of before by spans, back to before. now is the present file.
func newFileRecord(path string, kind Kind, before, after []byte, spans []Span, now File) *FileRecord {
	f := &FileRecord{
		Path: path, Kind: kind, Existed: before != nil, Original: before, Written: sumOf(after),
		Owner: Owner{now.UID, now.GID}, Mode: now.Mode, Folders: now.missing,
	}
	if kind == KindProperties {
		f.Keys = keysBetween(before, after)
	}
	for _, s := range spans {
		if s.Anchor == anchorValve {
			f.Valve = strings.TrimSpace(f.Valve + "\n" + string(bytes.TrimSpace(s.Old)))
		}
		for i := range f.Keys {
			if s.Anchor == keyAnchor+f.Keys[i].Name {
				f.Keys[i].Standalone = s.Standalone
			}
		}
	}
	return f
}

// follow takes over what an earlier record, or nil, knows of the file. now is the present file.
func (f *FileRecord) follow(rec *FileRecord, now File) {
	if rec == nil {
		return
	}
	if !hasRemoteIPValve(f.Original) {
		f.Valve = rec.Valve
	}
	f.Folders = max(f.Folders, rec.Folders)
	if rec.wrote(now.Bytes) && sumOf(now.Bytes) != f.Written {
		f.Replaced = sumOf(now.Bytes)
	}
}

// wrote reports whether the file is as a commit wrote it.
func (f *FileRecord) wrote(current []byte) bool {
	now := sumOf(current)
	return now == f.Written || now != "" && now == f.Replaced
}

// keysBetween returns the properties of after that differ from before. A file that was cut may have none.
func keysBetween(before, after []byte) (keys []Key) {
	was, err := ParseProperties(before)
	if err != nil {
		return nil
	}
	is, err := ParseProperties(after)
	if err != nil {
		return nil
	}
	for _, name := range is.Keys() {
		value, _ := is.Get(name)
		switch old, existed := was.Get(name); {
		case !existed:
			keys = append(keys, Key{Name: name, Wrote: value})
		case old != value:
			keys = append(keys, Key{Name: name, Was: &old, Wrote: value})
		}
	}
	return keys
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
	// Keep reports that edits get lost: a copy of the present file must be kept.
	Keep      bool
	Conflicts []Conflict
}

// Undo reverts the commit in current, or nil for a missing file. An unedited file becomes the original. In an
// edited settings file only the agent's keys are reverted, and a container is toggled. Other edited files are
// restored whole.
func (f *FileRecord) Undo(current []byte) (Undone, error) {
	u, err := f.undo(current)
	if !u.Remove && u.Bytes == nil {
		u.Bytes = []byte{} // empty, not missing
	}
	if err == nil && !u.Remove && f.Valve != "" && !hasRemoteIPValve(u.Bytes) {
		u.Conflicts = append(u.Conflicts, Conflict{f.Path, anchorValve, "the file was edited since, and the RemoteIpValve stays out; put it back by hand: " + f.Valve})
	}
	return u, err
}

func hasRemoteIPValve(container []byte) bool {
	toks, err := parseXML(container)
	return err == nil && countBeans(toks, remoteIPValve) > 0
}

func (f *FileRecord) undo(current []byte) (Undone, error) {
	switch {
	case f.wrote(current):
		return Undone{Bytes: f.Original, Remove: !f.Existed}, nil
	case current == nil:
		u := Undone{Remove: true}
		if f.Existed {
			u.Conflicts = []Conflict{{Path: f.Path, Msg: "was removed since; it is left removed"}}
		}
		return u, nil
	case f.Existed && bytes.Equal(current, f.Original):
		return Undone{Bytes: f.Original}, nil
	case f.Kind == KindHosts && bytes.Equal(bytes.TrimRight(current, "\n"), bytes.TrimRight(f.Original, "\n")):
		return Undone{Bytes: f.Original}, nil // an undo in place was killed before it shortened the file
	case f.Kind == KindHosts:
		rest := replaceMarkedHost(current, markedHost(f.Original))
		return Undone{Bytes: rest, Remove: !f.Existed && len(rest) == 0}, nil
	case !f.Existed:
		return Undone{Bytes: current, Remove: true, Keep: true, Conflicts: []Conflict{{
			Path: f.Path, Msg: "was edited since we made it; it is removed, the edited file is kept beside it as " + SavedName(f.Path),
		}}}, nil
	case f.Kind == KindProperties:
		return f.undoProperties(current)
	case f.Kind == KindContainer, f.Kind == KindWhole && marked(current) && !marked(f.Original):
		// Or a release with marked sections was installed over one without.
		return f.undoContainer(current)
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
		Path: f.Path, Msg: why + "; the former file is put back, the edited one is kept beside it as " + SavedName(f.Path),
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

func (r *Record) check() error {
	for _, f := range r.Files {
		if f == nil {
			return errors.New("it has an entry that is empty")
		}
		if err := f.check(); err != nil {
			return err
		}
	}
	return nil
}

func (f *FileRecord) check() error {
	if !isClean(f.Path) {
		return fmt.Errorf("%q is no path of a file", f.Path)
	}
	return nil
}

// undoContainer comments the present sections out, unless the commit found them active.
func (f *FileRecord) undoContainer(current []byte) (Undone, error) {
	c, err := ParseContainer(current)
	if was, oerr := ParseContainer(f.Original); err == nil && (oerr != nil || was.Mode() == ModeStandalone) {
		err = c.SetMode(ModeStandalone)
	}
	if err != nil {
		return Undone{}, fmt.Errorf("%s was edited since we wrote it: %w", f.Path, err)
	}
	return Undone{Bytes: c.Bytes()}, nil
}

// undoProperties reverts the keys: the server rewrites the whole file when it saves settings.
func (f *FileRecord) undoProperties(current []byte) (u Undone, _ error) {
	p, err := ParseProperties(current)
	if err != nil {
		return Undone{}, fmt.Errorf("%s was edited since we wrote it: %w", f.Path, err)
	}
	was, err := ParseProperties(f.Original)
	if err != nil {
		return Undone{}, fmt.Errorf("undo record of %s: %w", f.Path, err)
	}
	var added []string
	for _, k := range f.Keys {
		conflict := ""
		switch now, present := p.Get(k.Name); {
		case !present && k.Was != nil:
			conflict = " was removed since; it is left removed"
		case !present, k.Was != nil && now == *k.Was:
			// Restored already.
		case now == k.Wrote && k.Was != nil:
			p.Set(k.Name, *k.Was, nil)
			p.spellAs(k.Name, was)
		case now == k.Wrote:
			added = append(added, k.Name)
		case k.Standalone != nil && now == *k.Standalone:
			// The server was made standalone since.
		case k.Standalone != nil:
			p.Set(k.Name, *k.Standalone, nil)
			conflict = " was edited since; its standalone value is written"
		default:
			conflict = " was edited since"
		}
		if conflict != "" {
			u.Conflicts = append(u.Conflicts, Conflict{f.Path, keyAnchor + k.Name, k.Name + conflict})
		}
	}
	u.Bytes = p.Bytes()
	// The last one first: without a final newline, each line brought the newline before it.
	for _, k := range slices.Backward(f.Keys) {
		if was.hasLine(k.Name, k.Wrote) {
			continue // that one is not ours
		}
		if u.Bytes, err = dropLines(u.Bytes, k, slices.Contains(added, k.Name)); err != nil {
			return Undone{}, err
		}
	}
	return u, nil
}

// dropLines removes the lines with our value of the key: an operator may have copied ours, or overridden it by a later
// one. The line that counts goes only if effective.
func dropLines(src []byte, k Key, effective bool) ([]byte, error) {
	p, err := ParseProperties(src)
	if err != nil {
		return nil, err
	}
	for i, e := range slices.Backward(p.entries) {
		if e.key == k.Name && e.value == k.Wrote && (effective || i != p.last[k.Name]) {
			off, end := p.lineSpan(e)
			p.src = slices.Delete(p.src, off, end)
		}
	}
	return p.src, nil
}

// SavedName returns the path for a copy of an edited file that an undo replaces.
func SavedName(path string) string { return path + ".amsagent-saved" }

// sumOf returns "" for a missing file.
func sumOf(b []byte) string {
	if b == nil {
		return ""
	}
	return sum(b)
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
