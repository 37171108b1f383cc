// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// unitsBus is a systemd with several units, each "UnitFileState ActiveState"; the others have no file.
type unitsBus struct {
	fakeBus
	units map[string]string
}

func (b *unitsBus) GetAllPropertiesContext(_ context.Context, unit string) (map[string]any, error) {
	is, ok := b.units[unit]
	if !ok {
		return map[string]any{"LoadState": "not-found", "ActiveState": "inactive", "UnitFileState": ""}, b.propsErr
	}
	file, active, _ := strings.Cut(is, " ")
	load := "loaded"
	if file == "masked" {
		load = "masked"
	}
	return map[string]any{"LoadState": load, "ActiveState": active, "UnitFileState": file}, b.propsErr
}

func fakeUnits(units map[string]string) (*Units, *unitsBus) {
	b := &unitsBus{units: units, fakeBus: fakeBus{result: ends("done")}}
	u := NewUnits("node.service", "agent.service")
	u.dial = func(context.Context) (bus, error) { return b, nil }
	return u, b
}

func TestUnits(t *testing.T) {
	const node, agent = "node.service", "agent.service"
	both := []string{
		"enable node.service agent.service", "reload", "reset node.service", "start node.service", "reset agent.service", "start agent.service",
		"disable node.service agent.service", "reload", "stop agent.service", "stop node.service",
	}
	alone := []string{
		"enable agent.service", "reload", "reset agent.service", "start agent.service",
		"disable agent.service", "reload", "stop agent.service",
	}
	for name, tt := range map[string]struct {
		units map[string]string
		state UnitsState
		calls []string // of Enable, then Disable
		want  error    // of Enable
	}{
		"fresh":                         {map[string]string{node: "disabled inactive", agent: "disabled inactive"}, UnitsState{}, both[:8], nil},
		"enabled and active":            {map[string]string{node: "enabled active", agent: "enabled active"}, UnitsState{true, true, true}, both, nil},
		"runs and starts at no boot":    {map[string]string{node: "disabled active", agent: "disabled active"}, UnitsState{false, true, true}, both, nil},
		"failed":                        {map[string]string{node: "enabled active", agent: "enabled failed"}, UnitsState{true, false, true}, slices.Delete(slices.Clone(both), 8, 9), nil},
		"waits for its restart":         {map[string]string{node: "enabled active", agent: "enabled activating"}, UnitsState{true, false, true}, both, nil},
		"until the next boot only":      {map[string]string{agent: "enabled-runtime active"}, UnitsState{false, true, true}, alone, nil},
		"made by hand, without a place": {map[string]string{agent: "static inactive"}, UnitsState{true, false, false}, alone[:6], nil},
		"masked":                        {map[string]string{node: "enabled active", agent: "masked inactive"}, UnitsState{false, false, true}, slices.Delete(slices.Clone(both[6:]), 2, 3), ErrUnitMasked},
	} {
		t.Run(name, func(t *testing.T) {
			u, b := fakeUnits(tt.units)
			if got, err := u.State(t.Context()); err != nil || got != tt.state {
				t.Errorf("State() = %+v, %v; want %+v", got, err, tt.state)
			}
			if err := u.Enable(t.Context()); !errors.Is(err, tt.want) {
				t.Errorf("Enable() = %v, want %v", err, tt.want)
			}
			must.Equal(t, "Disable()", u.Disable(t.Context()), nil)
			must.NoDiff(t, "calls", b.calls, tt.calls)
		})
	}
}

func TestUnitsAreNotInstalled(t *testing.T) {
	u, b := fakeUnits(nil)
	_, err := u.State(t.Context())
	for what, err := range map[string]error{"State": err, "Enable": u.Enable(t.Context()), "Disable": u.Disable(t.Context())} {
		if !errors.Is(err, ErrNoUnit) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if len(b.calls) > 0 {
		t.Errorf("it did %v", b.calls)
	}
}

// A unit that cannot be enabled is not started: it would be missing after the next boot. A unit that cannot be disabled
// is still stopped.
func TestUnitsRefused(t *testing.T) {
	refused := errors.New("read-only file system")
	u, b := fakeUnits(map[string]string{"agent.service": "disabled inactive"})
	b.jobErr = refused
	if err := u.Enable(t.Context()); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	must.NoDiff(t, "calls", b.calls, []string{"enable agent.service"})
	u, b = fakeUnits(map[string]string{"agent.service": "enabled active"})
	b.jobErr = refused
	if err := u.Disable(t.Context()); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	must.NoDiff(t, "calls", b.calls, []string{"disable agent.service", "reload", "stop agent.service"})
}

// A file of EnvironmentFile= overrides every drop-in; of several assignments the last one counts.
func TestAddressInAnEnvironmentFile(t *testing.T) {
	dir := plant(t, map[string]string{
		"one.env": "# AMS_HOST_ADDRESS=10.0.0.1\nJAVA_OPTS=-Xmx1g\n AMS_HOST_ADDRESS=\"10.0.0.2\"\n",
		"two.env": "OTHER_AMS_HOST_ADDRESS=10.0.0.3\n",
	})
	one, two := filepath.Join(dir, "one.env"), filepath.Join(dir, "two.env")
	for name, tt := range map[string]struct{ path, address, file string }{
		"quoted":    {one, "10.0.0.2", one},
		"none":      {two, "10.0.0.9", ""},
		"not there": {filepath.Join(dir, "gone"), "10.0.0.9", ""},
	} {
		s, _ := fakeSystemd(&fakeBus{props: map[string]any{"Environment": []string{"AMS_HOST_ADDRESS=10.0.0.9"}, "EnvironmentFiles": [][]any{{tt.path, true}}}})
		if st, err := s.State(t.Context()); err != nil || st.HostAddress != tt.address || st.HostAddressFile != tt.file {
			t.Errorf("%s: %s by %q, want %s by %q", name, st.HostAddress, st.HostAddressFile, tt.address, tt.file)
		}
	}
}

// A Java without IPv6 is known by the unit, and by the process if its start script has the option.
func TestIPv4Only(t *testing.T) {
	java := []any{"/usr/bin/java", []string{"java", PreferIPv4, "-jar", "x.jar"}, false}
	root := plant(t, map[string]string{"proc/7/cmdline": "java\x00" + PreferIPv4 + "\x00", "proc/8/cmdline": "java\x00-jar\x00"})
	for name, tt := range map[string]struct {
		props map[string]any
		want  string
	}{
		"the unit":        {map[string]any{"ExecStart": [][]any{java}, "FragmentPath": "/etc/systemd/system/antmedia.service"}, "/etc/systemd/system/antmedia.service"},
		"the process":     {map[string]any{"MainPID": uint32(7)}, "/ams/start.sh or the unit"},
		"another process": {map[string]any{"MainPID": uint32(8)}, ""},
		"no process":      {map[string]any{}, ""},
	} {
		s, _ := fakeSystemd(&fakeBus{props: tt.props})
		st, err := s.State(t.Context())
		if got := (&Installation{Root: root, Dir: "/ams"}).IPv4Only(st); err != nil || got != tt.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
