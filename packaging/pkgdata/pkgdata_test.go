// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/cmd/amsagent/cli"
)

var commit = time.Date(2026, 11, 20, 11, 51, 7, 0, time.FixedZone("", 3600))

func TestPackageVersion(t *testing.T) {
	for describe, want := range map[string]string{
		"v1.2.3":                    "1.2.3",
		"1.2.3":                     "1.2.3",
		"v1.2.3-rc.1":               "1.2.3~rc.1",
		"v0.1.0-12-gabc1234":        "0.1.0+12.gabc1234",
		"v1.2.3-rc.1-12-gabc1234":   "1.2.3~rc.1+12.gabc1234",
		"v1.2.3-dirty":              "1.2.3+dirty",
		"v0.1.0-12-gabc1234-dirty":  "0.1.0+12.gabc1234+dirty",
		"49f7f64":                   "0~git20261120105107.49f7f64",
		"49f7f64-dirty":             "0~git20261120105107.49f7f64+dirty",
		"12345678":                  "0~git20261120105107.12345678",
		"dev":                       "0~git20261120105107.dev",
		"odd/branch_name with-dash": "0~git20261120105107.odd.branch.name.with.dash",
	} {
		if got := packageVersion(describe, commit); got != want {
			t.Errorf("%s became %s, want %s", describe, got, want)
		}
	}
}

// TestPackageVersionOrder asks dpkg and rpm themselves: each of these is an upgrade of the one before.
func TestPackageVersionOrder(t *testing.T) {
	var versions []string
	for i, d := range []string{
		"ffffff0", "0000001", "v0.1.0-rc.1", "v0.1.0-rc.2", "v0.1.0-rc.2-9-gfff0000", "v0.1.0-rc.2-10-g0000001", "v0.1.0-rc.10", "v0.1.0", "v0.1.0-9-gfff0000",
		"v0.1.0-10-g0000001", "v0.1.1", "v0.2.0", "v0.10.0", "v1.0.0",
	} {
		versions = append(versions, packageVersion(d, commit.Add(time.Duration(i)*time.Second))+"-1")
	}
	dpkg, derr := exec.LookPath("dpkg")
	rpm, rerr := exec.LookPath("rpm")
	if derr != nil && rerr != nil {
		t.Skip("neither dpkg nor rpm is here to ask")
	}
	for i := 1; i < len(versions); i++ {
		a, b := versions[i-1], versions[i]
		if derr == nil {
			if err := exec.Command(dpkg, "--compare-versions", a, "lt", b).Run(); err != nil {
				t.Errorf("dpkg does not take %s for older than %s: %v", a, b, err)
			}
		}
		if rerr == nil {
			out, err := exec.Command(rpm, "--eval", `%{lua: print(rpm.vercmp("`+a+`", "`+b+`"))}`).Output()
			if err != nil || strings.TrimSpace(string(out)) != "-1" {
				t.Errorf("rpm compares %s with %s as %s, %v", a, b, out, err)
			}
		}
	}
}

func TestChangelogs(t *testing.T) {
	deb, rpm := changelogs("1.0.0+4.gabc", commit)
	if want := "amsagent (1.0.0+4.gabc-1) stable; urgency=medium\n\n  * https://"; !strings.HasPrefix(string(deb), want) || !strings.HasSuffix(string(deb), "  Fri, 20 Nov 2026 10:51:07 +0000\n") {
		t.Errorf("%q", deb)
	}
	if want := "- semver: \"1.0.0+4.gabc-1\"\n  date: 2026-11-20T10:51:07Z\n"; !strings.HasPrefix(string(rpm), want) {
		t.Errorf("%q", rpm)
	}
}

