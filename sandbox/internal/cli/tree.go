// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/amsagent/amsagent/sandbox/tree"
)

func runTree(_ context.Context, env Env, args []string) error {
	fs := newFlags(env, "tree", "[flags] FOLDER\n       sandbox tree --list [--skip PATH] FOLDER")
	var o tree.Options
	var list bool
	var skip []string
	fs.BoolVar(&list, "list", false, "list what is there: mode, owner, digest, path; equal lists, equal trees")
	fs.Func("skip", "leave this `path` out of the list (may be repeated)", func(s string) error {
		skip = append(skip, s)
		return nil
	})
	fs.StringVar(&o.Variant, "variant", "3.0", strings.Join(tree.Variants(), ", "))
	fs.StringVar(&o.Dir, "dir", tree.DefaultDir, "`path` of the installation below FOLDER")
	fs.Func("app", "a further application of this `name` (may be repeated)", func(s string) error {
		o.Apps = append(o.Apps, s)
		return nil
	})
	fs.BoolVar(&o.Symlink, "symlink", false, "make two of the files symbolic links")
	fs.Func("owner", "`uid:gid` of the installation", func(s string) error {
		u, g, _ := strings.Cut(s, ":")
		uid, err := strconv.Atoi(u)
		if err != nil {
			return err
		}
		gid, err := strconv.Atoi(g)
		if err != nil {
			return err
		}
		o.Owner = &tree.Owner{UID: uid, GID: gid}
		return nil
	})
	fs.IntVar(&o.HTTPPort, "http-port", 0, "http.port, in place of 5080")
	fs.StringVar(&o.Version, "version", "", "`version` in the jar, in place of the variant's")
	fs.StringVar(&o.Build, "build", "", "build `number` in the jar")
	fs.BoolVar(&o.NoJar, "no-jar", false, "write no jar")
	fs.BoolVar(&o.NoUnit, "no-unit", false, "write no systemd unit")
	fs.StringVar(&o.Exec, "exec", "", "shell `command` of start.sh")
	fs.StringVar(&o.User, "user", "antmedia", "user in the unit")
	fs.StringVar(&o.Group, "group", "antmedia", "group in the unit")
	fs.StringVar(&o.DMI, "dmi", "", "firmware strings of a `cloud`: "+strings.Join(tree.Firmware(), ", "))
	fs.StringVar(&o.Host, "host", "", "write /etc/hostname and /etc/hosts for this `name`")
	fs.BoolVar(&o.HostResolves, "host-resolves", false, "name the host in /etc/hosts")
	if err := parse(fs, args, 1); err != nil {
		return err
	}
	if list {
		lines, err := tree.Snapshot(fs.Arg(0), skip...)
		if err != nil {
			return err
		}
		for _, l := range lines {
			say(env.Stdout, "%s\n", l)
		}
		return nil
	}
	t, err := tree.Write(fs.Arg(0), o)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(env.Stdout).Encode(t); err != nil {
		return fmt.Errorf("printing the tree: %w", err)
	}
	return nil
}
