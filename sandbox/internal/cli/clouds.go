// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"strings"

	"github.com/amsagent/amsagent/sandbox/fakealibaba"
	"github.com/amsagent/amsagent/sandbox/fakeaws"
	"github.com/amsagent/amsagent/sandbox/fakeazure"
	"github.com/amsagent/amsagent/sandbox/fakegcp"
	"github.com/amsagent/amsagent/sandbox/internal/cloud"
)

// machine is what the commands of the four clouds have in common: their flags, and how they run.
type machine struct {
	*flag.FlagSet
	env  Env
	life life
	cloud.Listen
	file, id, ip, userData string
	tags                   map[string]string
}

func newMachine(env Env, name, file, id, tag, tagUsage string) *machine {
	m := &machine{FlagSet: newFlags(env, name, "[flags]"), env: env, tags: map[string]string{}}
	m.life.addFlags(m.FlagSet)
	m.StringVar(&m.Listen.Listen, "listen", "127.0.0.1:0", "`address` of the service")
	m.StringVar(&m.Control, "control", "127.0.0.1:0", "`address` of the HTTP control port; empty: none")
	m.StringVar(&m.file, file, "", "serve what this JSON `file` says, over the sample")
	m.StringVar(&m.id, "id", "", id)
	m.StringVar(&m.ip, "ip", "", "its private IPv4 `address`")
	m.Func(tag, tagUsage+" as `key=value`; an empty value removes it (may be repeated)", pairs(m.tags))
	return m
}

// over reads the file over the sample of the machine.
func (m *machine) over(sample any) error {
	if m.file == "" {
		return nil
	}
	b, err := os.ReadFile(m.file)
	if err == nil {
		err = json.Unmarshal(b, sample)
	}
	if err != nil {
		return fmt.Errorf("reading the machine from %s: %w", m.file, err)
	}
	return nil
}

// change sets the id, the user data and the tags that the flags give.
func (m *machine) change(id, userData *string, tags map[string]string) error {
	if m.id != "" {
		*id = m.id
	}
	for key, value := range m.tags {
		if tags[key] = value; value == "" {
			delete(tags, key)
		}
	}
	if m.userData == "" {
		return nil
	}
	b, err := os.ReadFile(m.userData)
	if err != nil {
		return fmt.Errorf("reading the user data: %w", err)
	}
	*userData = string(b)
	return nil
}

// metadataService is that of one machine in any cloud.
type metadataService interface {
	Addr() string
	ControlAddr() string
	Endpoint() string
	Close() error
}

// run starts the service, announces it, and closes it in the end. start returns more addresses to announce.
func (m *machine) run(ctx context.Context, start func(context.Context) (metadataService, map[string]string, error)) error {
	ctx, stop, err := m.life.context(ctx)
	if err != nil {
		return err
	}
	defer stop()
	m.Log = m.life.log(m.env)
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel() // ends everything that was started
	s, more, err := start(own)
	if err != nil {
		return err
	}
	ready := map[string]string{"addr": s.Addr(), "control": s.ControlAddr(), "endpoint": s.Endpoint()}
	maps.Copy(ready, more)
	if err := announce(m.env.Stdout, ready); err != nil {
		return err
	}
	<-ctx.Done()
	return s.Close()
}

// pairs reads key=value of a flag that may be repeated.
func pairs(to map[string]string) func(string) error {
	return func(s string) error {
		key, value, ok := strings.Cut(s, "=")
		if !ok || key == "" {
			return fmt.Errorf("want key=value")
		}
		to[key] = value
		return nil
	}
}

// groupFlags are those of a scaling group.
type groupFlags struct {
	cloud.ScalingOptions
	group string
	hooks []cloud.Hook
}

