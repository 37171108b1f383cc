// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// The machines that the agent is built for: what is linked depends on them.
func architectures() []string { return []string{"amd64", "arm64"} }

// module is somebody else's work of which something is linked into the program.
type module struct {
	path, version string
	// texts are its licences, notices and patent grants: those of the module, and of its folders that are linked.
	texts []legalText
}

// legalText is one file, by its name below the module.
type legalText struct {
	name string
	// licence is its SPDX name, "" for a notice.
	licence    string
	copyrights []string
	text       string
}

// listed is what is needed of `go list -json`.
type listed struct {
	Dir, ImportPath string
	Standard        bool
	Module          *struct {
		Path, Version, Dir string
		Main               bool
	}
}

var legalName = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents|third[-_ ]party)`)

// linkedModules lists what the program is made of, with the standard library first, and the legal texts of it, from the
// very sources that are compiled. What has no licence, or one that nobody has looked at, is an error: such a package must
// not be given to anybody.
func linkedModules(top string) ([]module, error) {
	goroot, err := goOutput(top, "", "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	goversion, err := goOutput(top, "", "env", "GOVERSION")
	if err != nil {
		return nil, err
	}
	std := module{path: "Go standard library", version: strings.TrimSpace(string(goversion))}
	if err := std.read(strings.TrimSpace(string(goroot)), []string{"LICENSE", "PATENTS"}); err != nil {
		return nil, err
	}
	type source struct {
		version, dir string
		names        map[string]bool
	}
	sources := map[string]source{}
	for _, arch := range architectures() {
		out, err := goOutput(top, arch, "list", "-deps", "-json=Dir,ImportPath,Standard,Module", "./cmd/amsagent")
		if err != nil {
			return nil, err
		}
		for d := json.NewDecoder(bytes.NewReader(out)); ; {
			var p listed
			if err := d.Decode(&p); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, fmt.Errorf("reading go list: %w", err)
			}
			if p.Module == nil || p.Module.Main {
				continue
			}
			s, ok := sources[p.Module.Path]
			if !ok {
				s = source{p.Module.Version, p.Module.Dir, map[string]bool{}}
			}
			// A folder may hold code of others, under a licence of its own.
			for dir := p.Dir; ; dir = filepath.Dir(dir) {
				entries, err := os.ReadDir(dir)
				if err != nil {
					return nil, err
				}
				for _, e := range entries {
					if e.Type().IsRegular() && legalName.MatchString(e.Name()) && filepath.Ext(e.Name()) != ".go" {
						rel, err := filepath.Rel(p.Module.Dir, filepath.Join(dir, e.Name()))
						if err != nil {
							return nil, err
						}
						s.names[filepath.ToSlash(rel)] = true
					}
				}
				if dir == p.Module.Dir || len(dir) <= len(p.Module.Dir) {
					break
				}
			}
			sources[p.Module.Path] = s
		}
	}
	all := []module{std}
	for path, s := range sources {
		m := module{path: path, version: s.version}
		var names []string
		for n := range s.names {
			names = append(names, n)
		}
		slices.Sort(names)
		if err := m.read(s.dir, names); err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	slices.SortFunc(all[1:], func(a, b module) int { return strings.Compare(a.path, b.path) })
	return all, nil
}

func goOutput(dir, arch string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(context.Background(), "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
	if arch != "" {
		cmd.Env = append(cmd.Env, "GOOS=linux", "GOARCH="+arch)
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w: %s", args[0], err, said.Bytes())
	}
	return out, nil
}

func (m *module) read(dir string, names []string) error {
	licensed := false
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(name, "PATENTS") {
			continue // some distributions leave it out
		}
		if err != nil {
			return fmt.Errorf("the licence of %s: %w", m.path, err)
		}
		t := legalText{name: name, text: strings.ReplaceAll(string(b), "\r\n", "\n")}
		base := strings.ToLower(filepath.Base(name))
		if strings.HasPrefix(base, "licen") {
			if t.licence = licenceOf(t.text); t.licence == "" {
				return fmt.Errorf("%s %s: nobody knows the licence in %s: look at it, and teach pkgdata its name", m.path, m.version, name)
			}
			licensed = true
		}
		t.copyrights = copyrightLines(t.text)
		m.texts = append(m.texts, t)
	}
	if !licensed {
		return fmt.Errorf("%s %s has no licence: it must not be given away", m.path, m.version)
	}
	return nil
}

// licences lists the names, each once.
func (m module) licences() []string {
	var names []string
	for _, t := range m.texts {
		for name := range strings.SplitSeq(t.licence, " and ") {
			if name != "" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// licenceOf names a licence by the words that only it has; "" for one that is not known. A file may hold several.
func licenceOf(text string) string {
	flat := strings.Join(strings.Fields(text), " ")
	has := func(s string) bool { return strings.Contains(flat, s) }
	var names []string
	if has("Apache License Version 2.0, January 2004") || has("Licensed under the Apache License, Version 2.0") {
		names = append(names, "Apache-2.0")
	}
	if has("Redistribution and use in source and binary forms") {
		switch {
		case has("Neither the name") || has("name of the author may not be used") || has("names of its contributors may be used"):
			names = append(names, "BSD-3-Clause")
		default:
			names = append(names, "BSD-2-Clause")
		}
	}
	if has("Permission is hereby granted, free of charge, to any person obtaining a copy") {
		names = append(names, "MIT")
	}
	if has("Permission to use, copy, modify, and/or distribute this software for any purpose") ||
		has("Permission to use, copy, modify, and distribute this software for any purpose") {
		names = append(names, "ISC")
	}
	if has("Mozilla Public License Version 2.0") {
		names = append(names, "MPL-2.0")
	}
	return strings.Join(names, " and ")
}

var copyrightLine = regexp.MustCompile(`(?i)^[\s*/#-]*(?:the [^.]{0,60} files? .{0,40})?(copyright\s+(?:\(c\)|©|[0-9]).*)$`)

// copyrightLines are the lines that name an owner, without those of a licence's own text.
func copyrightLines(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		m := copyrightLine.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil || strings.Contains(m[1], "[yyyy]") || strings.Contains(m[1], "{yyyy}") {
			continue
		}
		l := strings.Join(strings.Fields(m[1]), " ")
		if !slices.Contains(lines, l) {
			lines = append(lines, l)
		}
	}
	return lines
}

