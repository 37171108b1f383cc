// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"maps"

	"github.com/amsagent/amsagent/sandbox/fakegcp"
)

func runGCP(ctx context.Context, env Env, args []string) error {
	fs := newFlags(env, "gcp", "[flags]")
	var l life
	l.addFlags(fs)
	var o fakegcp.Options
	var file, id, ip string
	var standard bool
	attributes, project := map[string]string{}, map[string]string{}
	fs.StringVar(&o.Listen, "listen", "127.0.0.1:0", "`address` of the service")
	fs.StringVar(&o.Control, "control", "127.0.0.1:0", "`address` of the HTTP control port; empty: none")
	fs.StringVar(&file, "instance", "", "tell what this JSON `file` says, over the sample")
	fs.StringVar(&id, "id", "", "the instance's `id`, a decimal number")
	fs.StringVar(&ip, "ip", "", "its private IPv4 `address`")
	fs.BoolVar(&standard, "standard", false, "a standard VM in place of a Spot VM")
	fs.Func("attribute", "custom metadata of the instance as `key=value`; an empty value takes it away (may be repeated)", pairs(attributes))
	fs.Func("project-attribute", "custom metadata of the project as `key=value` (may be repeated)", pairs(project))
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	i := fakegcp.Sample()
	if err := readOver(&i, "the instance", file); err != nil {
		return err
	}
	if id != "" {
		i.ID = id
	}
	if ip != "" && len(i.NICs) > 0 {
		i.NICs[0].IPv4 = ip
	}
	if standard {
		i.Spot, i.Migrates = false, true
	}
	change(i.Attributes, attributes)
	if i.ProjectAttributes == nil {
		i.ProjectAttributes = map[string]string{}
	}
	maps.Copy(i.ProjectAttributes, project)
	o.Instance = &i

	ctx, stop, err := l.context(ctx)
	if err != nil {
		return err
	}
	defer stop()
	o.Log = l.log(env)
	s, err := fakegcp.Start(context.WithoutCancel(ctx), o)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }() // for the ways out before the last line
	return stay(ctx, env, s, nil)
}
