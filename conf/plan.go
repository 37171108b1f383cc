// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/amsagent/amsagent/files"
)

// Plan collects the changes of several files and commits them together.
//
// Every file is planned from its original: the recorded spans are first reverted in memory. A leave therefore
// restores the files from before the first of several joins.
type Plan struct {
	store  *Store
	record *Record // as found, or nil
	own    []*FileRecord
	files  []PlannedFile
	// Conflicts are places that were edited since.
	Conflicts []Conflict
	// Torn are half-written or empty settings files, which are restored from the record.
	Torn []string
	// known is the next [Record.Known].
	known []string
	size  int // of all read files, in bytes
	names int // upper bound of the journal's bytes for files of [Plan.Then]
	// polls counts the waits for files that were being written.
	polls int
}

// PlannedFile is one file of a plan.
type PlannedFile struct {
	Before File
	// After is the new content; nil removes the file.
	After  []byte
	Mode   fs.FileMode
	Kind   Kind
	record *FileRecord // nil if the file is as it originally was
	like   *File       // for its owner, as in [Change]
	own    bool        // as in [Target]
}

// Changed reports whether a commit would change the file.
func (f PlannedFile) Changed() bool {
	if f.After == nil {
		return f.Before.Exists()
	}
	return !bytes.Equal(f.Before.Bytes, f.After) || !f.Before.Exists() || f.Before.Mode != f.Mode
}

// Diff returns the unified diff with secrets masked.
func (f PlannedFile) Diff() string { return Diff(f.Before.Path, f.Kind, f.Before.Bytes, f.After) }

// Target is a file to edit.
type Target struct {
	Path string
	Kind Kind
	// CreateMode is the permissions of a new file.
	CreateMode fs.FileMode
	// Private removes other users' permissions if the file belongs to Owner: it will hold a secret that Owner
	// reads.
	Private bool
	Owner   int
	// Own is a file of the agent: it is written by [Plan.WriteOwn], outside the transaction.
	Own bool
}

// ErrEmpty reports a settings file that is empty, even after a wait for its writer.
var ErrEmpty = errors.New("the file is empty")

// errOtherFile reports a replaced file, whose readers must not see the recorded content.
var errOtherFile = errors.New("it has another owner than the file that was changed")

// errOtherName reports that a recorded path now links to another path's file.
var errOtherName = errors.New("it is now another name of")

// AMS empties a file before it saves. A plan of the empty file would lose all settings.
const (
	emptyPoll  = 20 * time.Millisecond
	emptyPolls = 50
)

const (
	// escapedSize is the maximum of one byte of a name in the journal, as in \u003c. entrySize is for a file
	// without its name and content.
	escapedSize = 6
	entrySize   = 512
)

// maxUndo is larger than maxPlan: the files may have grown since, and a leave must be possible. With the copies that a
// leave keeps, [maxJournal] has room for them.
const maxUndo = 16 << 20

// readWhole waits for a file that is being written, for a second per plan. If the file stays half written or
// empty, it returns half if rec has its content, and otherwise an error. limit bounds all settings files of the
// plan, because the server's user controls their number.
func (p *Plan) readWhole(path string, kind Kind, rec *FileRecord, limit int) (f File, half bool, err error) {
	f, half, err = p.readSettled(path, kind, rec)
	if err != nil {
		return File{}, false, err
	}
	if kind != KindProperties {
		return f, half, nil
	}
	if p.size+len(f.Bytes) > limit {
		return File{}, false, fmt.Errorf("%s is %w: the settings files of one change have at most %d bytes together", path, files.ErrTooLarge, limit)
	}
	p.size += len(f.Bytes)
	return f, half, nil
}

