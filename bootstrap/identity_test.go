// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
)

// interfaces are those of a machine with these addresses.
func interfaces(addresses string) func() ([]ams.Interface, error) {
	return func() (all []ams.Interface, _ error) {
		for a := range strings.FieldsSeq(addresses) {
			all = append(all, ams.Interface{Name: "eth0", Addr: netip.MustParseAddr(a)})
		}
		return all, nil
	}
}

// Who a machine is: by the metadata, its hardware and its interfaces. The state was written on old hardware.
func TestConvergeIdentity(t *testing.T) {
	t.Parallel()
	away := errors.New("the metadata service does not answer")
	other, otherAddress, generic := joinedAs(), joinedAs(), joinedAs()
	other.ID, other.Address = "i-2", netip.MustParseAddr("10.0.1.9")
	otherAddress.Address = other.Address
	generic.Provider = metadata.Generic
	type look struct {
		inst metadata.Instance
		err  error
		want string // "ID ADDRESS HARDWARE", then what it says of that
	}
	const old, is = "i-1 10.0.1.7 old", "i-2 10.0.1.9 "
	for name, tt := range map[string]struct {
		was, hardware, interfaces string // the hardware of the state and of this machine
		entered                   bool   // the cluster had this boot
		registered                bool
		looks                     []look // 40 s apart
	}{
		"no answer":                              {"old", "old", "10.0.1.7", false, false, []look{{err: away, want: old}}},
		"no answer, other hardware":              {"old", "new", "10.0.1.9", false, false, []look{{err: away, want: old + " unidentified"}}},
		"no answer, hardware not known":          {"old", "", "10.0.1.9", false, false, []look{{err: away, want: old}}},
		"no answer, hardware not known before":   {"", "new", "10.0.1.9", false, false, []look{{err: away, want: "i-1 10.0.1.7 none"}}},
		"the same":                               {"", "old", "10.0.1.7", false, false, []look{{inst: joinedAs(), want: old}}},
		"resized":                                {"old", "new", "10.0.1.7", false, false, []look{{inst: joinedAs(), want: "i-1 10.0.1.7 new"}}},
		"resized, a malformed tag":               {"old", "new", "10.0.1.7", false, false, []look{{joinedAs(), ErrTags, "i-1 10.0.1.7 new"}}},
		"a machine id on other hardware":         {"old", "new", "10.0.1.7", false, false, []look{{inst: generic, want: old + " other"}, {inst: generic, want: old + " other"}}},
		"a machine id that has the record":       {"old", "new", "10.0.1.7", false, true, []look{{inst: generic, want: "i-1 10.0.1.7 new"}}},
		"a copy":                                 {"old", "new", "10.0.1.9", false, false, []look{{inst: other, want: is + "new cloned"}}},
		"a copy, hardware not known":             {"old", "", "10.0.1.9", false, false, []look{{inst: other, want: "i-1 10.0.1.9 old unidentified"}, {inst: other, want: "i-1 10.0.1.9 old unidentified"}, {inst: other, want: is + "none cloned"}}},
		"one odd answer":                         {"old", "old", "10.0.1.7", false, false, []look{{inst: other, want: old + " unidentified"}, {inst: joinedAs(), want: old}, {inst: other, want: old + " unidentified"}, {inst: other, want: old + " unidentified"}}},
		"one odd answer to a node":               {"old", "old", "10.0.1.7", true, false, []look{{inst: other, want: old}, {inst: joinedAs(), want: old}}},
		"a node gets the same answer twice":      {"old", "old", "10.0.1.7", true, false, []look{{inst: other, want: old}, {inst: other, want: old}, {inst: other, want: "i-2 10.0.1.7 old cloned"}}},
		"an address that no interface has":       {"old", "old", "10.0.1.7", false, false, []look{{inst: otherAddress, want: old}}},
		"an address that an interface has":       {"old", "old", "10.0.1.7 10.0.1.9", false, false, []look{{inst: otherAddress, want: "i-1 10.0.1.9 old"}}},
		"neither address is here":                {"old", "old", "10.0.1.8", false, false, []look{{inst: otherAddress, want: "i-1 10.0.1.9 old"}}},
		"neither is here, and it is another one": {"old", "old", "10.0.1.8", false, false, []look{{inst: other, want: old + " unidentified"}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				full := map[string]string{"old": oldHardware, "new": newHardware}
				m := newTree(t, joined, with(bootFile, "boot-1\n"), with(hardwareFile, full[tt.hardware]))
				m.Interfaces = interfaces(tt.interfaces)
				change(t, m, func(s *State) { s.Hardware = full[tt.was] })
				if tt.entered {
					must.OK(t, m.Entered("boot-1 10.0.1.7"))
				}
				for i, l := range tt.looks {
					req := convergeRequest(t, l.inst, l.err)
					req.Mode, req.Address, req.ForceAddress, req.Registered = ConvergeWatch, "", false, tt.registered
					c := converge(t, m, req)
					s := stateOf(t, m)
					hardware := map[string]string{oldHardware: "old", newHardware: "new", "": "none"}[s.Hardware]
					got := s.InstanceID + " " + s.Address + " " + hardware
					for word, said := range map[string]bool{"unidentified": c.Unidentified != "", "other": c.OtherHardware, "cloned": strings.Contains(ids(c.Repairs), IDCloned)} {
						if said {
							got += " " + word
						}
					}
					if got != l.want || c.Node.ID != s.InstanceID || c.Node.IP != s.Address {
						t.Errorf("look %d: %s, want %s; record %+v, warnings %v", i, got, l.want, c.Node, c.Warnings)
					}
					if c.Unidentified != "" && !strings.Contains(ids(c.Warnings), IDIdentity) {
						t.Errorf("look %d: no warning is AGENT-IDENTITY: %v", i, c.Warnings)
					}
					<-time.After(40 * time.Second)
				}
			})
		})
	}
}

