// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"strings"

	"github.com/amsagent/amsagent/sandbox/fakeazure"
)

func runAzure(ctx context.Context, env Env, args []string) error {
	fs := newFlags(env, "azure", "[flags]")
	var l life
	l.addFlags(fs)
	var (
		o                  fakeazure.Options
		set                fakeazure.SetOptions
		file, id, name, ip string
		versions           string
	)
	tags := map[string]string{}
	fs.StringVar(&o.Listen, "listen", "127.0.0.1:0", "`address` of the service")
	fs.StringVar(&o.Control, "control", "127.0.0.1:0", "`address` of the HTTP control port; empty: none")
	fs.StringVar(&file, "vm", "", "tell what this JSON `file` says, over the sample")
	fs.StringVar(&id, "id", "", "the machine's vmId, a `UUID`")
	fs.StringVar(&name, "name", "", "its `name`, as events call it")
	fs.StringVar(&ip, "ip", "", "its private IPv4 `address`")
	fs.Func("tag", "a tag as `key=value`; an empty value takes it away (may be repeated)", pairs(tags))
	fs.StringVar(&versions, "versions", "", "`versions` of the instance metadata that are served, with commas; empty: all")
	fs.DurationVar(&o.BootTime, "boot-time", 0, "`time` for which everything is 410")
	fs.IntVar(&o.DropCalls, "drop-calls", 0, "`number` of calls that are dropped at first")
	fs.DurationVar(&o.FirstCall, "first-call", 0, "`time` that the first call for events takes")
	fs.DurationVar(&set.EnableDelay, "enable-delay", 0, "`time` from that call until events are seen")
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	vm := fakeazure.Sample()
	if err := readOver(&vm, "the machine", file); err != nil {
		return err
	}
	if id != "" {
		vm.ID = id
	}
	if name != "" {
		vm.Name = name
	}
	if ip != "" && len(vm.NICs) > 0 {
		vm.NICs[0].IPv4s = []string{ip}
	}
	change(vm.Tags, tags)
	if versions != "" {
		o.Versions = strings.Split(versions, ",")
	}
	ctx, stop, err := l.context(ctx)
	if err != nil {
		return err
	}
	defer stop()
	o.VM, o.Log = &vm, l.log(env)
	set.Log = o.Log
	o.Set = fakeazure.NewSet(vm.ScaleSet, set)
	defer func() { _ = o.Set.Close() }()
	s, err := fakeazure.Start(context.WithoutCancel(ctx), o)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }() // for the ways out before the last line
	return stay(ctx, env, s, nil)
}
