// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/amsagent/amsagent/cmd/amsagent/output"
)

// version is set by the linker: -ldflags "-X github.com/amsagent/amsagent/cmd/amsagent/cli.version=v1.2.3".
var version string

func newVersionCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version [flags]",
		Short:   "print the version of this program",
		Example: "  amsagent version\n  amsagent version -o json",
		RunE:    func(*cobra.Command, []string) error { return runVersion(g) },
	}
	exits(cmd, exitOK, exitFailed, exitUsage)
	readsOnly(cmd)
	noSettings(cmd)
	return cmd
}

// versionData is what `version` prints.
type versionData struct {
	Version string `json:"version"`
	// Commit and CommitTime are set if the build was made in a clone, with the stamp on.
	Commit     string `json:"commit,omitempty"`
	CommitTime string `json:"commit_time,omitempty"`
	Modified   bool   `json:"modified,omitempty"`
	Go         string `json:"go"`
	Platform   string `json:"platform"`
}

func runVersion(g *globals) error {
	v := currentVersion()
	return g.result("version", v, func(w *output.Text) {
		commit := ""
		if v.Commit != "" {
			commit = "commit " + v.Commit[:min(12, len(v.Commit))]
			if v.Modified {
				commit += " with changes"
			}
			commit += ", "
		}
		w.Line("amsagent %s (%s%s, %s)", v.Version, commit, v.Go, v.Platform)
	})
}

// currentVersion is the version of the program that runs.
func currentVersion() versionData {
	info, _ := debug.ReadBuildInfo()
	return buildVersion(version, info)
}

// buildVersion prefers the linker's value; `go install` sets the module's version instead.
func buildVersion(stamped string, info *debug.BuildInfo) versionData {
	v := versionData{Version: stamped, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info != nil {
		if v.Version == "" && info.Main.Version != "" && info.Main.Version != "(devel)" {
			v.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				v.Commit = s.Value
			case "vcs.time":
				v.CommitTime = s.Value
			case "vcs.modified":
				v.Modified = s.Value == "true"
			}
		}
	}
	if v.Version == "" {
		v.Version = "unknown"
	}
	return v
}
