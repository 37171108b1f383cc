// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Command pkgdata makes what the packages hold beside the program and the units: man pages, completions, the licences of
// all that is linked, the changelogs, and a version that dpkg and rpm sort as it is meant. It is run by `make package` and
// `make install`; nothing of it is in the agent, and nothing of it is a stable interface.
//
// Nothing of what it makes is checked in: it follows from the command line, go.mod and CHANGELOG.md, and so is never older
// than they are. The same sources and the same SOURCE_DATE_EPOCH give the same bytes.
package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/amsagent/amsagent/cmd/amsagent/cli"
)

const (
	program    = "amsagent"
	homepage   = "https://github.com/amsagent/amsagent"
	maintainer = "The amsagent Authors <amsagent@users.noreply.github.com>"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "pkgdata:", err)
		os.Exit(1)
	}
}

type options struct {
	out, describe, top string
	epoch              int64
}

func run(args []string, stdout io.Writer) error {
	var o options
	fs := flag.NewFlagSet("pkgdata", flag.ContinueOnError)
	fs.StringVar(&o.out, "out", "", "the `folder` to fill; without it only the version is printed")
	fs.StringVar(&o.describe, "describe", "", "the `version` as git describe says it")
	fs.StringVar(&o.top, "top", ".", "the `folder` of the sources")
	fs.Int64Var(&o.epoch, "epoch", 0, "SOURCE_DATE_EPOCH: `seconds` since 1970, of the last commit")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if o.describe == "" || o.epoch <= 0 {
		return errors.New("--describe and --epoch are needed")
	}
	version := packageVersion(o.describe, time.Unix(o.epoch, 0))
	if o.out != "" {
		if err := o.write(version); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(stdout, version)
	return err
}

// write fills the folder.
func (o options) write(version string) error {
	date := time.Unix(o.epoch, 0).UTC()
	files := map[string][]byte{}
	for name, page := range manPages(cli.Describe(), date, o.describe) {
		b, err := zip(page)
		if err != nil {
			return err
		}
		files[filepath.Join("man", name+".gz")] = b
	}
	// Named as each shell looks for them.
	for shell, name := range map[string]string{"bash": "bash/amsagent", "zsh": "zsh/_amsagent", "fish": "fish/amsagent.fish"} {
		var b, said bytes.Buffer
		if code := cli.Main([]string{"completion", shell}, cli.Env{Stdout: &b, Stderr: &said}); code != 0 {
			return fmt.Errorf("the completion script of %s: exit %d: %s", shell, code, said.Bytes())
		}
		files[filepath.Join("completions", name)] = b.Bytes()
	}
	modules, err := linkedModules(o.top)
	if err != nil {
		return err
	}
	files["copyright"] = debianCopyright(modules)
	files["THIRD-PARTY-NOTICES"] = notices(modules)
	deb, rpm := changelogs(version, date)
	if files["changelog.Debian.gz"], err = zip(deb); err != nil {
		return err
	}
	files["changelog.yaml"] = rpm
	for name, b := range files {
		path := filepath.Join(o.out, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// changelogs are those of a .deb and of an .rpm, the latter as nfpm reads it: one entry, which names CHANGELOG.md.
func changelogs(version string, date time.Time) (deb, rpm []byte) {
	const text = "https://github.com/amsagent/amsagent/blob/main/CHANGELOG.md"
	return fmt.Appendf(nil, "%s (%s-1) stable; urgency=medium\n\n  * %s\n\n -- %s  %s\n", program, version, text, maintainer, date.UTC().Format(time.RFC1123Z)),
		fmt.Appendf(nil, "- semver: %q\n  date: %s\n  packager: %q\n  changes:\n    - note: %q\n", version+"-1", date.UTC().Format(time.RFC3339), maintainer, text)
}

// zip compresses as hard as it goes, without name and time: equal bytes give equal bytes.
func zip(b []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(b); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
