// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

// The test's own binary is one with modules in it.
func TestListsWhatIsLinked(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var first, second bytes.Buffer
	for _, out := range []*bytes.Buffer{&first, &second} {
		if err := run([]string{"--version", "1.2.3", "--epoch", "1700000000", self}, out); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("two runs over one binary differ")
	}
	var got struct {
		SpecVersion  string
		SerialNumber string
		Metadata     struct {
			Timestamp string
			Component struct{ Name, Version string }
		}
		Components []struct {
			Name, Version, Purl string
			Hashes              []struct{ Alg, Content string }
		}
		Dependencies []struct {
			Ref       string
			DependsOn []string
		}
	}
	if err := json.Unmarshal(first.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.SpecVersion != "1.6" || got.SerialNumber != "" || got.Metadata.Timestamp != "2023-11-14T22:13:20Z" || got.Metadata.Component.Version != "1.2.3" {
		t.Errorf("head of the document: %+v", got)
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		t.Fatal("the test binary has no build information")
	}
	if len(got.Components) != len(info.Deps)+1 || got.Components[0].Name != "std" {
		t.Fatalf("%d components for %d modules and the standard library", len(got.Components), len(info.Deps))
	}
	for i, m := range info.Deps {
		c := got.Components[i+1]
		if c.Name != m.Path || c.Version != m.Version || c.Purl != "pkg:golang/"+m.Path+"@"+m.Version {
			t.Errorf("component %+v for module %s %s", c, m.Path, m.Version)
		}
		if len(c.Hashes) != 1 || c.Hashes[0].Alg != "SHA-256" || len(c.Hashes[0].Content) != 64 {
			t.Errorf("%s: hashes %+v", c.Name, c.Hashes)
		}
	}
	if len(got.Dependencies) != 1 || len(got.Dependencies[0].DependsOn) != len(got.Components) {
		t.Errorf("dependencies: %+v", got.Dependencies)
	}
}

func TestRefusesWhatItCannotList(t *testing.T) {
	plain := t.TempDir() + "/plain"
	if err := os.WriteFile(plain, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{},
		{"--version", "1"},
		{"--version", "1", "--epoch", "5"},
		{"--version", "1", "--epoch", "5", plain},
		{"--version", "1", "--epoch", "5", plain + "-missing"},
	} {
		if err := run(args, &bytes.Buffer{}); err == nil {
			t.Errorf("run(%q) succeeded", args)
		}
	}
	info := &debug.BuildInfo{Deps: []*debug.Module{{Path: "example.com/local", Version: "(devel)"}}}
	if _, err := document(info, "1", time.Unix(1, 0)); err == nil || !strings.Contains(err.Error(), "example.com/local") {
		t.Errorf("a module without a sum: %v", err)
	}
}
