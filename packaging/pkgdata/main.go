// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Command pkgdata makes the man pages, completions and licences of the packages. `make package` and `make install` run it.
// The same sources and SOURCE_DATE_EPOCH give the same bytes.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra/doc"

	"github.com/amsagent/amsagent/cmd/amsagent/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: pkgdata FOLDER (in the top folder of the sources)")
		os.Exit(2)
	}
	if err := write(".", os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "pkgdata:", err)
		os.Exit(1)
	}
}

// write fills the folder out.
func write(top, out string) error {
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	date, man := time.Unix(epoch, 0).UTC(), filepath.Join(out, "man")
	if err := os.MkdirAll(man, 0o755); err != nil {
		return err
	}
	if err := doc.GenManTree(cli.Commands(), &doc.GenManHeader{Date: &date, Source: "amsagent", Manual: "amsagent manual"}, man); err != nil {
		return err
	}
	for _, page := range []string{"amsagent-config.5", "amsagent.service.8"} {
		b, err := os.ReadFile(filepath.Join(top, "packaging/man", page))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(man, page), b, 0o644); err != nil {
			return err
		}
	}
	if err := zipAll(man); err != nil {
		return err
	}
	root, scripts := cli.Commands(), filepath.Join(out, "completions")
	if err := errors.Join(
		os.MkdirAll(scripts, 0o755),
		root.GenBashCompletionFileV2(filepath.Join(scripts, "bash"), true),
		root.GenZshCompletionFile(filepath.Join(scripts, "zsh")),
		root.GenFishCompletionFile(filepath.Join(scripts, "fish"), true),
	); err != nil {
		return err
	}
	b, err := notices(top)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "THIRD-PARTY-NOTICES"), b, 0o644)
}

// zipAll compresses the files of a folder, without name and time: equal bytes give equal bytes.
func zipAll(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		var zipped bytes.Buffer
		w, err := gzip.NewWriterLevel(&zipped, gzip.BestCompression)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		if err := errors.Join(err, w.Close(), os.WriteFile(name+".gz", zipped.Bytes(), 0o644), os.Remove(name)); err != nil {
			return err
		}
	}
	return nil
}

var (
	legalName = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents|third[-_ ]party)`)
	// known are words of the licences that may be linked: Apache, BSD, MIT and ISC, MPL.
	known = regexp.MustCompile(`Apache\s+License\s+Version\s+2\.0|Licensed under the Apache License, Version 2\.0|` +
		`Redistribution\s+and\s+use\s+in\s+source\s+and\s+binary\s+forms|Permission\s+is\s+hereby\s+granted,\s+free\s+of\s+charge|` +
		`Permission\s+to\s+use,\s+copy,\s+modify,|Mozilla\s+Public\s+License,?\s+[Vv]ersion\s+2\.0`)
)

// notices lists the linked modules with their licences in full. A module without a known licence is an error: the program
// must not be distributed.
func notices(top string) ([]byte, error) {
	std, err := goOutput(top, "", "env", "GOVERSION", "GOROOT")
	if err != nil {
		return nil, err
	}
	version, goroot, _ := strings.Cut(std, "\n")
	dirs := map[string]string{"Go standard library " + version: goroot} // by module
	files := map[string][]string{"Go standard library " + version: {filepath.Join(goroot, "LICENSE")}}
	for _, arch := range []string{"amd64", "arm64"} {
		list, err := goOutput(top, arch, "list", "-deps", "-f",
			"{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}\t{{.Dir}}\t{{$.Dir}}{{end}}{{end}}", "./cmd/amsagent")
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(list) {
			f := strings.Split(strings.TrimSpace(line), "\t")
			if len(f) != 3 {
				continue
			}
			module := f[0]
			dirs[module] = f[1]
			// A folder may hold code of others, under a licence of its own.
			for dir := f[2]; len(dir) >= len(f[1]); dir = filepath.Dir(dir) {
				entries, err := os.ReadDir(dir)
				if err != nil {
					return nil, err
				}
				for _, e := range entries {
					path := filepath.Join(dir, e.Name())
					if e.Type().IsRegular() && legalName.MatchString(e.Name()) && filepath.Ext(path) != ".go" && !slices.Contains(files[module], path) {
						files[module] = append(files[module], path)
					}
				}
			}
		}
	}
	var b bytes.Buffer
	b.WriteString("amsagent, Copyright The amsagent Authors, is one static program under the Apache License, Version 2.0\n" +
		"(on Debian: /usr/share/common-licenses/Apache-2.0). It holds code of the following modules, whose licences are below.\n\n")
	// Many have the very same text: it stands there once, below all of them.
	var order []string
	owners := map[string][]string{}
	for _, module := range slices.Sorted(maps.Keys(dirs)) {
		fmt.Fprintf(&b, "  %s\n", module)
		licensed := false
		for _, path := range slices.Sorted(slices.Values(files[module])) {
			raw, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			text := strings.Trim(strings.ReplaceAll(string(raw), "\r\n", "\n"), "\n")
			if strings.HasPrefix(strings.ToLower(filepath.Base(path)), "licen") {
				if licensed = known.MatchString(text); !licensed {
					return nil, fmt.Errorf("%s: the licence in %s is not known: read it, and name it here", module, path)
				}
			}
			if owners[text] == nil {
				order = append(order, text)
			}
			owners[text] = append(owners[text], module+": "+strings.TrimPrefix(path, dirs[module]+"/"))
		}
		if !licensed {
			return nil, fmt.Errorf("%s has no licence: it must not be given away", module)
		}
	}
	for _, text := range order {
		fmt.Fprintf(&b, "\n%s\n%s\n\n%s\n", strings.Repeat("-", 78), strings.Join(owners[text], "\n"), text)
	}
	return b.Bytes(), nil
}

func goOutput(dir, arch string, args ...string) (string, error) {
	cmd := exec.CommandContext(context.Background(), "go", args...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
	if arch != "" {
		cmd.Env = append(cmd.Env, "GOOS=linux", "GOARCH="+arch)
	}
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", args[0], err)
	}
	return strings.TrimSpace(string(out)), nil
}
