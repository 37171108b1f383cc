// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Command sbom prints the software bill of materials of a Go binary as CycloneDX 1.6 JSON. It reads the build information of the
// binary, so it lists the linked modules, not all those of go.mod.
//
// The same binary and epoch give the same bytes: the document has no serial number, and its time is the epoch.
package main

import (
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/CycloneDX/cyclonedx-go"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer) error {
	fs := flag.NewFlagSet("sbom", flag.ContinueOnError)
	version := fs.String("version", "", "the `version` of the program")
	epoch := fs.Int64("epoch", 0, "SOURCE_DATE_EPOCH: `seconds` since 1970, of the last commit")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *version == "" || *epoch <= 0 || fs.NArg() != 1 {
		return errors.New("usage: sbom --version VERSION --epoch SECONDS BINARY")
	}
	info, err := buildinfo.ReadFile(fs.Arg(0))
	if err != nil {
		return err
	}
	bom, err := document(info, *version, time.Unix(*epoch, 0))
	if err != nil {
		return err
	}
	return cyclonedx.NewBOMEncoder(stdout, cyclonedx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cyclonedx.SpecVersion1_6)
}

// document lists the modules of a binary and the standard library, each with the hash that go.sum has of it.
func document(info *debug.BuildInfo, version string, at time.Time) (*cyclonedx.BOM, error) {
	program := component(cyclonedx.ComponentTypeApplication, info.Main.Path, version)
	bom := cyclonedx.NewBOM()
	bom.Metadata = &cyclonedx.Metadata{Timestamp: at.UTC().Format(time.RFC3339), Component: &program}
	std := component(cyclonedx.ComponentTypeLibrary, "std", strings.TrimPrefix(info.GoVersion, "go"))
	parts := []cyclonedx.Component{std}
	needs := []string{std.BOMRef}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		c := component(cyclonedx.ComponentTypeLibrary, m.Path, m.Version)
		sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:"))
		if err != nil || len(sum) != 32 {
			return nil, fmt.Errorf("%s: the binary has no SHA-256 sum of it (%q)", m.Path, m.Sum)
		}
		c.Hashes = &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: hex.EncodeToString(sum)}}
		parts = append(parts, c)
		needs = append(needs, c.BOMRef)
	}
	bom.Components = &parts
	bom.Dependencies = &[]cyclonedx.Dependency{{Ref: program.BOMRef, Dependencies: &needs}}
	return bom, nil
}

// component names a Go module by its package URL.
func component(kind cyclonedx.ComponentType, path, version string) cyclonedx.Component {
	url := "pkg:golang/" + path + "@" + version
	return cyclonedx.Component{BOMRef: url, Type: kind, Name: path, Version: version, PackageURL: url}
}