func TestLicenceOf(t *testing.T) {
	for text, want := range map[string]string{
		"Apache License\n   Version 2.0, January 2004":                                  "Apache-2.0",
		"Redistribution and use in source and\nbinary forms, with or without":           "BSD-2-Clause",
		"Redistribution and use in source and binary forms\nNeither the name of":        "BSD-3-Clause",
		"Permission is hereby granted, free of\ncharge, to any person obtaining a copy": "MIT",
		"Do what you want with it.":                                                     "",
		"GNU GENERAL PUBLIC LICENSE\nVersion 3":                                         "",
	} {
		if got := licenceOf(text); got != want {
			t.Errorf("%q is taken for %q, want %q", text, got, want)
		}
	}
	// What nobody looked at ends the making of a package.
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/LICENSE", []byte("GNU GENERAL PUBLIC LICENSE"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := module{path: "example.org/m"}
	if err := m.read(dir, []string{"LICENSE"}); err == nil {
		t.Error("an unknown licence is no error")
	}
	if err := (&module{path: "example.org/n"}).read(dir, nil); err == nil {
		t.Error("no licence is no error")
	}
}

// TestLicences: every module that the program says it was linked from is named, with a licence that nfpm.yaml names, too.
func TestLicences(t *testing.T) {
	modules, err := linkedModules("../..")
	if err != nil {
		t.Fatal(err)
	}
	binary := t.TempDir() + "/amsagent"
	build := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "./cmd/amsagent")
	build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	info, err := exec.Command("go", "version", "-m", binary).Output()
	if err != nil {
		t.Fatal(err)
	}
	named, licences := map[string]string{}, map[string]bool{"Apache-2.0": true}
	for _, m := range modules {
		named[m.path] = m.version
		for _, l := range m.licences() {
			licences[l] = true
		}
	}
	deb, all := string(debianCopyright(modules)), string(notices(modules))
	n := 0
	for _, m := range regexp.MustCompile(`(?m)^\tdep\t(\S+)\t(\S+)`).FindAllStringSubmatch(string(info), -1) {
		n++
		if named[m[1]] != m[2] {
			t.Errorf("%s %s is linked; named is version %q", m[1], m[2], named[m[1]])
		}
		if !strings.Contains(deb, "\nFiles: "+m[1]+"/*\n") || !strings.Contains(all, "\n  "+m[1]+" "+m[2]+": ") {
			t.Errorf("%s is missing in a list", m[1])
		}
	}
	if n < 10 {
		t.Errorf("the program names %d modules: this test proves nothing", n)
	}
	yaml, err := os.ReadFile("../../nfpm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^license: (.*)$`).FindSubmatch(yaml)
	if m == nil {
		t.Fatal("nfpm.yaml names no licence")
	}
	for l := range strings.SplitSeq(string(m[1]), " AND ") {
		if !licences[l] {
			t.Errorf("nfpm.yaml names %s, which nothing has", l)
		}
		delete(licences, l)
	}
	for l := range licences {
		t.Errorf("nfpm.yaml does not name %s", l)
	}
	if strings.Contains(deb, "TERMS AND CONDITIONS FOR USE, REPRODUCTION") {
		t.Error("Debian has the Apache licence itself")
	}
}

