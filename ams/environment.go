// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/files"
)

// environment is what a unit's next start is given, in systemd's order: of the
// assignments to one name the last one counts.
type environment struct {
	assignments []assignment
	unread      []string // files that could not be read, with the reason
}

// assignment is one NAME=VALUE and the file that has it, "" for the unit.
type assignment struct{ text, file string }

// value is what a name is given, with the file that gives it.
func (e environment) value(name string) assignment {
	for _, a := range slices.Backward(e.assignments) {
		if v, ok := strings.CutPrefix(a.text, name+"="); ok {
			return assignment{v, a.file}
		}
	}
	return assignment{}
}

// unitEnvironment reads a unit's Environment=, and after it, since they count more,
// the files of EnvironmentFile=, which systemd itself reads at a start only. Of these
// only our names are kept: the others' values may be secrets.
func unitEnvironment(p map[string]any) environment {
	var e environment
	own, _ := p["Environment"].([]string)
	for _, text := range own {
		e.assignments = append(e.assignments, assignment{text: text})
	}
	entries, _ := p["EnvironmentFiles"].([][]any)
	for _, entry := range entries {
		if len(entry) < 2 {
			continue
		}
		pattern, ok := entry[0].(string)
		optional, known := entry[1].(bool)
		if !ok || !known {
			continue
		}
		paths, err := environmentFiles(pattern)
		if err == nil && len(paths) == 0 && !optional {
			err = fs.ErrNotExist
		}
		if err != nil {
			e.unread = append(e.unread, fmt.Sprintf("%s: %v", pattern, err))
		}
		for _, path := range paths {
			b, _, err := readBelow("", path, conf.MaxSettings)
			if optional && errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				e.unread = append(e.unread, fmt.Sprintf("%s: %v", path, err))
				continue
			}
			for _, text := range fileAssignments(string(b), HostAddressVariable, homeVariable) {
				e.assignments = append(e.assignments, assignment{text: text, file: path})
			}
		}
	}
	return e
}

// maxEnvironmentFiles bounds the files of one pattern.
const maxEnvironmentFiles = 64

// environmentFiles names the files of a pattern, sorted. It is root's, but the folder may be the
// server's user's, who decides how many there are, and where a link leads.
func environmentFiles(pattern string) ([]string, error) {
	const signs = `*?[\`
	dir, last := filepath.Split(pattern)
	switch {
	case strings.ContainsAny(dir, signs):
		return nil, errors.New("a pattern for folders is not followed")
	case !strings.ContainsAny(last, signs):
		return []string{pattern}, nil
	}
	if _, err := filepath.Match(last, ""); err != nil {
		return nil, err
	}
	d, err := files.Root{}.Folder(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var paths []string
	err = d.Each(func(name string) bool {
		if fits, err := filepath.Match(last, name); err == nil && fits {
			paths = append(paths, dir+name)
		}
		return len(paths) <= maxEnvironmentFiles
	})
	if err == nil && len(paths) > maxEnvironmentFiles {
		err = fmt.Errorf("%w: more than %d files", files.ErrTooLarge, maxEnvironmentFiles)
	}
	if err != nil {
		return nil, err
	}
	slices.Sort(paths)
	return paths, nil
}

// fileAssignments finds names in the text of an environment file, which it takes apart as systemd does. An address or
// a path needs no escape and no second line, so these are not decoded.
func fileAssignments(text string, names ...string) []string {
	const blanks, lineEnds = " \t", "\r\n"
	var out []string
	for {
		text = strings.TrimLeft(text, blanks+lineEnds)
		if text == "" {
			return out
		}
		sign := strings.IndexAny(text, "="+lineEnds)
		if sign < 0 {
			return out
		}
		// Before its release 254 systemd continued a comment that ends in a backslash. What
		// follows one may count, depending on the release, so it is listed.
		if text[0] == '#' || text[0] == ';' || text[sign] != '=' {
			end := strings.IndexAny(text, lineEnds)
			if end < 0 {
				return out
			}
			text = text[end:]
			continue
		}
		name := strings.TrimRight(text[:sign], blanks)
		text = text[sign+1:]
		end := valueEnd(text)
		value := strings.Trim(text[:end], blanks+lineEnds)
		text = text[end:]
		if !slices.Contains(names, name) {
			continue
		}
		if n := strings.IndexAny(value, lineEnds); n >= 0 {
			value = strings.TrimRight(value[:n], blanks)
		}
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		out = append(out, name+"="+value)
	}
}

// valueEnd is where the value at the start of the text ends: at a line end that is
// neither behind a backslash nor in quotes.
func valueEnd(text string) int {
	var quote byte
	opens := true // a quote is one only at the start and behind another's end
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && quote != '\'':
			i++
			opens = false
		case quote != 0:
			if c == quote {
				quote, opens = 0, true
			}
		case c == '\r', c == '\n':
			return i
		case opens && (c == '"' || c == '\''):
			quote = c
		case c != ' ' && c != '\t':
			opens = false
		}
	}
	return len(text)
}