// debianCopyright is Debian's machine-readable format. The full texts stand in it, because those of BSD and MIT want to
// be reproduced; Debian has the Apache and the Mozilla licence itself.
func debianCopyright(all []module) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: %s
Source: %s
Comment: /usr/bin/amsagent is one static program. It holds code of the modules
 that are named below with their versions, each as "Files"; their sources
 are to be had under those names where Go gets its modules.

Files: *
Copyright: The amsagent Authors
License: Apache-2.0
`, program, homepage)
	for _, m := range all {
		b.WriteString("\nFiles: " + m.fileName() + "/*\n")
		var owners, named []string
		for _, t := range m.texts {
			for _, c := range t.copyrights {
				if owner := strings.TrimSpace(c[len("copyright"):]); !slices.Contains(owners, owner) {
					owners = append(owners, owner)
				}
			}
		}
		if len(owners) == 0 {
			owners = []string{"the authors of " + m.path}
		}
		field(&b, "Copyright", strings.Join(owners, "\n"))
		named = m.licences()
		fmt.Fprintf(&b, "License: %s\n", strings.Join(named, " and "))
		var body strings.Builder
		body.WriteString(m.path + " " + m.version + "\n")
		for _, t := range m.texts {
			if t.licence == "Apache-2.0" || t.licence == "MPL-2.0" {
				continue // below, once
			}
			fmt.Fprintf(&body, "\n--- %s\n\n%s", t.name, apacheText.ReplaceAllString(t.text, "\n    [the Apache License 2.0, as below]\n"))
		}
		paragraph(&b, body.String())
	}
	for _, l := range []string{"Apache-2.0", "MPL-2.0"} {
		fmt.Fprintf(&b, "\nLicense: %s\n On Debian systems the full text is in /usr/share/common-licenses/%s.\n", l, l)
	}
	return b.Bytes()
}

// apacheText is the whole licence where it stands among others: Debian wants a reference in its place.
var apacheText = regexp.MustCompile(`(?s)\n[ \t]*Apache License\n[ \t]*Version 2\.0, January 2004\n.*?accepting\s+any\s+such\s+warranty\s+or\s+additional\s+liability\.(?:\s+END OF TERMS AND CONDITIONS)?[ \t]*\n`)

// fileName is a module in a field that knows no blanks.
func (m module) fileName() string { return strings.ReplaceAll(m.path, " ", "-") }

func field(b *bytes.Buffer, name, value string) {
	for i, line := range strings.Split(value, "\n") {
		if i == 0 {
			fmt.Fprintf(b, "%s: %s\n", name, line)
		} else {
			fmt.Fprintf(b, " %s\n", line)
		}
	}
}

// paragraph writes lines as the continuation of a field.
func paragraph(b *bytes.Buffer, text string) {
	for line := range strings.Lines(strings.TrimSpace(text) + "\n") {
		if line = strings.TrimRight(line, " \t\n\f"); line == "" {
			line = "."
		}
		b.WriteString(" " + line + "\n")
	}
}

// notices is the same for people, with every text in full: what other distributions get.
func notices(all []module) []byte {
	var b bytes.Buffer
	b.WriteString("amsagent is one static program. It holds code of the following modules, under these licences.\n" +
		"Their sources are to be had under these names and versions where Go gets its modules.\n\n")
	for _, m := range all {
		fmt.Fprintf(&b, "  %s %s: %s\n", m.path, m.version, strings.Join(m.licences(), " and "))
	}
	// Many have the very same text: it stands there once, below all of them.
	var order []string
	owners := map[string][]string{}
	for _, m := range all {
		for _, t := range m.texts {
			text := strings.Trim(t.text, "\n")
			if owners[text] == nil {
				order = append(order, text)
			}
			owners[text] = append(owners[text], m.path+" "+m.version+": "+t.name)
		}
	}
	for _, text := range order {
		fmt.Fprintf(&b, "\n%s\n%s\n\n%s\n", strings.Repeat("-", 78), strings.Join(owners[text], "\n"), text)
	}
	return b.Bytes()
}
