// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"strings"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakealibaba"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/fakes/fakeazure"
	"github.com/amsagent/amsagent/internal/fakes/fakegcp"
)

// machine is what the commands of the four clouds have in common: their flags, and how they run.
type machine struct {
	*flag.FlagSet
	env  Env
	life life
	fakes.Listen
	file, id, ip, userData string
	tags                   map[string]string

	// Of a scaling group.
	scaling fakes.ScalingOptions
	group   string
	hooks   []fakes.Hook
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

// read parses the arguments and applies the file, then the flags to the sample of a machine.
func (m *machine) read(args []string, sample any, id, userData *string, tags *map[string]string) error {
	if err := parse(m.FlagSet, args, 0); err != nil {
		return err
	}
	if m.group == "" && len(m.hooks) > 0 {
		return errors.New("--hook needs --group")
	}
	if m.file != "" {
		b, err := os.ReadFile(m.file)
		if err == nil {
			err = json.Unmarshal(b, sample)
		}
		if err != nil {
			return fmt.Errorf("reading the machine from %s: %w", m.file, err)
		}
	}
	*id = cmp.Or(m.id, *id)
	for key, value := range m.tags {
		if fakes.Set(tags, key, value); value == "" {
			delete(*tags, key)
		}
	}
	if m.userData != "" {
		b, err := os.ReadFile(m.userData)
		if err != nil {
			return fmt.Errorf("reading the user data: %w", err)
		}
		*userData = string(b)
	}
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
	m.scaling.Log = m.Log
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

// addGroup adds the flags of a cloud whose scaling groups have hooks: in and out are their transitions.
func (m *machine) addGroup(api, group, in, out string) {
	m.StringVar(&m.userData, "user-data", "", "serve this `file` as user data")
	m.StringVar(&m.group, "group", "", group)
	m.StringVar(&m.scaling.Listen, api, "127.0.0.1:0", "`address` of the API of the groups")
	m.DurationVar(&m.scaling.WaitDelay, "wait-delay", 0, "`time` from the begin of a scale-in to the wait of the hooks")
	m.DurationVar(&m.scaling.ActionDelay, "action-delay", 0, "`time` for which the API lists no lifecycle action although the wait is on")
	m.Func("hook", "a `hook` of the group, NAME:"+in+"|"+out+"[:TIMEOUT[:LIMIT]] (may be repeated)", func(s string) error {
		h, err := fakes.ParseHook(s, in, out)
		m.hooks = append(m.hooks, h)
		return err
	})
}

func runAWS(ctx context.Context, env Env, args []string) error {
	m := newMachine(env, "aws", "instance", "the instance's `id`", "tag", "a tag")
	var o fakeaws.Options
	var noTags bool
	m.BoolVar(&o.AllowV1, "allow-v1", false, "answer without a token too")
	m.BoolVar(&noTags, "no-tags", false, "show no tags (InstanceMetadataTags=disabled)")
	m.addGroup("autoscaling", "serve an Auto Scaling API too, in which the instance belongs to the group of this `name`", "terminating", "launching")
	i := fakeaws.Sample()
	if err := m.read(args, &i, &i.ID, &i.UserData, &i.Tags); err != nil {
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
		if m.group == "" {
			s, err := fakeaws.Start(ctx, o)
			return s, nil, err
		}
		var err error
		if o.AutoScaling, err = fakeaws.StartAutoScaling(ctx, fakeaws.AutoScalingOptions{ScalingOptions: m.scaling, Region: i.Region}); err != nil {
			return nil, nil, err
		}
		o.AutoScaling.Group(m.group, m.hooks...)
		s, err := fakeaws.Start(ctx, o)
		if err == nil {
			err = o.AutoScaling.Attach(m.group, s)
		}
		return s, map[string]string{"autoscaling": o.AutoScaling.Endpoint()}, err
	})
}

func runAlibaba(ctx context.Context, env Env, args []string) error {
	m := newMachine(env, "alibaba", "instance", "the instance's `id`", "tag", "a tag, which the API has,")
	var o fakealibaba.Options
	var co fakealibaba.CloudOptions
	var noRole, wrapped bool
	m.BoolVar(&o.Plain, "plain", false, "answer without a token too")
	m.BoolVar(&noRole, "no-role", false, "give the instance no RAM role")
	m.BoolVar(&wrapped, "wrapped", false, "wrap the lists of the API as that of 2014 does")
	m.DurationVar(&co.Skew, "skew", 0, "`time` by which the API's clock is ahead")
	m.addGroup("api", "the instance belongs to the scaling group of this `id`", "in", "out")
	i := fakealibaba.Sample()
	if err := m.read(args, &i, &i.ID, &i.UserData, &i.Tags); err != nil {
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
		o.Listen, co.ScalingOptions = m.Listen, m.scaling
		if o.Cloud, err = fakealibaba.StartCloud(ctx, co); err != nil {
			return nil, nil, err
		}
		o.Cloud.Wrap(wrapped)
		s, err := fakealibaba.Start(ctx, o)
		if err == nil && m.group != "" {
			o.Cloud.Group(m.group, m.hooks...)
			err = o.Cloud.Attach(m.group, "", s)
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
	m.StringVar(&versions, "versions", "", "`versions` of the instance metadata that are served, with commas; empty: 2021-12-13 and later")
	m.DurationVar(&o.BootTime, "boot-time", 0, "`time` for which everything is 410")
	m.IntVar(&o.DropCalls, "drop-calls", 0, "`number` of calls that are dropped at first")
	m.DurationVar(&o.FirstCall, "first-call", 0, "`time` that the first call for events takes")
	m.DurationVar(&set.EnableDelay, "enable-delay", 0, "`time` from that call until events are seen")
	vm := fakeazure.Sample()
	if err := m.read(args, &vm, &vm.ID, &vm.UserData, &vm.Tags); err != nil {
		return err
	}
	vm.Name = cmp.Or(name, vm.Name)
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
	i := fakegcp.Sample()
	if err := m.read(args, &i, &i.ID, nil, &i.Attributes); err != nil {
		return err
	}
	if m.ip != "" && len(i.NICs) > 0 {
		i.NICs[0].IPv4 = m.ip
	}
	if standard {
		i.Spot, i.Migrates = false, true
	}
	for key, value := range project {
		fakes.Set(&i.ProjectAttributes, key, value)
	}
	o.Instance = &i
	return m.run(ctx, func(ctx context.Context) (metadataService, map[string]string, error) {
		o.Listen = m.Listen
		s, err := fakegcp.Start(ctx, o)
		return s, nil, err
	})
}
