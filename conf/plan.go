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
	"time"
)

// Plan collects what is to become of several files, and commits it as one.
//
// Every file is planned from its original: where an undo record knows the file,
// our former spans are first taken back in memory. So a second join with other
// values still gives back on leave what the first one found.
type Plan struct {
	store  *Store
	record *Record // as found; nil when there is none
	files  []PlannedFile
	// Conflicts are places that others edited after us.
	Conflicts []Conflict
	dirs      []string
}

// PlannedFile is one file of a plan.
type PlannedFile struct {
	Before File
	// After is what it becomes; nil when it is removed.
	After  []byte
	Mode   fs.FileMode
	Kind   Kind
	record *FileRecord // nil: the file is as it originally was
}

// Changed reports whether committing the plan would touch the file.
func (f PlannedFile) Changed() bool {
	if f.After == nil {
		return f.Before.Exists()
	}
	return !bytes.Equal(f.Before.Bytes, f.After) || !f.Before.Exists() || f.Before.Mode != f.Mode
}

// Diff is the change as a unified diff with secrets masked.
func (f PlannedFile) Diff() string { return Diff(f.Before.Path, f.Kind, f.Before.Bytes, f.After) }

// Target is what an edit wants of one file.
type Target struct {
	Path string
	Kind Kind
	// CreateMode is the permission bits of a file that does not exist yet.
	CreateMode fs.FileMode
	// Private takes the file out of the world's sight: it now holds a secret.
	Private bool
}

// ErrEmpty says that a settings file has no byte in it: it is being written for
// longer than anybody takes, or was lost.
var ErrEmpty = errors.New("the file is empty")

// AMS saves its settings by emptying the file and writing it. A plan made of the
// empty one would lose them all.
const (
	emptyPoll  = 20 * time.Millisecond
	emptyPolls = 50
)

// readWhole reads a file for a plan, waiting a second for one that is just being
// written.
func (s *Store) readWhole(path string, kind Kind) (File, error) {
	for range emptyPolls {
		f, err := s.Read(path)
		if err != nil || kind != KindProperties || !f.Exists() || len(f.Bytes) > 0 {
			return f, err
		}
		<-time.After(emptyPoll) // a second in all: no context is worth its way through every edit
	}
	return File{}, fmt.Errorf("%s: %w", path, ErrEmpty)
}

// NewPlan begins a plan. record is [Store.Record]'s, and may be nil.
func (s *Store) NewPlan(record *Record) *Plan {
	p := &Plan{store: s, record: record}
	if record != nil {
		p.dirs = record.Dirs
	}
	return p
}

