// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lb_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lb"
)

// runtimeSlot is a server of the backend b as HAProxy keeps it.
type runtimeSlot struct {
	role             string
	addr             string
	maint            bool
	weight, sessions int
}

// runtimeAPI is HAProxy's stats socket, with slots named after role and number.
type runtimeAPI struct {
	*lb.HAProxy
	mu       sync.Mutex
	slots    []runtimeSlot
	commands []string          // that were sent, but for those that read
	reads    int               // of the slots
	replies  map[string]string // of commands that do nothing
	uptime   int               // in seconds
	stored   []string          // states of the servers

	confirmed  []string // lists of ids
	confirmErr error
}

// serveRuntimeAPI must be called outside of a synctest bubble: time would not pass in it.
func serveRuntimeAPI(t *testing.T, slots ...runtimeSlot) *runtimeAPI {
	t.Helper()
	dir, err := os.MkdirTemp("", "h") //nolint:usetesting // a socket's path has 107 bytes at most
	must.OK(t, err)
	var listen net.ListenConfig
	l, err := listen.Listen(t.Context(), "unix", filepath.Join(dir, "s"))
	must.OK(t, err)
	t.Cleanup(func() { _ = errors.Join(l.Close(), os.RemoveAll(dir)) })
	r := &runtimeAPI{slots: slots, replies: map[string]string{}, uptime: 90000}
	r.HAProxy = &lb.HAProxy{
		Socket: l.Addr().String(), Log: slog.New(slog.DiscardHandler),
		SaveState: func(b []byte) error { r.stored = append(r.stored, string(b)); return nil },
		Confirm: func(_ context.Context, uses []string) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.confirmErr == nil {
				r.confirmed = append(r.confirmed, strings.Join(uses, " "))
			}
			return r.confirmErr
		},
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			line, _ := bufio.NewReader(conn).ReadString('\n')
			_, _ = conn.Write([]byte(r.answer(strings.TrimSpace(line)) + "\n"))
			_ = conn.Close()
		}
	}()
	return r
}

func (r *runtimeAPI) set(change func(*runtimeAPI)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r)
}

func (r *runtimeAPI) answer(command string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	state := "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_fqdn srv_port\n"
	stat := "# pxname,svname,qcur,qmax,scur,smax,\n"
	var named *runtimeSlot
	numbers := map[string]int{}
	fields := strings.Fields(command)
	for i := range r.slots {
		s, admin := &r.slots[i], 0x04 // disabled in the configuration
		if s.maint {
			admin |= 0x01
		}
		numbers[s.role]++
		name := fmt.Sprint(s.role, numbers[s.role])
		state += fmt.Sprintf("3 b %d %s %s 2 %d %d 100 unused.invalid 5080\n", i+1, name, s.addr, admin, s.weight)
		stat += fmt.Sprintf("b,%s,0,0,%d,9,\n", name, s.sessions)
		if slices.Contains(fields, "b/"+name) {
			named = s
		}
	}
	switch command {
	case "show servers state":
		r.reads++
		return state
	case "show stat -1 4 -1":
		return stat
	case "show info":
		return fmt.Sprintf("Name: HAProxy\nUptime_sec: %d\n", r.uptime)
	}
	r.commands = append(r.commands, command)
	reply, refused := r.replies[command]
	switch {
	case refused:
		return reply
	case named == nil:
		return "No such server."
	case fields[0] == "shutdown": // they end a moment later
	case fields[3] == "addr":
		named.addr = fields[4]
		return "IP changed from 'x' to 'y' by 'stats socket command'\n"
	case fields[3] == "weight":
		_, _ = fmt.Sscan(fields[4], &named.weight)
	case fields[3] == "state":
		named.maint = fields[4] == "maint"
	}
	return ""
}

