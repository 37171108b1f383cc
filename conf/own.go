// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Own returns the records of the agent's own files after [Plan.WriteOwn]. They must be saved before it.
func (p *Plan) Own() []*FileRecord { return p.next(p.own, true) }

// WriteOwn writes the agent's own files one by one, each by rename. No server reads them, and each has its record.
func (p *Plan) WriteOwn() error {
	for _, copies := range []bool{true, false} { // copies first: then their originals are replaced
		for _, f := range p.files {
			if !f.own || copies != (f.CopyOf() != "") {
				continue
			}
			if f.Changed() {
				if err := p.store.put(f); err != nil {
					return err
				}
			}
			if f.After == nil && f.record != nil {
				if err := p.store.removeFolders(f.Before.Path, f.record.Folders); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// RevertOwn restores the agent's own files from before [Plan.WriteOwn], which may have failed.
func (p *Plan) RevertOwn() ([]Conflict, error) {
	var back []*FileRecord
	for _, f := range p.Changed() {
		if f.own {
			back = append(back, p.back(f))
		}
	}
	undo, err := p.store.PlanUndo(nil, back...)
	if err != nil {
		return nil, err
	}
	return undo.Conflicts, undo.WriteOwn()
}

// put replaces or removes a file. /etc/hosts of a container, which is a mount point, is written in place.
func (s *Store) put(f PlannedFile) error {
	at, err := s.Files().Locate(f.Before.Path)
	if err != nil {
		return err
	}
	d := at.Folder
	if len(at.Missing) > 0 {
		at.Close()
		if d, err = s.makeFolder(filepath.Dir(at.Path()), 0o755); err != nil {
			return err
		}
	}
	defer d.Close()
	change := newJournalFile(at.Path(), f.change())
	now, err := readIn(d, at.Name, maxFileSize)
	switch {
	case err != nil:
		return err
	case sumOf(now.Bytes) == change.After && (!now.Exists() || now.Mode == f.Mode):
		return nil // written already
	}
	if err := change.unchanged(now, &f.Before); err != nil {
		return err
	}
	attributes := d.In(f.Mode)
	if now.Exists() {
		if attributes, err = change.attributes(d, at.Name, &f.Before); err != nil {
			return err
		}
		attributes.Mode = f.Mode
	}
	if change.Owner != nil {
		attributes.UID, attributes.GID = change.Owner.UID, change.Owner.GID
	}
	if f.After == nil {
		return errors.Join(d.Remove(at.Name), d.Sync())
	}
	if err = replace(d, at.Name, f.After, attributes); !errors.Is(err, unix.EBUSY) || f.Kind != KindHosts {
		return err
	}
	if err = d.Overwrite(at.Name, f.After); err != nil {
		return errors.Join(err, d.Overwrite(at.Name, now.Bytes))
	}
	return nil
}

// removeFolders removes empty folders above a file, innermost first.
func (s *Store) removeFolders(path string, n int) error {
	for range n {
		path = filepath.Dir(path)
		at, err := s.Files().LocateName(path)
		if err != nil {
			return ignoreGone(err)
		}
		if len(at.Missing) == 0 {
			err = at.Folder.RemoveFolder(at.Name)
		}
		at.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// Made returns the record of a present file, as if its commit had made it or, in /etc/hosts, only its line.
func (f File) Made(kind Kind) *FileRecord {
	rec := newFileRecord(f.Path, kind, nil, f.Bytes, nil, f)
	rec.Folders = 1
	if kind == KindHosts {
		rec = newFileRecord(f.Path, kind, replaceMarkedHost(f.Bytes, nil), f.Bytes, nil, f)
	}
	rec.WrittenMode = rec.Mode
	return rec
}