func (g *groupFlags) add(fs *flag.FlagSet, in, out string) {
	fs.DurationVar(&g.WaitDelay, "wait-delay", 0, "`time` from the begin of a scale-in to the wait of the hooks")
	fs.DurationVar(&g.ActionDelay, "action-delay", 0, "`time` for which the API lists no lifecycle action although the wait is on")
	fs.Func("hook", "a `hook` of the group, NAME:"+in+"|"+out+"[:TIMEOUT[:LIMIT]] (may be repeated)", func(s string) error {
		h, err := cloud.ParseHook(s, in, out)
		g.hooks = append(g.hooks, h)
		return err
	})
}

func (g *groupFlags) check() error {
	if g.group == "" && len(g.hooks) > 0 {
		return fmt.Errorf("--hook needs --group")
	}
	return nil
}

func runAWS(ctx context.Context, env Env, args []string) error {
	m := newMachine(env, "aws", "instance", "the instance's `id`", "tag", "a tag")
	var o fakeaws.Options
	var g groupFlags
	var noTags bool
	m.BoolVar(&o.AllowV1, "allow-v1", false, "answer without a token too")
	m.StringVar(&m.userData, "user-data", "", "serve this `file` as user data")
	m.BoolVar(&noTags, "no-tags", false, "show no tags (InstanceMetadataTags=disabled)")
	m.StringVar(&g.group, "group", "", "serve an Auto Scaling API too, in which the instance belongs to the group of this `name`")
	m.StringVar(&g.Listen, "autoscaling", "127.0.0.1:0", "`address` of that API")
	g.add(m.FlagSet, "terminating", "launching")
	if err := parse(m.FlagSet, args, 0); err != nil {
		return err
	}
	i := fakeaws.Sample()
	if err := m.over(&i); err != nil {
		return err
	}
	if err := errors.Join(g.check(), m.change(&i.ID, &i.UserData, i.Tags)); err != nil {
		return err
	}
	if m.ip != "" && len(i.NICs) > 0 {
		i.NICs[0].IPv4s = []string{m.ip}
		i.Hostname = "ip-" + strings.ReplaceAll(m.ip, ".", "-") + "." + i.Region + ".compute.internal"
	}
	i.TagsEnabled = i.TagsEnabled && !noTags
	o.Instance = &i
	return m.run(ctx, func(ctx context.Context) (metadataService, map[string]string, error) {
		o.Listen = m.Listen
		if g.group == "" {
			s, err := fakeaws.Start(ctx, o)
			return s, nil, err
		}
		var err error
		g.Log = m.Log
		if o.AutoScaling, err = fakeaws.StartAutoScaling(ctx, fakeaws.AutoScalingOptions{ScalingOptions: g.ScalingOptions, Region: i.Region}); err != nil {
			return nil, nil, err
		}
		o.AutoScaling.Group(g.group, g.hooks...)
		s, err := fakeaws.Start(ctx, o)
		if err == nil {
			err = o.AutoScaling.Attach(g.group, s)
		}
		return s, map[string]string{"autoscaling": o.AutoScaling.Endpoint()}, err
	})
}

func runAlibaba(ctx context.Context, env Env, args []string) error {
	m := newMachine(env, "alibaba", "instance", "the instance's `id`", "tag", "a tag, which the API has,")
	var o fakealibaba.Options
	var co fakealibaba.CloudOptions
	var g groupFlags
	var noRole, wrapped bool
	m.BoolVar(&o.Plain, "plain", false, "answer without a token too")
	m.StringVar(&m.userData, "user-data", "", "serve this `file` as user data")
	m.BoolVar(&noRole, "no-role", false, "give the instance no RAM role")
	m.StringVar(&g.Listen, "api", "127.0.0.1:0", "`address` of the APIs of Auto Scaling and ECS")
	m.StringVar(&g.group, "group", "", "the instance belongs to the scaling group of this `id`")
	m.BoolVar(&wrapped, "wrapped", false, "wrap the lists of the API as that of 2014 does")
	m.DurationVar(&co.Skew, "skew", 0, "`time` by which the API's clock is ahead")
	g.add(m.FlagSet, "in", "out")
	if err := parse(m.FlagSet, args, 0); err != nil {
		return err
	}
	i := fakealibaba.Sample()
	if err := m.over(&i); err != nil {
		return err
	}
	if err := errors.Join(g.check(), m.change(&i.ID, &i.UserData, i.Tags)); err != nil {
		return err
	}
	if m.ip != "" && len(i.NICs) > 0 {
		i.NICs[0].IPv4s = []string{m.ip}
	}
	if noRole {
		i.Role = ""
	}
	o.Instance = &i
	return m.run(ctx, func(ctx context.Context) (_ metadataService, _ map[string]string, err error) {
		g.Log, o.Listen = m.Log, m.Listen
		co.ScalingOptions = g.ScalingOptions
		if o.Cloud, err = fakealibaba.StartCloud(ctx, co); err != nil {
			return nil, nil, err
		}
		o.Cloud.Wrap(wrapped)
		s, err := fakealibaba.Start(ctx, o)
		if err == nil && g.group != "" {
			o.Cloud.Group(g.group, g.hooks...)
			err = o.Cloud.Attach(g.group, "", s)
		}
		return s, map[string]string{"api": o.Cloud.Endpoint()}, err
	})
}