func (p *Plan) readSettled(path string, kind Kind, known *FileRecord) (f File, half bool, err error) {
	var rec *FileRecord
	for {
		f, err = p.read(path, kind)
		rec = known.of(f)
		if err != nil || kind != KindProperties || !f.Exists() || len(f.Bytes) > 0 && !torn(rec, f.Bytes) {
			return f, false, err
		}
		if p.polls == emptyPolls {
			break
		}
		p.polls++
		<-time.After(emptyPoll) // too short for a context
	}
	switch {
	case rec != nil && rec.Existed:
		return f, true, nil
	case len(f.Bytes) == 0:
		return File{}, false, fmt.Errorf("%s: %w", path, ErrEmpty)
	}
	return File{}, false, fmt.Errorf("%s: %w", path, ErrTorn)
}

func (p *Plan) read(path string, kind Kind) (File, error) {
	limit := int64(MaxSettings)
	if kind == KindHosts {
		limit = maxFileSize
	}
	f, err := p.store.read(path, limit)
	switch {
	case err != nil:
		return f, err
	case !utf8.ValidString(path) || !utf8.ValidString(f.Target):
		return File{}, fmt.Errorf("the name %q is %w", f.Target, files.ErrEncoding)
	case len(filepath.Base(f.Target)) > maxBase:
		return File{}, fmt.Errorf("%s: %w: its name leaves no room for that of a copy beside it", f.Target, files.ErrHindered)
	}
	return f, nil
}

// NewPlan returns an empty plan. record, from [Store.Record], may be nil. own are the records of the agent's own files.
func (s *Store) NewPlan(record *Record, own ...*FileRecord) *Plan {
	p := &Plan{store: s, record: record, own: own}
	if record != nil {
		p.known = record.Known
	}
	return p
}

func (p *Plan) recordOf(path string) *FileRecord {
	if f := p.record.File(path); f != nil {
		return f
	}
	return (&Record{Files: p.own}).File(path)
}

// Edit plans one file. edit gets the original, with the recorded changes undone, or nil without a file. A file that
// already has the resulting meaning stays as it is.
func (p *Plan) Edit(t Target, edit func(original []byte) ([]Span, error)) error {
	if p.record == nil && t.Kind == KindProperties {
		p.known = append(p.known, t.Path)
	}
	rec, known := p.recordOf(t.Path), len(p.Conflicts)
	now, half, err := p.readWhole(t.Path, t.Kind, rec, maxPlan)
	if err != nil {
		return err
	}
	rec = rec.of(now)
	original, mode := now.Bytes, rec.found(now)
	keep := false // a copy of now, whose edits get lost
	switch {
	case half:
		// A half-written file has no edits to keep.
		if err := p.torn(now); err != nil {
			return err
		}
		original = rec.Original
	case rec != nil:
		u, err := rec.Undo(now.Bytes)
		if err != nil {
			return err
		}
		for _, c := range u.Conflicts {
			if c.Anchor != anchorValve { // it concerns the leave alone
				p.Conflicts = append(p.Conflicts, c)
			}
		}
		original, keep = u.Bytes, u.Keep && rec.Existed
		if u.Remove {
			original = nil
		}
	}
	spans, err := edit(original)
	if err != nil {
		return fmt.Errorf("%s: %w", t.Path, err)
	}
	after, err := applySpans(original, spans)
	if err != nil {
		return fmt.Errorf("%s: %w", t.Path, err)
	}
	f := PlannedFile{Before: now, After: after, Mode: mode, Kind: t.Kind, own: t.Own}
	switch {
	case original == nil && len(spans) == 0:
		f.After = nil
	case original == nil:
		f.Mode = t.CreateMode
	case t.Private && now.UID == t.Owner:
		f.Mode &^= 0o007
	}
	if f.After != nil && sameMeaning(t.Kind, now.Bytes, f.After) {
		f.After = now.Bytes
		if rec != nil && len(p.Conflicts) == known {
			// It still leads back to the original.
			kept := *rec
			kept.Mode, kept.WrittenMode = mode, f.Mode
			f.record = &kept
			p.files = append(p.files, f)
			return nil
		}
	}
	if len(spans) > 0 || f.Mode != mode || t.Own && f.Changed() {
		f.record = newFileRecord(t.Path, t.Kind, original, after, spans, now)
		f.record.Mode, f.record.WrittenMode = mode, f.Mode
		f.record.follow(rec, now)
	}
	p.files = append(p.files, f)
	if keep && f.Changed() {
		return p.keep(now, t.Own)
	}
	return nil
}