// TestManPages: each command has a page with every section that is promised, and every flag and exit code of it.
func TestManPages(t *testing.T) {
	ref := cli.Describe()
	pages := manPages(ref, commit, "v1")
	for _, c := range ref.Commands {
		page := string(pages[pageName(c.Path)+".1"])
		last := -1
		for _, section := range []string{"NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "ENVIRONMENT", "FILES", "SEE ALSO"} {
			at := strings.Index(page, "\n.SH "+section+"\n")
			if at <= last {
				t.Errorf("%s: the section %s is not in its place", c.Path, section)
			}
			last = at
		}
		for _, f := range append(c.Flags, c.Global...) {
			if !strings.Contains(page, bold("--"+f.Name)) {
				t.Errorf("%s: its page has no --%s", c.Path, f.Name)
			}
		}
		for _, e := range c.Exits {
			if !strings.Contains(page, "\n"+bold(strconv.Itoa(e.Code))+"\n"+inline(e.Meaning)+"\n") {
				t.Errorf("%s: its page has no exit status %d", c.Path, e.Code)
			}
		}
	}
	for _, s := range ref.Settings {
		for _, word := range []string{s.Key, s.Env} {
			if !strings.Contains(string(pages["amsagent-config.5"]), bold(word)) {
				t.Errorf("amsagent-config(5) does not name %s", word)
			}
		}
	}
	var ids []string
	for _, e := range ref.Errors {
		ids = append(ids, e.ID)
	}
	for _, f := range ref.Findings {
		ids = append(ids, f.ID)
	}
	for _, id := range ids {
		if !strings.Contains(string(pages["amsagent-errors.7"]), bold(id)) {
			t.Errorf("amsagent-errors(7) does not name %s", id)
		}
	}
	// A page that another one points at is there, or is systemd's.
	for name, page := range pages {
		for _, m := range regexp.MustCompile(`\\fB(amsagent[a-z\\.-]*)\\fR\(([1-8])\)`).FindAllSubmatch(page, -1) {
			if other := strings.ReplaceAll(string(m[1]), `\-`, "-") + "." + string(m[2]); pages[other] == nil {
				t.Errorf("%s points at %s, which is not there", name, other)
			}
		}
	}
}

// The page of the units says after which exit codes the daemon is not started again, as its unit has it. And the settings'
// page names the file that join, help and errors name.
func TestManPagesTellTheUnit(t *testing.T) {
	unit, err := os.ReadFile("../systemd/amsagent.service")
	if err != nil {
		t.Fatal(err)
	}
	_, code, _ := strings.Cut(string(unit), "\nRestartPreventExitStatus=")
	code, _, _ = strings.Cut(code, "\n")
	pages := manPages(cli.Describe(), commit, "v1")
	if page := string(pages["amsagent.service.8"]); code == "" || !strings.Contains(page, "After "+code+" systemd does not start the daemon again") {
		t.Errorf("RestartPreventExitStatus=%s, and the page says otherwise:\n%s", code, page)
	}
	if page := string(pages["amsagent-config.5"]); !strings.Contains(page, "file:/etc/amsagent/mongo\\fR") {
		t.Errorf("the page does not name the file of the address:\n%s", page)
	}
}

func TestRoff(t *testing.T) {
	r := &roff{title: "x", short: "y"}
	r.section("DESCRIPTION")
	r.prose(".TH is no request, and 'neither' is \\this; see `a -b` and x.y(5)…\n\nlist:\n  - one\n  .two\n\n  three")
	want := ".SH DESCRIPTION\n\\&.TH is no request, and \\(aqneither\\(aq is \\ethis; see \\fBa \\-b\\fR and\n\\fBx.y\\fR(5)...\n" +
		".PP\nlist:\n.PP\n.RS 4\n.nf\n\\- one\n\\&.two\n.fi\n.RE\n.PP\n.RS 4\n.nf\nthree\n.fi\n.RE\n"
	if d := cmp.Diff(want, string(r.bytes())); d != "" {
		t.Error(d)
	}
}

// TestEqualBytes: nothing of what is made depends on when or how often.
func TestEqualBytes(t *testing.T) {
	var made []map[string]string
	for range 2 {
		dir := t.TempDir()
		var out bytes.Buffer
		if err := run([]string{"--out", dir, "--top", "../..", "--describe", "v1.0.0", "--epoch", "1795175467"}, &out); err != nil || out.String() != "1.0.0\n" {
			t.Fatalf("%v: %s", err, out.String())
		}
		files := map[string]string{}
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			files[strings.TrimPrefix(path, dir)] = string(b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, files)
	}
	if len(made[0]) < 20 {
		t.Errorf("only %d files were made", len(made[0]))
	}
	if d := cmp.Diff(made[0], made[1]); d != "" {
		t.Error(d)
	}
	if err := run([]string{"--describe", "v1"}, &bytes.Buffer{}); err == nil {
		t.Error("without a time it makes something")
	}
}