func runAzure(ctx context.Context, env Env, args []string) error {
	m := newMachine(env, "azure", "vm", "the machine's vmId, a `UUID`", "tag", "a tag")
	var o fakeazure.Options
	var set fakeazure.SetOptions
	var name, versions string
	m.StringVar(&name, "name", "", "its `name`, as events call it")
	m.StringVar(&versions, "versions", "", "`versions` of the instance metadata that are served, with commas; empty: all")
	m.DurationVar(&o.BootTime, "boot-time", 0, "`time` for which everything is 410")
	m.IntVar(&o.DropCalls, "drop-calls", 0, "`number` of calls that are dropped at first")
	m.DurationVar(&o.FirstCall, "first-call", 0, "`time` that the first call for events takes")
	m.DurationVar(&set.EnableDelay, "enable-delay", 0, "`time` from that call until events are seen")
	if err := parse(m.FlagSet, args, 0); err != nil {
		return err
	}
	vm := fakeazure.Sample()
	if err := m.over(&vm); err != nil {
		return err
	}
	if err := m.change(&vm.ID, nil, vm.Tags); err != nil {
		return err
	}
	if name != "" {
		vm.Name = name
	}
	if m.ip != "" && len(vm.NICs) > 0 {
		vm.NICs[0].IPv4s = []string{m.ip}
	}
	if versions != "" {
		o.Versions = strings.Split(versions, ",")
	}
	o.VM = &vm
	return m.run(ctx, func(ctx context.Context) (metadataService, map[string]string, error) {
		set.Log, o.Listen = m.Log, m.Listen
		o.Set = fakeazure.NewSet(vm.ScaleSet, set)
		s, err := fakeazure.Start(ctx, o)
		return s, nil, err
	})
}

func runGCP(ctx context.Context, env Env, args []string) error {
	m := newMachine(env, "gcp", "instance", "the instance's `id`, a decimal number", "attribute", "custom metadata of the instance")
	var o fakegcp.Options
	var standard bool
	project := map[string]string{}
	m.BoolVar(&standard, "standard", false, "a standard VM instead of a Spot VM")
	m.Func("project-attribute", "custom metadata of the project as `key=value` (may be repeated)", pairs(project))
	if err := parse(m.FlagSet, args, 0); err != nil {
		return err
	}
	i := fakegcp.Sample()
	if err := m.over(&i); err != nil {
		return err
	}
	if err := m.change(&i.ID, nil, i.Attributes); err != nil {
		return err
	}
	if m.ip != "" && len(i.NICs) > 0 {
		i.NICs[0].IPv4 = m.ip
	}
	if standard {
		i.Spot, i.Migrates = false, true
	}
	for key, value := range project {
		cloud.Set(&i.ProjectAttributes, key, value)
	}
	o.Instance = &i
	return m.run(ctx, func(ctx context.Context) (metadataService, map[string]string, error) {
		o.Listen = m.Listen
		s, err := fakegcp.Start(ctx, o)
		return s, nil, err
	})
}
