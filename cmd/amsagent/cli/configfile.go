// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

// configFile is config.yaml as it was read: values with their lines, and everything wrong with the file itself.
type configFile struct {
	// path is the one to open, with the root before it.
	path   string
	bytes  []byte
	values map[string]fileValue
	errs   []error
}

type fileValue struct {
	text string
	line int
}

// idSecret is the id of a password in config.yaml.
const idSecret = "AMS-CONFIG-SECRET"

// maxSmallFile bounds the files we read whole: config.yaml and the one with the connection string.
const maxSmallFile = 256 << 10

// underRoot puts a path below root. It follows links as if root were /.
func underRoot(root, path string) (string, error) {
	if root == "" {
		return path, nil
	}
	return securejoin.SecureJoin(root, path)
}

// readSmallFile reads a regular file. It opens without waiting, so that a FIFO in its place is refused, not waited for.
func readSmallFile(path string) ([]byte, fs.FileInfo, error) {
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
	b, err := io.ReadAll(io.LimitReader(f, maxSmallFile+1))
	if err != nil {
		return nil, nil, err
	}
	if len(b) > maxSmallFile {
		return nil, nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("larger than %d KiB", maxSmallFile>>10)}
	}
	return b, info, nil
}

// readConfigFile reads config.yaml. A missing one is fine unless somebody named it: then nil is not what they meant.
func readConfigFile(root, path string, named *origin) (*configFile, error) {
	full, err := underRoot(root, path)
	if err != nil {
		full = path
	} else {
		var b []byte
		if b, _, err = readSmallFile(full); err == nil {
			return parseConfigFile(full, b), nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) && named == nil {
		return nil, nil
	}
	source, l := full, layerFile
	if named != nil {
		source, l = named.String(), named.Layer
	}
	return nil, &settingError{source: source, layer: l, err: fmt.Errorf("reading the settings: %w", err)}
}

// parseConfigFile never fails as a whole where it can name a line instead.
func parseConfigFile(path string, b []byte) *configFile {
	c := &configFile{path: path, bytes: b, values: map[string]fileValue{}}
	fault := func(line int, hints []string, format string, args ...any) *settingError {
		source := path
		if line > 0 {
			source = fmt.Sprintf("%s:%d", path, line)
		}
		return &settingError{source: source, layer: layerFile, line: line, err: fmt.Errorf(format, args...), hints: hints}
	}
	fail := func(line int, hints []string, format string, args ...any) {
		c.errs = append(c.errs, fault(line, hints, format, args...))
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

	var known []string
	for _, row := range settingsTable() {
		if !row.noFile {
			known = append(known, row.key)
		}
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(top.Content); i += 2 {
		k, v := top.Content[i], top.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			fail(k.Line, shape, "a key that is not a word")
			continue
		}
		if first, dup := seen[k.Value]; dup {
			fail(k.Line, nil, "%s is set a second time, first in line %d", k.Value, first)
			continue
		}
		seen[k.Value] = k.Line
		if !slices.Contains(known, k.Value) {
			var e *settingError
			if row, ok := settingByKey(k.Value); ok {
				e = fault(k.Line, []string{fmt.Sprintf("use --%s or %s", row.flag, row.env())}, "%s cannot be set in this file", k.Value)
			} else {
				e = fault(k.Line, unknownKeyHints(k.Value, known), "unknown key %q", k.Value)
			}
			e.unknownKey = true
			c.errs = append(c.errs, e)
			continue
		}
		row, _ := settingByKey(k.Value)
		text, ok := plainValue(v, row)
		switch {
		case !ok && row.list():
			fail(v.Line, shape, "%s must be one plain value, or a list of such: %s", k.Value, row.arg)
			continue
		case !ok:
			fail(v.Line, shape, "%s must be one plain value", k.Value)
			continue
		}
		if v.Tag == "!!null" || v.Kind != yaml.ScalarNode && len(v.Content) == 0 {
			continue // `role:` with nothing after it, or an empty list: not set
		}
		if k.Value == keyMongo && hasPassword(v.Value) {
			e := fault(v.Line, []string{
				"put it into a file of its own, mode 0600, and write here: mongo: file:/etc/amsagent/mongo",
			}, "a password does not belong in this file, everybody can read it")
			e.id = idSecret
			c.errs = append(c.errs, e)
			continue
		}
		c.values[k.Value] = fileValue{text: text, line: v.Line}
	}
	return c
}

// unknownKeyHints names a key that is near.
func unknownKeyHints(key string, known []string) []string {
	if near := nearWords(strings.ReplaceAll(key, "-", "_"), known...); len(near) > 0 {
		return []string{fmt.Sprintf("did you mean `%s`?", near[0])}
	}
	return []string{"`amsagent help config` lists the keys"}
}

// nearWords returns the words that may be meant. Cobra can compare only commands.
func nearWords(word string, known ...string) []string {
	all := &cobra.Command{SuggestionsMinimumDistance: 2}
	for _, k := range known {
		all.AddCommand(&cobra.Command{Use: k, Run: func(*cobra.Command, []string) {}})
	}
	return all.SuggestionsFor(word)
}

// plainValue is a value as flags and variables have it. A comma list may be a list of YAML.
func plainValue(v *yaml.Node, row setting) (string, bool) {
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