// A change of the list changes only the slots that it concerns. Sessions end only on machines that are gone: a drain waits for
// those on its machine, and its slot is not given to another one meanwhile.
func TestHAProxySlots(t *testing.T) {
	at := func(addr string, sessions int) runtimeSlot { return runtimeSlot{"edge", addr, false, 50, sessions} }
	maint := func(s runtimeSlot) runtimeSlot { s.maint = true; return s }
	free := maint(at("0.0.0.0", 0))
	origin := edge(4, 50)
	origin.Role = "origin"
	for name, tt := range map[string]struct {
		slots []runtimeSlot
		list  []lb.Server
		gone  string
		want  []string
		full  bool
	}{
		"the same list": {slots: []runtimeSlot{at("127.0.0.1", 3), free}, list: []lb.Server{edge(1, 50)}},
		"another weight": {
			slots: []runtimeSlot{at("127.0.0.1", 3), free}, list: []lb.Server{edge(1, 60)},
			want: []string{"set server b/edge1 weight 60"},
		},
		"one drains": {
			slots: []runtimeSlot{at("127.0.0.1", 3), at("127.0.0.2", 2)}, list: []lb.Server{edge(2, 50)},
			want: []string{"set server b/edge1 state maint"},
		},
		"it still drains": {slots: []runtimeSlot{maint(at("127.0.0.1", 3)), at("127.0.0.2", 2)}, list: []lb.Server{edge(2, 50)}},
		"it serves again": {
			slots: []runtimeSlot{maint(at("127.0.0.1", 3)), at("127.0.0.2", 2)}, list: []lb.Server{edge(1, 50), edge(2, 50)},
			want: []string{"set server b/edge1 state ready"},
		},
		"one is gone, and others drain": {
			slots: []runtimeSlot{at("127.0.0.1", 3), at("127.0.0.2", 2), maint(at("127.0.0.3", 1)), at("127.0.0.4", 0)},
			list:  []lb.Server{edge(4, 50)}, gone: "127.0.0.2",
			want: []string{"set server b/edge1 state maint", "set server b/edge2 state maint", "shutdown sessions server b/edge2"},
		},
		"one is gone that drained": {
			slots: []runtimeSlot{maint(at("127.0.0.1", 3)), at("127.0.0.2", 2)}, list: []lb.Server{edge(2, 50)}, gone: "127.0.0.1",
			want: []string{"shutdown sessions server b/edge1"},
		},
		"one is gone without sessions": {
			slots: []runtimeSlot{maint(at("127.0.0.1", 0)), at("127.0.0.2", 2)}, list: []lb.Server{edge(2, 50)}, gone: "127.0.0.1",
		},
		"the address has another machine": {slots: []runtimeSlot{at("127.0.0.1", 3), free}, list: []lb.Server{edge(1, 50)}, gone: "127.0.0.1"},
		"one is new beside one that drains": {
			slots: []runtimeSlot{at("127.0.0.1", 3), free}, list: []lb.Server{edge(3, 60)},
			want: []string{
				"set server b/edge1 state maint", "set server b/edge2 addr 127.0.0.3", "set server b/edge2 weight 60",
				"set server b/edge2 state ready",
			},
		},
		"a slot is free, another one only empty": {
			slots: []runtimeSlot{maint(at("127.0.0.1", 0)), free}, list: []lb.Server{edge(3, 50)},
			want: []string{"set server b/edge2 addr 127.0.0.3", "set server b/edge2 state ready"},
		},
		"the slot of one that left is closed first": {
			slots: []runtimeSlot{at("127.0.0.1", 0)}, list: []lb.Server{edge(3, 50)},
			want: []string{"set server b/edge1 state maint", "set server b/edge1 addr 127.0.0.3", "set server b/edge1 state ready"},
		},
		"no slot is left but for one with sessions": {
			slots: []runtimeSlot{maint(at("127.0.0.1", 1)), at("127.0.0.2", 0)}, list: []lb.Server{edge(2, 60), edge(3, 50)},
			want: []string{"set server b/edge2 weight 60"}, full: true,
		},
		"two roles in one backend": {
			slots: []runtimeSlot{free, {"origin", "0.0.0.0", true, 50, 0}}, list: []lb.Server{edge(1, 50), origin},
			want: []string{
				"set server b/edge1 addr 127.0.0.1", "set server b/edge1 state ready",
				"set server b/origin1 addr 127.0.0.4", "set server b/origin1 state ready",
			},
		},
		"two at one address": {
			slots: []runtimeSlot{at("127.0.0.1", 1), at("127.0.0.1", 1)}, list: []lb.Server{edge(1, 50)},
			want: []string{"set server b/edge2 state maint"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := serveRuntimeAPI(t, tt.slots...)
			list := lb.List{Servers: tt.list}
			if tt.gone != "" {
				list.Gone = []netip.Addr{netip.MustParseAddr(tt.gone)}
			}
			if err := r.Apply(t.Context(), list); errors.Is(err, lb.ErrSlotsFull) != tt.full || !tt.full && err != nil {
				t.Error(err)
			}
			must.NoDiff(t, "commands", r.commands, tt.want)
			// The stored state is the one after the commands.
			if n := len(r.stored); n != min(1, len(tt.want)) || n > 0 && r.stored[0] != r.answer("show servers state")+"\n" {
				t.Errorf("stored: %q", r.stored)
			}
		})
	}
}