// Edit plans one file. edit gets the original — the file without our former
// spans, nil when it is not there — and returns the spans to replace in it.
func (p *Plan) Edit(t Target, edit func(original []byte) ([]Span, error)) error {
	now, err := p.store.readWhole(t.Path, t.Kind)
	if err != nil {
		return err
	}
	original, mode := now.Bytes, now.Mode
	rec := p.record.File(t.Path)
	if rec != nil {
		u, err := rec.Undo(now.Bytes)
		if err != nil {
			return err
		}
		p.Conflicts = append(p.Conflicts, u.Conflicts...)
		original = u.Bytes
		if u.Remove {
			original = nil
		}
		if now.Mode == rec.WrittenMode {
			mode = rec.Mode
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
	f := PlannedFile{Before: now, After: after, Mode: mode, Kind: t.Kind}
	switch {
	case original == nil && len(spans) == 0:
		f.After = nil
	case original == nil:
		f.Mode = t.CreateMode
	case t.Private:
		f.Mode &^= 0o007
	}
	if len(spans) > 0 || f.Mode != mode {
		f.record = &FileRecord{
			Path: t.Path, Kind: t.Kind, Existed: original != nil, Original: original, Spans: spans,
			Mode: mode, WrittenMode: f.Mode, Written: sum(after),
		}
	}
	p.files = append(p.files, f)
	return nil
}

// PlanUndo plans to give back everything the record knows.
func (s *Store) PlanUndo(record *Record) (*Plan, error) {
	p := s.NewPlan(record)
	if record == nil {
		return p, nil
	}
	for _, rec := range record.Files {
		now, err := s.readWhole(rec.Path, rec.Kind)
		if err != nil {
			return nil, err
		}
		u, err := rec.Undo(now.Bytes)
		if err != nil {
			return nil, err
		}
		f := PlannedFile{Before: now, After: u.Bytes, Mode: now.Mode, Kind: rec.Kind}
		if u.Remove {
			f.After = nil
		} else if now.Mode == rec.WrittenMode {
			f.Mode = rec.Mode
		}
		p.files = append(p.files, f)
		p.Conflicts = append(p.Conflicts, u.Conflicts...)
		if len(u.Conflicts) > 0 && now.Exists() && rec.Kind == KindWhole {
			if err := p.keep(now); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

// Then edits what the plan already makes of a file, or the file as it is where
// the plan does not have it. No undo record is kept of it: it is meant for a
// plan that ends in [Plan.CommitUndo].
func (p *Plan) Then(path string, kind Kind, edit func(planned []byte) ([]Span, error)) error {
	i := slices.IndexFunc(p.files, func(f PlannedFile) bool { return f.Before.Path == path })
	if i < 0 {
		now, err := p.store.Read(path)
		if err != nil {
			return err
		}
		i = len(p.files)
		p.files = append(p.files, PlannedFile{Before: now, After: now.Bytes, Mode: now.Mode, Kind: kind})
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

// Remove plans to remove a file of ours, and its folder where that is empty then.
// A file that is not there, or already in the plan, is no error. Like
// [Plan.Then] it is meant for a plan that ends in [Plan.CommitUndo].
func (p *Plan) Remove(path string) error {
	now, err := p.store.Read(path)
	if err != nil || p.has(path) || !now.Exists() {
		return err
	}
	p.files = append(p.files, PlannedFile{Before: now, Kind: KindWhole})
	p.dirs = append(p.dirs, filepath.Dir(path))
	return nil
}

// Planned is what path becomes; nil when it is removed, or not in the plan.
func (p *Plan) Planned(path string) []byte {
	for _, f := range p.files {
		if f.Before.Path == path {
			return f.After
		}
	}
	return nil
}

// Revert puts back what the plan found after it was committed, together with
// the undo record it found. Edits that somebody made since stay where they can
// be told from ours; a file where they cannot is left as it is and named, and the
// record keeps what undoing it needs.
func (p *Plan) Revert(purpose string) ([]Conflict, error) {
	var conflicts []Conflict
	var changes []Change
	var dirs []string
	committed, err := p.store.Record()
	if err != nil {
		return nil, err
	}
	record := p.record
	keep := func(f *FileRecord) {
		next := &Record{Version: recordVersion, Files: []*FileRecord{f}}
		if record != nil {
			next.Dirs = record.Dirs
			for _, g := range record.Files {
				if g.Path != f.Path {
					next.Files = append(next.Files, g)
				}
			}
		}
		record = next
	}
	for _, f := range slices.Backward(p.Changed()) {
		now, err := p.store.Read(f.Before.Path)
		if err != nil {
			return nil, err
		}
		c := Change{Before: now, After: f.Before.Bytes, Remove: !f.Before.Exists(), Mode: f.Before.Mode}
		switch {
		case fileSum(now) == fileSum(f.Before) && now.Mode == f.Before.Mode:
			continue
		case bytes.Equal(now.Bytes, f.After) || fileSum(now) == fileSum(f.Before):
		default:
			ours := committed.File(f.Before.Path)
			merged, remove, more := p.revertEdited(f, ours, now.Bytes)
			conflicts = append(conflicts, more...)
			if merged == nil && !remove {
				if ours != nil {
					keep(ours)
				}
				continue
			}
			c.After, c.Remove = merged, remove
			if now.Mode != f.Mode {
				c.Mode = now.Mode // somebody set it
			}
		}
		changes = append(changes, c)
	}
	if committed != nil {
		for _, d := range committed.Dirs {
			if record == nil || !slices.Contains(record.Dirs, d) {
				dirs = append(dirs, d)
			}
		}
	}
	return conflicts, p.store.Commit(purpose, changes, record, dirs)
}

// revertEdited takes our change back in a file that was edited since. Nothing
// and no removal means that it cannot be done.
func (p *Plan) revertEdited(f PlannedFile, ours *FileRecord, now []byte) (merged []byte, remove bool, _ []Conflict) {
	left := []Conflict{{Path: f.Before.Path, Msg: "was edited since we wrote it; it is left as it is"}}
	if now == nil || f.Kind == KindWhole {
		return nil, false, left
	}
	if p.record.File(f.Before.Path) == nil && ours != nil {
		// It was as it originally was: this is what leaving does.
		u, err := ours.Undo(now)
		if err != nil {
			return nil, false, left
		}
		return u.Bytes, u.Remove, u.Conflicts
	}
	if merged, clean := merge3(f.After, f.Before.Bytes, now); clean && merged != nil {
		return merged, false, nil
	}
	return nil, false, left
}

// keep plans a copy of a file whose edits undoing loses.
func (p *Plan) keep(f File) error {
	saved, err := p.store.Read(savedName(f.Path))
	if err != nil {
		return err
	}
	p.files = append(p.files, PlannedFile{Before: saved, After: f.Bytes, Mode: f.Mode, Kind: KindWhole})
	return nil
}

// Files lists every file of the plan, changed or not.
func (p *Plan) Files() []PlannedFile { return p.files }

// Changed lists the files that committing would touch.
func (p *Plan) Changed() []PlannedFile {
	var out []PlannedFile
	for _, f := range p.files {
		if f.Changed() {
			out = append(out, f)
		}
	}
	return out
}

// Commit makes the changes, and leaves a record that can undo them together
// with those before. It writes nothing when nothing changes.
func (p *Plan) Commit(purpose string) error {
	record := &Record{Version: recordVersion}
	if p.record != nil {
		record.Dirs = p.record.Dirs
		for _, f := range p.record.Files {
			if !p.has(f.Path) {
				record.Files = append(record.Files, f)
			}
		}
	}
	for _, f := range p.files {
		if f.record != nil {
			record.Files = append(record.Files, f.record)
		}
	}
	if len(p.Changed()) == 0 {
		return nil
	}
	return p.store.Commit(purpose, p.changes(), record, nil)
}

// CommitUndo makes the changes and forgets the record.
func (p *Plan) CommitUndo(purpose string) error {
	if len(p.Changed()) == 0 && p.record == nil {
		return nil
	}
	// What a commit puts in place last, undoing takes away first: a crash in
	// between leaves the same kind of prefix.
	changes := p.changes()
	slices.Reverse(changes)
	return p.store.Commit(purpose, changes, nil, p.dirs)
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
		out = append(out, Change{Before: f.Before, After: f.After, Remove: f.After == nil, Mode: f.Mode})
	}
	return out
}
