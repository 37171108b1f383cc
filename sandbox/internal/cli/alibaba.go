// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/amsagent/amsagent/sandbox/fakealibaba"
)

func runAlibaba(ctx context.Context, env Env, args []string) error {
	fs := newFlags(env, "alibaba", "[flags]")
	var l life
	l.addFlags(fs)
	var o fakealibaba.Options
	var co fakealibaba.CloudOptions
	var file, id, ip, userData, group string
	var noRole, wrapped bool
	var hooks []fakealibaba.Hook
	tags := map[string]string{}
	fs.StringVar(&o.Listen, "listen", "127.0.0.1:0", "`address` of the service")
	fs.StringVar(&o.Control, "control", "127.0.0.1:0", "`address` of the HTTP control port; empty: none")
	fs.BoolVar(&o.Plain, "plain", false, "answer without a token too")
	fs.StringVar(&file, "instance", "", "tell what this JSON `file` says, over the sample")
	fs.StringVar(&id, "id", "", "the instance's `id`")
	fs.StringVar(&ip, "ip", "", "its private IPv4 `address`")
	fs.StringVar(&userData, "user-data", "", "serve this `file` as user data")
	fs.BoolVar(&noRole, "no-role", false, "give the instance no RAM role")
	fs.Func("tag", "a tag, which the API tells, as `key=value`; an empty value takes it away (may be repeated)", pairs(tags))
	fs.StringVar(&co.Listen, "api", "127.0.0.1:0", "`address` of the APIs of Auto Scaling and ECS")
	fs.StringVar(&group, "group", "", "the instance belongs to the scaling group of this `id`")
	fs.BoolVar(&wrapped, "wrapped", false, "wrap the lists of the API as that of 2014 does")
	fs.DurationVar(&co.WaitDelay, "wait-delay", 0, "`time` from Removing to the wait of the hooks")
	fs.DurationVar(&co.ActionDelay, "action-delay", 0, "`time` for which the API lists no lifecycle action although the wait is on")
	fs.DurationVar(&co.Skew, "skew", 0, "`time` by which the API's clock is ahead")
	fs.Func("hook", "a `hook` of the group, ID:in|out[:TIMEOUT] (may be repeated)", func(s string) error {
		parts := strings.Split(s, ":")
		h := fakealibaba.Hook{ID: parts[0]}
		if len(parts) < 2 || len(parts) > 3 || h.ID == "" || parts[1] != "in" && parts[1] != "out" {
			return fmt.Errorf("want ID:in|out[:TIMEOUT]")
		}
		h.Launching = parts[1] == "out"
		if len(parts) == 3 {
			var err error
			if h.Timeout, err = time.ParseDuration(parts[2]); err != nil {
				return err
			}
		}
		hooks = append(hooks, h)
		return nil
	})
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	if group == "" && len(hooks) > 0 {
		return fmt.Errorf("--hook needs --group")
	}
	i := fakealibaba.Sample()
	if err := readOver(&i, "the instance", file); err != nil {
		return err
	}
	if id != "" {
		i.ID = id
	}
	if ip != "" && len(i.NICs) > 0 {
		i.NICs[0].IPv4s = []string{ip}
	}
	if err := readUserData(&i.UserData, userData); err != nil {
		return err
	}
	if noRole {
		i.Role = ""
	}
	change(i.Tags, tags)
	o.Instance = &i

	ctx, stop, err := l.context(ctx)
	if err != nil {
		return err
	}
	defer stop()
	o.Log = l.log(env)
	co.Log = o.Log
	if o.Cloud, err = fakealibaba.StartCloud(context.WithoutCancel(ctx), co); err != nil {
		return err
	}
	defer func() { _ = o.Cloud.Close() }()
	o.Cloud.Wrap(wrapped)
	s, err := fakealibaba.Start(context.WithoutCancel(ctx), o)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }() // for the ways out before the last line
	if group != "" {
		o.Cloud.Group(group, hooks...)
		if err := o.Cloud.Attach(group, "", s); err != nil {
			return err
		}
	}
	return stay(ctx, env, s, map[string]string{"api": o.Cloud.Endpoint()})
}