// HAProxy may refuse a command, or answer without an effect.
func TestHAProxyRefuses(t *testing.T) {
	for _, tt := range []struct {
		command, reply string
		fails          bool
	}{
		{"set server b/edge1 state maint", "Permission denied", true},
		{"set server b/edge1 state maint", "", true},
		{"set server b/edge2 weight 60", "Backend is using a static LB algorithm", true},
		{"set server b/edge2 weight 60", "", false}, // another balance sets another weight
	} {
		r := serveRuntimeAPI(t, runtimeSlot{"edge", "127.0.0.1", false, 50, 1}, runtimeSlot{"edge", "127.0.0.2", false, 50, 0})
		r.replies[tt.command] = tt.reply
		err := r.Apply(t.Context(), lb.List{Servers: []lb.Server{edge(2, 60)}})
		if errors.Is(err, lb.ErrHAProxy) != tt.fails || (len(r.stored) == 0) != tt.fails {
			t.Errorf("%q to %q: %v, stored %q", tt.reply, tt.command, err, r.stored)
		}
	}
}

// A registry without a node may be the wrong one: nothing is sent.
func TestHAProxyEmptyList(t *testing.T) {
	r := serveRuntimeAPI(t, runtimeSlot{"edge", "127.0.0.1", false, 50, 3})
	synctest.Test(t, func(t *testing.T) {
		f := newFeed(t, &world{}, nil, func(o *lb.Options) { o.Force = true })
		must.OK(t, f.Look(t.Context()))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if r.Run(ctx, f); len(r.commands) > 0 {
			t.Errorf("%q", r.commands)
		}
	})
}

// The nodes learn which servers HAProxy uses only from a list that MongoDB has now, and once HAProxy has it: a node that drains
// waits for that. An unchanged list is confirmed again in time.
func TestHAProxyConfirms(t *testing.T) {
	r := serveRuntimeAPI(t, runtimeSlot{"edge", "10.0.0.2", false, 50, 0}, runtimeSlot{"edge", "0.0.0.0", true, 50, 0})
	synctest.Test(t, func(t *testing.T) {
		w, s, away := &world{}, &stored{}, errors.New("away")
		members := []cluster.Member{member("e1", "edge", 50), member("e2", "edge", 50)}
		w.set(members...)
		must.OK(t, newFeed(t, w, s).Look(t.Context()))
		f := newFeed(t, w, s) // begins with the stored list
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		defer work.Wait()
		defer cancel()
		work.Go(func() { r.Run(ctx, f) })
		passes := func(what string, d time.Duration, want ...string) {
			t.Helper()
			reads := 0
			r.set(func(r *runtimeAPI) { reads, r.confirmed = r.reads, nil })
			sleep.For(ctx, d)
			synctest.Wait()
			r.set(func(r *runtimeAPI) {
				if follows := r.reads >= reads+3; follows == listed(f).Read.IsZero() || !slices.Equal(r.confirmed, want) {
					t.Errorf("%s: confirmed %q, %d looks at HAProxy", what, r.confirmed, r.reads-reads)
				}
			})
		}
		const rounds = 10 * time.Second
		passes("MongoDB was not read yet", rounds)
		work.Go(func() { f.Run(ctx) })
		passes("MongoDB has the list", rounds, "e1 e2")
		passes("no change", rounds)
		w.fail(away)
		passes("MongoDB is away", 2*cluster.BalancerInterval)
		w.set(members...)
		passes("MongoDB is back", rounds, "e1 e2")
		r.set(func(r *runtimeAPI) { r.replies["set server b/edge1 state maint"] = "no" })
		w.set(member("e1", "edge", 50), member("e2", "edge", 50, state(cluster.StateDraining)))
		passes("HAProxy refuses the change", rounds)
		r.set(func(r *runtimeAPI) { clear(r.replies); r.confirmErr = away })
		passes("the registry refuses the confirmation", rounds)
		r.set(func(r *runtimeAPI) { r.confirmErr = nil })
		passes("all is well", rounds, "e1")
		passes("no change for long", 2*cluster.BalancerInterval-rounds, "e1", "e1")
	})
}

// While MongoDB is away, a server that an operator took out stays out; but a HAProxy that restarted since has lost its list.
func TestHAProxyRestartsWhileBlind(t *testing.T) {
	both := lb.List{Servers: []lb.Server{edge(1, 50), edge(2, 50)}}
	r := serveRuntimeAPI(t, runtimeSlot{"edge", "0.0.0.0", true, 50, 0}, runtimeSlot{"edge", "0.0.0.0", true, 50, 0})
	must.OK(t, r.Apply(t.Context(), both))
	r.set(func(r *runtimeAPI) { r.slots[1].maint = true })
	both.Failed = "away"
	commands, err := r.Commands(t.Context(), both)
	must.OK(t, err)
	must.Equal(t, fmt.Sprintf("commands for the HAProxy that has the list: %q", commands), len(commands), 0)
	r.set(func(r *runtimeAPI) { r.uptime = -10 }) // it started after the list was sent
	commands, err = r.Commands(t.Context(), both)
	must.OK(t, err)
	must.NoDiff(t, "commands for a new HAProxy", commands, []string{"set server b/edge2 state ready"})
}
