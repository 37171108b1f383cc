// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/amsagent/amsagent/sandbox/fakeaws"
)

func runAWS(ctx context.Context, env Env, args []string) error {
	fs := newFlags(env, "aws", "[flags]")
	var l life
	l.addFlags(fs)
	var o fakeaws.Options
	var file, id, ip, userData string
	var noTags bool
	var group, asgListen string
	var hooks []fakeaws.Hook
	var asgOptions fakeaws.AutoScalingOptions
	tags := map[string]string{}
	fs.StringVar(&o.Listen, "listen", "127.0.0.1:0", "`address` of the service")
	fs.StringVar(&o.Control, "control", "127.0.0.1:0", "`address` of the HTTP control port; empty: none")
	fs.BoolVar(&o.AllowV1, "allow-v1", false, "answer without a token too")
	fs.StringVar(&file, "instance", "", "tell what this JSON `file` says, over the sample")
	fs.StringVar(&id, "id", "", "the instance's `id`")
	fs.StringVar(&ip, "ip", "", "its private IPv4 `address`")
	fs.StringVar(&userData, "user-data", "", "serve this `file` as user data")
	fs.BoolVar(&noTags, "no-tags", false, "show no tags (InstanceMetadataTags=disabled)")
	fs.Func("tag", "a tag as `key=value`; an empty value takes it away (may be repeated)", pairs(tags))
	fs.StringVar(&group, "group", "", "serve an Auto Scaling API too, in which the instance belongs to the group of this `name`")
	fs.StringVar(&asgListen, "autoscaling", "127.0.0.1:0", "`address` of that API")
	fs.DurationVar(&asgOptions.WaitDelay, "wait-delay", 0, "`time` from the change of the target state to the wait of the hooks")
	fs.DurationVar(&asgOptions.ActionDelay, "action-delay", 0, "`time` for which the API knows of no lifecycle action although the wait is on")
	fs.Func("hook", "a `hook` of the group, NAME:terminating|launching[:HEARTBEAT[:GLOBAL]] (may be repeated)", func(s string) error {
		h, err := fakeaws.ParseHook(s)
		hooks = append(hooks, h)
		return err
	})
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	if group == "" && len(hooks) > 0 {
		return fmt.Errorf("--hook needs --group")
	}
	i := fakeaws.Sample()
	if err := readOver(&i, "the instance", file); err != nil {
		return err
	}
	if id != "" {
		i.ID = id
	}
	if ip != "" && len(i.NICs) > 0 {
		i.NICs[0].IPv4s = []string{ip}
		i.Hostname = "ip-" + strings.ReplaceAll(ip, ".", "-") + "." + i.Region + ".compute.internal"
	}
	if err := readUserData(&i.UserData, userData); err != nil {
		return err
	}
	change(i.Tags, tags)
	if noTags {
		i.TagsEnabled = false
	}
	o.Instance = &i

	ctx, stop, err := l.context(ctx)
	if err != nil {
		return err
	}
	defer stop()
	o.Log = l.log(env)
	if group != "" {
		asgOptions.Listen, asgOptions.Region, asgOptions.Log = asgListen, i.Region, o.Log
		o.AutoScaling, err = fakeaws.StartAutoScaling(context.WithoutCancel(ctx), asgOptions)
		if err != nil {
			return err
		}
		defer func() { _ = o.AutoScaling.Close() }()
		o.AutoScaling.Group(group, hooks...)
	}
	s, err := fakeaws.Start(context.WithoutCancel(ctx), o)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }() // for the ways out before the last line
	more := map[string]string{}
	if o.AutoScaling != nil {
		if err := o.AutoScaling.Attach(group, "", s); err != nil {
			return err
		}
		more["autoscaling"] = o.AutoScaling.Endpoint()
	}
	return stay(ctx, env, s, more)
}