// An address that is behind a translation is the cloud's to confirm. While its answer lacks it, nothing contradicts it.
func TestConvergeTranslatedAddress(t *testing.T) {
	t.Parallel()
	partly := joinedAs()
	partly.Missing = []string{"public_address"}
	for name, tt := range map[string]struct {
		inst metadata.Instance
		err  error
		want bool // a warning
	}{"no answer": {err: errors.New("it does not answer")}, "a part": {inst: partly}, "all": {inst: joinedAs(), want: true}} {
		m := newTree(t, joined)
		m.Interfaces = interfaces("10.0.1.7")
		req := convergeRequest(t, tt.inst, tt.err)
		req.Address, req.ForceAddress = "203.0.113.9", false
		c := converge(t, m, req)
		must.Equal(t, name+": a warning", strings.Contains(ids(c.Warnings), IDAddress), tt.want)
		must.Equal(t, name+": the address", c.Node.IP, "10.0.1.7")
	}
}

// A signal ends the question to the cloud, and the convergence with it.
func TestConvergeInterrupted(t *testing.T) {
	t.Parallel()
	m := newTree(t, joined)
	change(t, m, func(s *State) { s.Address = "10.0.1.6" })
	was := snapshot(t, m)
	why := errors.New("interrupted by signal")
	ctx, cancel := context.WithCancelCause(t.Context())
	req := convergeRequest(t, joinedAs(), nil)
	req.Identify = func(ctx context.Context) (metadata.Instance, error) {
		cancel(why)
		return metadata.Instance{}, context.Cause(ctx)
	}
	if c, err := m.Converge(ctx, req); !errors.Is(err, why) {
		t.Errorf("%+v, %v", c, err)
	}
	must.NoDiff(t, "the files", snapshot(t, m), was)
}

// A drain that wants to stop the server must not wait for a metadata service that hangs, or for MongoDB.
func TestCommandsAskBeforeTheyLock(t *testing.T) {
	t.Parallel()
	type identify = func(context.Context) (metadata.Instance, error)
	mongo := mustTarget(t, testMongo)
	for name, tt := range map[string]struct {
		run   func(*Machine, identify) error
		asked string
		fails string // a part of the error
	}{
		"converge": {func(m *Machine, ask identify) error {
			_, err := m.Converge(t.Context(), ConvergeRequest{Mongo: mongo, Address: "10.0.1.7", ForceAddress: true, Identify: ask})
			return err
		}, "the cloud", ""},
		"join": {func(m *Machine, ask identify) error {
			_, err := m.Join(t.Context(), JoinRequest{Mongo: mongo, Address: "10.0.1.7", ForceAddress: true, Identify: ask})
			return err
		}, "the cloud, MongoDB", "MongoDB is away"},
		"leave": {func(m *Machine, ask identify) error {
			change(t, m, func(s *State) { s.InstanceID = "" })
			_, err := m.Leave(t.Context(), LeaveRequest{Mongo: mongo, Identify: ask})
			return err
		}, "the cloud, MongoDB", "deregistering"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newTree(t, joined, serving(&fakeService{state: isDown}))
			var asked []string
			unlocked := func(source string) {
				asked = append(asked, source)
				lock, ok := locked(t, m)
				if !ok {
					t.Fatalf("the machine is locked while %s is asked", source)
				}
				must.OK(t, lock.Unlock())
			}
			m.Connect = func(context.Context, cluster.Target) (*cluster.Client, error) {
				unlocked("MongoDB")
				return nil, errors.New("MongoDB is away")
			}
			err := tt.run(m, func(context.Context) (metadata.Instance, error) {
				unlocked("the cloud")
				return joinedAs(), nil
			})
			must.Equal(t, "asked", strings.Join(asked, ", "), tt.asked)
			if (err != nil) != (tt.fails != "") || err != nil && !strings.Contains(err.Error(), tt.fails) {
				t.Errorf("%v, want %q", err, tt.fails)
			}
		})
	}
}
