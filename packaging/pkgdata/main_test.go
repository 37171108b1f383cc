// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// TestWrite: nothing of what is made depends on when or how often, and each page of a command has its exit status.
func TestWrite(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1795175467")
	var made []map[string]string
	for _, zone := range []string{"UTC", "Asia/Kathmandu"} {
		t.Setenv("TZ", zone)
		dir := t.TempDir()
		must.OK(t, write("../..", dir))
		files := map[string]string{}
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			files[strings.TrimPrefix(path, dir+"/")] = string(b)
			return err
		})
		must.OK(t, err)
		made = append(made, files)
	}
	must.NoDiff(t, "made again", made[1], made[0])
	for _, name := range []string{"completions/bash", "completions/fish", "completions/zsh", "man/amsagent-join.1.gz", "man/amsagent.service.8.gz", "man/amsagent-config.5.gz", "THIRD-PARTY-NOTICES"} {
		if len(made[0][name]) < 500 {
			t.Errorf("%s is missing in %v", name, maps.Keys(made[0]))
		}
	}
	for name, zipped := range made[0] {
		if filepath.Ext(name) != ".gz" || !strings.Contains(name, ".1") {
			continue
		}
		r, err := gzip.NewReader(strings.NewReader(zipped))
		must.OK(t, err)
		page, err := io.ReadAll(r)
		if err != nil || !bytes.Contains(page, []byte("\n.SH EXIT STATUS\n")) || bytes.Contains(page, []byte("HISTORY")) {
			t.Errorf("%s, %v:\n%s", name, err, page)
		}
	}
	t.Setenv("SOURCE_DATE_EPOCH", "")
	if write("../..", t.TempDir()) == nil {
		t.Error("without a time it makes something")
	}
}

// TestNotices: every module that the program names as linked is in the list.
func TestNotices(t *testing.T) {
	text, err := notices("../..")
	must.OK(t, err)
	binary := t.TempDir() + "/amsagent"
	build := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "./cmd/amsagent")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	info, err := exec.Command("go", "version", "-m", binary).Output()
	must.OK(t, err)
	linked := regexp.MustCompile(`(?m)^\tdep\t(\S+)\t(\S+)`).FindAllSubmatch(info, -1)
	if len(linked) < 10 {
		t.Errorf("the program names %d modules: this test proves nothing", len(linked))
	}
	for _, m := range linked {
		if !bytes.Contains(text, []byte("\n  "+string(m[1])+" "+string(m[2])+"\n")) {
			t.Errorf("%s %s is linked and not in the list", m[1], m[2])
		}
	}
	if known.MatchString("GNU GENERAL PUBLIC LICENSE\nVersion 3") {
		t.Error("any licence is known")
	}
}

// The page of the units says after which exit code the daemon is not started again, as its unit has it.
func TestPageOfTheUnits(t *testing.T) {
	unit, err := os.ReadFile("../systemd/amsagent.service")
	must.OK(t, err)
	page, err := os.ReadFile("../man/amsagent.service.8")
	must.OK(t, err)
	_, code, _ := strings.Cut(string(unit), "\nRestartPreventExitStatus=")
	code, _, _ = strings.Cut(code, "\n")
	if code == "" || !strings.Contains(string(page), "After "+code+" systemd does not start the daemon again") {
		t.Errorf("RestartPreventExitStatus=%s, and the page says otherwise", code)
	}
}
