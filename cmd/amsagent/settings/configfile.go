// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

// ConfigFile is config.yaml as it was read: values with their lines, and the faults of the file itself.
type ConfigFile struct {
	// path has the root before it.
	path   string
	bytes  []byte
	values map[string]fileValue
	errs   []error
}

type fileValue struct {
	text string
	line int
}

// IDSecret is the id of a password in config.yaml.
const IDSecret = "AGENT-CONFIG-SECRET"

// MaxSmallFile bounds the files we read whole: config.yaml and the one with the connection string.
const MaxSmallFile = 256 << 10

// UnderRoot puts a path below root. It follows links as if root were /.
func UnderRoot(root, path string) (string, error) {
	if root == "" {
		return path, nil
	}
	return securejoin.SecureJoin(root, path)
}

// ReadSmallFile reads a regular file. It opens without waiting, so that a FIFO in its place is refused, not waited for.
func ReadSmallFile(path string) ([]byte, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxSmallFile+1))
	if err != nil {
		return nil, nil, err
	}
	if len(b) > MaxSmallFile {
		return nil, nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("larger than %d KiB", MaxSmallFile>>10)}
	}
	return b, info, nil
}

// readConfigFile reads config.yaml. A missing one is an error only if a flag or a variable names it.
func readConfigFile(root, path string, o Origin) (*ConfigFile, error) {
	full, err := UnderRoot(root, path)
	if err != nil {
		full = path
	} else {
		var b []byte
		if b, _, err = ReadSmallFile(full); err == nil {
			return parseConfigFile(full, b), nil
		}
	}
	e := o.Fault(fmt.Errorf("reading the settings: %w", err))
	if o.Layer == FromDefault {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		e.Source, e.Layer = full, FromFile
	}
	return nil, e
}

// parseConfigFile keeps the other lines if a line is wrong.
func parseConfigFile(path string, b []byte) *ConfigFile {
	c := &ConfigFile{path: path, bytes: b, values: map[string]fileValue{}}
	var last *Error
	fail := func(line int, hints []string, format string, args ...any) {
		last = &Error{Source: path, Layer: FromFile, Line: line, Err: fmt.Errorf(format, args...), Hints: hints}
		if line > 0 {
			last.Source = fmt.Sprintf("%s:%d", path, line)
		}
		c.errs = append(c.errs, last)
	}
	shape := []string{"the file is a list of `key: value` lines; `amsagent help config` lists the keys"}

	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return c // empty, or comments only
	case err != nil:
		line, text := yamlLine(err)
		fail(line, shape, "not YAML: %s", text)
		return c
	}
	var second yaml.Node
	if err := dec.Decode(&second); err == nil {
		fail(second.Line, shape, "a second document in one file")
	} else if !errors.Is(err, io.EOF) {
		line, text := yamlLine(err)
		fail(line, shape, "not YAML: %s", text)
	}
	top := &doc
	if top.Kind == yaml.DocumentNode && len(top.Content) == 1 {
		top = top.Content[0]
	}
	if top.Kind == yaml.ScalarNode && top.Tag == "!!null" {
		return c
	}
	if top.Kind != yaml.MappingNode {
		fail(top.Line, shape, "not a list of settings")
		return c
	}

	lines := map[string]int{}
	for i := 0; i+1 < len(top.Content); i += 2 {
		k, v := top.Content[i], top.Content[i+1]
		row, known := ByKey(k.Value)
		text, plain := plainValue(v, row)
		first := lines[k.Value]
		lines[k.Value] = cmp.Or(first, k.Line)
		switch {
		case k.Kind != yaml.ScalarNode:
			fail(k.Line, shape, "a key that is not a word")
		case first > 0:
			fail(k.Line, nil, "%s is set a second time, first in line %d", k.Value, first)
		case !known:
			fail(k.Line, unknownKeyHints(k.Value), "unknown key %q", k.Value)
			last.unknownKey = true
		case row.NoFile:
			fail(k.Line, []string{fmt.Sprintf("use --%s or %s", row.Flag, row.Env())}, "%s cannot be set in this file", k.Value)
			last.unknownKey = true
		case !plain && row.list():
			fail(v.Line, shape, "%s must be one plain value, or a list of such: %s", k.Value, row.Arg)
		case !plain:
			fail(v.Line, shape, "%s must be one plain value", k.Value)
		case v.Tag == "!!null" || v.Kind == yaml.SequenceNode && len(v.Content) == 0:
			// `role:` with nothing after it, or an empty list: not set
		case k.Value == KeyMongo && hasPassword(text):
			fail(v.Line, []string{"put it into a file of its own, mode 0600, and write here: mongo: file:/etc/amsagent/mongo"},
				"a password does not belong in this file: every user can read it")
			last.ID = IDSecret
		default:
			c.values[k.Value] = fileValue{text: text, line: v.Line}
		}
	}
	return c
}

// unknownKeyHints names a key that is near.
func unknownKeyHints(key string) []string {
	var known []string
	for _, row := range Table() {
		if !row.NoFile {
			known = append(known, row.Key)
		}
	}
	if near := NearWords(strings.ReplaceAll(key, "-", "_"), known...); len(near) > 0 {
		return []string{fmt.Sprintf("did you mean `%s`?", near[0])}
	}
	return []string{"`amsagent help config` lists the keys"}
}

// NearWords returns the known words that are near to a word. Cobra compares only commands.
func NearWords(word string, known ...string) []string {
	all := &cobra.Command{SuggestionsMinimumDistance: 2}
	for _, k := range known {
		all.AddCommand(&cobra.Command{Use: k, Run: func(*cobra.Command, []string) {}})
	}
	return all.SuggestionsFor(word)
}

// plainValue is a value in the form of flags and variables. A comma list may be a list of YAML.
func plainValue(v *yaml.Node, row Setting) (string, bool) {
	if v.Kind == yaml.ScalarNode {
		return v.Value, true
	}
	if !row.list() || v.Kind != yaml.SequenceNode {
		return "", false
	}
	var parts []string
	for _, part := range v.Content {
		if part.Kind != yaml.ScalarNode || part.Tag == "!!null" || strings.Contains(part.Value, ",") {
			return "", false
		}
		parts = append(parts, part.Value)
	}
	return strings.Join(parts, ","), true
}

var yamlLinePrefix = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// yamlLine takes the line number out of the parser's message, which has it only as text.
func yamlLine(err error) (int, string) {
	text := err.Error()
	m := yamlLinePrefix.FindStringSubmatch(text)
	if m == nil {
		return 0, text
	}
	line, _ := strconv.Atoi(m[1])
	return line, strings.TrimPrefix(text, m[0])
}