// PlanUndo plans to restore all files of the record, and the agent's own files.
func (s *Store) PlanUndo(record *Record, own ...*FileRecord) (*Plan, error) {
	return s.planUndo(record, own, nil)
}

// planUndo also names paths that are not undone: a file that is theirs by now stays as it is.
func (s *Store) planUndo(record *Record, own []*FileRecord, paths []string) (*Plan, error) {
	p := s.NewPlan(record, own...)
	records := own
	if record != nil {
		records = slices.Concat(record.Files, own)
	}
	for _, rec := range records {
		paths = append(paths, rec.Path)
	}
	names, err := s.names(paths)
	if err != nil {
		return nil, err
	}
	for i, rec := range records {
		isOwn := i >= len(records)-len(own)
		now, half, err := p.readWhole(rec.Path, rec.Kind, rec, maxUndo)
		switch name, found := names[now.Target]; {
		case err != nil:
		case rec.of(now) == nil:
			err = errOtherFile
		case found && name != rec.Path:
			err = fmt.Errorf("%w %s", errOtherName, name)
		}
		if files.Refused(err) || errors.Is(err, errOtherFile) || errors.Is(err, errOtherName) || errors.Is(err, ErrEmpty) || errors.Is(err, ErrTorn) {
			// Its owner can cause that at any time. The other files must still be restored.
			p.Conflicts = append(p.Conflicts, leftAsItIs(rec.Path, err))
			continue
		}
		if err != nil {
			return nil, err
		}
		u := Undone{Bytes: rec.Original}
		if half {
			err = p.torn(now)
		} else {
			u, err = rec.undoToLeave(now.Bytes)
		}
		if err != nil {
			return nil, err
		}
		f := PlannedFile{Before: now, After: u.Bytes, Mode: rec.found(now), Kind: rec.Kind, record: rec, own: isOwn}
		if u.Remove {
			f.After = nil
		}
		p.files = append(p.files, f)
		p.Conflicts = append(p.Conflicts, u.Conflicts...)
		if u.Keep && now.Exists() {
			if err := p.keep(now, isOwn); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

// names maps each file to the path that restores it. Of several, for example after a folder was replaced by a
// link, that is its own path or else the last one.
func (s *Store) names(paths []string) (map[string]string, error) {
	names := map[string]string{}
	for _, path := range paths {
		p, err := s.Files().Locate(path)
		if files.Refused(err) {
			continue // reading it reports that
		}
		if err != nil {
			return nil, err
		}
		p.Close()
		if other := names[p.Path()]; alike(path, p.Path()) >= alike(other, p.Path()) {
			names[p.Path()] = path
		}
	}
	return names, nil
}

// alike counts equal trailing names: the folders above may be links.
func alike(a, b string) (n int) {
	for a != "" && b != "" && filepath.Base(a) == filepath.Base(b) && len(a) > 1 && len(b) > 1 {
		a, b, n = filepath.Dir(a), filepath.Dir(b), n+1
	}
	return n
}

func leftAsItIs(path string, err error) Conflict {
	return Conflict{Path: path, Msg: fmt.Sprintf("it is left as it is: %v", err)}
}

// Then edits the planned content, or the current one of a file that the plan lacks. It makes no undo record: the
// plan must end in [Plan.CommitUndo].
func (p *Plan) Then(path string, kind Kind, edit func(planned []byte) ([]Span, error)) error {
	i := slices.IndexFunc(p.files, func(f PlannedFile) bool { return f.Before.Path == path })
	if i < 0 {
		now, _, err := p.readWhole(path, kind, p.recordOf(path), maxUndo)
		if err != nil {
			return err
		}
		// The plan may have it with another path.
		if i = slices.IndexFunc(p.files, func(f PlannedFile) bool { return f.Before.Target == now.Target }); i < 0 {
			if p.names += escapedSize*len(now.Target) + entrySize; p.names > maxRecordSize/2 {
				return fmt.Errorf("%s is %w: too many names for one change, or too long ones", path, files.ErrTooLarge)
			}
			i = len(p.files)
			p.files = append(p.files, PlannedFile{Before: now, After: now.Bytes, Mode: files.Plain(now.Mode), Kind: kind})
		}
	}
	f := &p.files[i]
	spans, err := edit(f.After)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if len(spans) == 0 {
		return nil
	}
	if f.After, err = applySpans(f.After, spans); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Planned returns the planned content of path; nil if it is removed or not planned.
func (p *Plan) Planned(path string) []byte {
	for _, f := range p.files {
		if f.Before.Path == path {
			return f.After
		}
	}
	return nil
}

// Revert restores the files and the record from before the plan's commit: it is the undo of this commit alone. Later
// edits stay if they can be separated. Files that cannot be reverted keep their record, and are conflicts.
func (p *Plan) Revert(purpose string) ([]Conflict, error) {
	committed, err := p.store.Record()
	if err != nil {
		return nil, err
	}
	if committed == nil {
		committed = &Record{}
	}
	var others []string
	back := &Record{}
	for _, f := range p.files {
		switch {
		case f.own:
		case f.Changed():
			back.Files = append(back.Files, p.back(f))
		default:
			others = append(others, f.Before.Path)
		}
	}
	undo, err := p.store.planUndo(back, nil, others)
	if err != nil {
		return nil, err
	}
	for _, path := range undo.Torn {
		undo.Conflicts = append(undo.Conflicts, Conflict{Path: path, Msg: "was half written or empty; it is again as the join found it"})
	}
	record := &Record{Known: committed.Known}
	if p.record != nil {
		for _, f := range p.record.Files {
			if undo.has(f.Path) || back.File(f.Path) == nil {
				record.Files = append(record.Files, f)
			}
		}
	}
	for _, f := range back.Files {
		if ours := committed.File(f.Path); ours != nil && !undo.has(f.Path) {
			record.Files = append(record.Files, ours)
		}
	}
	if p.record == nil && len(record.Files) == 0 {
		record = nil
	}
	changes := undo.changes()
	slices.Reverse(changes)
	return undo.Conflicts, p.store.Commit(purpose, changes, record)
}

// back returns the record that undoes the plan's change of one file alone.
func (p *Plan) back(f PlannedFile) *FileRecord {
	if f.record != nil && p.recordOf(f.Before.Path) == nil {
		return f.record
	}
	rec := newFileRecord(f.Before.Path, f.Kind, f.Before.Bytes, f.After, nil, f.Before)
	rec.WrittenMode = f.Mode
	if f.record != nil && hasRemoteIPValve(f.Before.Bytes) {
		rec.Valve = f.record.Valve
	}
	return rec
}

// torn keeps the content of a settings file.
func (p *Plan) torn(now File) error {
	p.Torn = append(p.Torn, now.Path)
	if len(now.Bytes) == 0 {
		return nil
	}
	return p.keep(now, false)
}

// keptCopies bounds the copies of one file.
const keptCopies = 100

// keep plans a copy of a file whose edits would be lost. It has the file's owner, is not executable and never
// follows a link. Former copies stay: they may be the last of an edit.
func (p *Plan) keep(f File, own bool) error {
	at, err := p.store.Files().LocateName(f.Path)
	var name string
	var saved File
	if err == nil {
		defer at.Close()
		if utf8.ValidString(at.Path()) && len(SavedName(at.Name))+len("-99") <= maxBase { // the journal's limits
			name, saved, err = spareName(at.Folder, at.Name, f.Bytes)
		}
	}
	if err != nil && !files.Refused(err) {
		return err
	}
	if name == "" || err != nil {
		p.Conflicts = append(p.Conflicts, Conflict{Path: f.Path, Msg: "the edited file is not kept: there is no name for it"})
		return nil
	}
	saved.Path, saved.Target = filepath.Join(filepath.Dir(f.Path), name), filepath.Join(at.Folder.Path(), name)
	for j, c := range p.Conflicts {
		if c.Path == f.Path {
			p.Conflicts[j].Msg = strings.ReplaceAll(c.Msg, SavedName(f.Path), saved.Path)
		}
	}
	p.files = append(p.files, PlannedFile{Before: saved, After: f.Bytes, Mode: files.Plain(f.Mode) &^ 0o111, Kind: KindWhole, like: &f, own: own})
	return nil
}

// spareName returns the first name that is free or has the same content, or "".
func spareName(d *files.Folder, base string, content []byte) (name string, _ File, _ error) {
	for i := range keptCopies {
		name = SavedName(base)
		if i > 0 {
			name = fmt.Sprintf("%s-%d", name, i)
		}
		saved, err := readIn(d, name, MaxSettings)
		if files.Refused(err) || err == nil && saved.Exists() && !bytes.Equal(saved.Bytes, content) {
			continue
		}
		return name, saved, err
	}
	return "", File{}, nil
}

// CopyOf returns the path of the file that this one is a kept copy of, or "".
func (f PlannedFile) CopyOf() string {
	if f.like == nil {
		return ""
	}
	return f.like.Path
}

// Files returns all files of the plan.
func (p *Plan) Files() []PlannedFile { return p.files }

// Changed returns the files that a commit would change.
func (p *Plan) Changed() []PlannedFile {
	var out []PlannedFile
	for _, f := range p.files {
		if f.Changed() {
			out = append(out, f)
		}
	}
	return out
}

// ChangedPaths returns the paths of [Plan.Changed].
func (p *Plan) ChangedPaths() []string {
	var paths []string
	for _, f := range p.Changed() {
		paths = append(paths, f.Before.Path)
	}
	return paths
}

// Only returns the plan for the files that keep accepts.
func (p *Plan) Only(keep func(path string) bool) *Plan {
	q := &Plan{store: p.store, record: p.record, own: p.own, known: p.known}
	for _, f := range p.files {
		if keep(f.Before.Path) {
			q.files = append(q.files, f)
		}
	}
	return q
}

// Commit makes the changes and writes a record that undoes them and the earlier ones. It writes nothing if nothing
// changes.
func (p *Plan) Commit(purpose string) error {
	changes := p.changes()
	if len(changes) == 0 {
		return nil
	}
	former := p.record
	if former == nil {
		former = &Record{}
	}
	return p.store.Commit(purpose, changes, &Record{Known: p.known, Files: p.next(former.Files, false)})
}

// next returns the records after the plan: the former ones of other files, and those of its files.
func (p *Plan) next(former []*FileRecord, own bool) (records []*FileRecord) {
	for _, f := range former {
		if !p.has(f.Path) {
			records = append(records, f)
		}
	}
	for _, f := range p.files {
		if f.record != nil && f.own == own {
			records = append(records, f.record)
		}
	}
	return records
}

// CommitUndo makes the changes and removes the record.
func (p *Plan) CommitUndo(purpose string) error {
	// In reverse order, so that after a crash the same files are new as in a commit.
	changes := p.changes()
	if len(changes) == 0 && p.record == nil {
		return nil
	}
	slices.Reverse(changes)
	return p.store.Commit(purpose, changes, nil)
}

func (p *Plan) has(path string) bool {
	for _, f := range p.files {
		if f.Before.Path == path {
			return true
		}
	}
	return false
}

func (p *Plan) changes() []Change {
	var out []Change
	for _, f := range p.Changed() {
		if !f.own {
			out = append(out, f.change())
		}
	}
	return out
}

func (f PlannedFile) change() Change {
	return Change{Before: f.Before, After: f.After, Remove: f.After == nil, Mode: f.Mode, Like: f.like}
}
