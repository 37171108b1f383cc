// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/cluster"
)

// HAProxy keeps the slots of a running HAProxy equal to a list, through its runtime API.
//
// A slot is a server whose name is a role and a number, as of
//
//	server-template edge 1-64 unused.invalid:5080 init-addr last,0.0.0.0 disabled check weight 100
//
// in any backend. The name below .invalid (RFC 2606) marks it: other servers are not touched. HAProxy also takes an address
// from its server-state-file only in place of a name. The port stays as configured. A slot keeps its node while it has
// sessions.
type HAProxy struct {
	// Socket is the path of a stats socket of level admin.
	Socket string
	// SaveState stores the state of all servers, for HAProxy's server-state-file; nil: not stored.
	SaveState func(b []byte) error
	// Confirm reports to the nodes that HAProxy uses only these ids; nil: not reported.
	Confirm func(ctx context.Context, uses []string) error
	Log     *slog.Logger

	confirmed   []string // the last ids
	confirmedAt time.Time
	followed    time.Time // the last Apply of a list that was just read
}

const (
	// haproxyLimit bounds one command.
	haproxyLimit = 5 * time.Second
	// readBack is how often the slots are compared with an unchanged list: HAProxy may have been reloaded.
	readBack = 2 * time.Second
	shutdown = "shutdown sessions server "
	// maxReply bounds an answer: a line of `show stat` has about 700 bytes.
	maxReply = 32 << 20
)

// slot is a server of a backend that a node can take.
type slot struct {
	backend, name string
	role          string
	number        int
	addr          netip.Addr // invalid or unspecified: free
	maint         bool
	weight        int
	sessions      int
}

func (s slot) String() string { return s.backend + "/" + s.name }

func (s slot) free() bool { return !s.addr.IsValid() || s.addr.IsUnspecified() }

// Run follows a feed until ctx ends.
func (h *HAProxy) Run(ctx context.Context, f *Feed) {
	failed := ""
	for {
		list, changed := f.List()
		again := readBack
		// A stored list waits for the first look.
		if len(list.Servers) > 0 && (list.Failed != "" || !list.Read.IsZero()) {
			err := h.Apply(ctx, list)
			if err == nil && list.Failed == "" {
				err = h.confirm(ctx, list.Servers)
			}
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				if again = lookEvery; err.Error() != failed {
					h.Log.Warn("HAProxy does not follow the list", "socket", h.Socket, "error", err)
				}
				failed = err.Error()
			case failed != "":
				h.Log.Info("HAProxy follows the list again", "socket", h.Socket)
				failed = ""
			}
		}
		timer := time.NewTimer(again)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// confirm reports what was read back, if it is new or was not reported for a while.
func (h *HAProxy) confirm(ctx context.Context, servers []Server) error {
	var uses []string
	for _, s := range servers {
		uses = append(uses, s.ID)
	}
	if h.Confirm == nil || slices.Equal(uses, h.confirmed) && time.Since(h.confirmedAt) < cluster.BalancerInterval-readBack {
		return nil
	}
	if err := h.Confirm(ctx, uses); err != nil {
		return fmt.Errorf("confirming to the nodes: %w", err)
	}
	h.confirmed, h.confirmedAt = uses, time.Now()
	return nil
}

// ErrHAProxy means that HAProxy's socket does not answer, or not as expected.
var ErrHAProxy = errors.New("HAProxy cannot be set")

// ErrSlotsFull means that a backend has fewer slots than the list has servers of a role, or HAProxy has none for any role.
var ErrSlotsFull = errors.New("not enough slots")

// Apply makes the slots equal to the list, and reads them back.
func (h *HAProxy) Apply(ctx context.Context, list List) error {
	commands, full := h.Commands(ctx, list)
	if full != nil && !errors.Is(full, ErrSlotsFull) {
		return full
	}
	var refused error
	for _, c := range commands {
		reply, err := h.command(ctx, c)
		if err != nil {
			return err
		}
		if reply = strings.TrimSpace(reply); reply != "" && !strings.HasPrefix(reply, "IP changed") && !strings.HasPrefix(reply, "no need") {
			refused = cmp.Or(refused, fmt.Errorf("%w: it answers %q to %q", ErrHAProxy, reply, c))
		}
	}
	if refused != nil {
		return refused
	}
	if list.Failed == "" {
		h.followed = time.Now()
	}
	if len(commands) > 0 {
		slots, state, err := h.slots(ctx)
		if err != nil {
			return err
		}
		left, _ := plan(slots, list, false)
		// HAProxy ends sessions a moment later, and a second balance may set another weight.
		if left = slices.DeleteFunc(left, func(c string) bool { return strings.HasPrefix(c, shutdown) || strings.Contains(c, " weight ") }); len(left) > 0 {
			return fmt.Errorf("%w: it has not done %q", ErrHAProxy, left[0])
		}
		if h.SaveState != nil {
			if err := h.SaveState([]byte(state)); err != nil {
				return fmt.Errorf("storing the state of HAProxy's servers: %w", err)
			}
		}
	}
	return full
}

// Commands returns the commands that [HAProxy.Apply] would send.
func (h *HAProxy) Commands(ctx context.Context, list List) ([]string, error) {
	slots, _, err := h.slots(ctx)
	if err != nil {
		return nil, err
	}
	blind := list.Failed != ""
	if blind && !h.followed.IsZero() {
		up, err := h.uptime(ctx)
		if err != nil {
			return nil, err
		}
		blind = time.Since(h.followed) < up+2*time.Second // it reports whole seconds
	}
	return plan(slots, list, blind)
}

// uptime is the time since HAProxy's start: a new process may have lost what was set.
func (h *HAProxy) uptime(ctx context.Context) (time.Duration, error) {
	info, err := h.command(ctx, "show info")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(info) {
		if text, ok := strings.CutPrefix(line, "Uptime_sec:"); ok {
			if n, err := strconv.Atoi(strings.TrimSpace(text)); err == nil {
				return time.Duration(n) * time.Second, nil
			}
		}
	}
	return 0, fmt.Errorf("%w: it does not report its uptime", ErrHAProxy)
}

// plan's error is an [ErrSlotsFull]. Without a view of the cluster (blind), the slots of a role stay as they are, unless no
// slot takes sessions: another balance may have a view.
func plan(slots []slot, list List, blind bool) (commands []string, full error) {
	do := func(s slot, format string, args ...any) {
		commands = append(commands, "set server "+s.String()+" "+fmt.Sprintf(format, args...))
	}
	roles := Roles(list.Servers)
	if !slices.ContainsFunc(slots, func(s slot) bool { return slices.Contains(roles, s.role) }) {
		full = fmt.Errorf("%w: HAProxy has no server-template with a name below .invalid that is named after a role: %s", ErrSlotsFull, strings.Join(roles, ", "))
	}
	for _, role := range roles {
		// HAProxy makes edge21 of the template edge2, and of the template edge.
		base := strings.TrimRight(role, "0123456789")
		if base != role && !hasRole(slots, role) && hasRole(slots, base) {
			full = fmt.Errorf("%w for role %s: a name such as %s1 has the role %s; write `server-template %s- 1-N ...`", ErrSlotsFull, role, role, base, role)
		}
	}
	slices.SortFunc(slots, func(a, b slot) int {
		return cmp.Or(strings.Compare(a.backend, b.backend), strings.Compare(a.role, b.role), a.number-b.number)
	})
	for len(slots) > 0 {
		n := slices.IndexFunc(slots, func(s slot) bool { return s.backend != slots[0].backend || s.role != slots[0].role })
		if n < 0 {
			n = len(slots)
		}
		group := slots[:n]
		slots = slots[n:]
		if group[0].number != 1 {
			full = fmt.Errorf("%w: the numbers of a template begin at 1, and backend %s begins with %s; for a role that ends in a digit write `server-template %s- 1-N ...`",
				ErrSlotsFull, group[0].backend, group[0].name, strings.TrimSuffix(group[0].name, "1"))
			continue
		}
		if blind && slices.ContainsFunc(group, func(s slot) bool { return !s.maint && !s.free() }) {
			continue
		}
		want := ofRole(list.Servers, group[0].role)
		taken := map[string]Server{}
		var homeless []Server
		for _, w := range want {
			i := slices.IndexFunc(group, func(s slot) bool { return s.addr == w.Addr && taken[s.name].ID == "" })
			if i < 0 {
				homeless = append(homeless, w)
				continue
			}
			taken[group[i].name] = w
		}
		// Close unwanted ones first: their slots may be needed.
		for _, s := range group {
			if taken[s.name].ID == "" && !s.maint {
				do(s, "state maint")
			}
			if taken[s.name].ID == "" && s.sessions > 0 && isGone(list, s.addr) {
				commands = append(commands, shutdown+s.String())
			}
		}
		for _, w := range homeless {
			i := slices.IndexFunc(group, func(s slot) bool { return taken[s.name].ID == "" && s.free() })
			if i < 0 {
				i = slices.IndexFunc(group, func(s slot) bool { return taken[s.name].ID == "" && s.sessions == 0 })
			}
			if i < 0 {
				full = fmt.Errorf("%w: backend %s has %d for role %s", ErrSlotsFull, group[0].backend, len(group), group[0].role)
				break
			}
			taken[group[i].name] = w
			do(group[i], "addr %s", w.Addr)
		}
		for _, s := range group {
			w := taken[s.name]
			if w.ID == "" {
				continue
			}
			if s.weight != w.Weight {
				do(s, "weight %d", w.Weight)
			}
			if s.maint || s.addr != w.Addr {
				do(s, "state ready")
			}
		}
	}
	return commands, full
}

func hasRole(slots []slot, role string) bool {
	return slices.ContainsFunc(slots, func(s slot) bool { return s.role == role })
}

// isGone: unless the machine is gone by both signals and its port, its sessions may live.
func isGone(list List, addr netip.Addr) bool {
	return addr.IsValid() && slices.ContainsFunc(list.Gone, func(a netip.Addr) bool { return a == addr })
}

var slotName = regexp.MustCompile(`^(.*[^0-9])([0-9]+)$`)

// slots also returns the state of all servers in HAProxy's own form.
func (h *HAProxy) slots(ctx context.Context) (slots []slot, state string, err error) {
	if state, err = h.command(ctx, "show servers state"); err != nil {
		return nil, "", err
	}
	if slots, err = parseState(state); err != nil {
		return nil, "", err
	}
	text, err := h.command(ctx, "show stat -1 4 -1") // all proxies, servers only
	if err != nil {
		return nil, "", err
	}
	sessions, err := parseSessions(text)
	for i := range slots {
		slots[i].sessions = sessions[slots[i].String()]
	}
	return slots, state, err
}

// parseState parses `show servers state` (management guide, version 1).
func parseState(text string) ([]slot, error) {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) < 2 || strings.TrimSpace(lines[0]) != "1" {
		return nil, fmt.Errorf("%w: its list of servers has an unknown format", ErrHAProxy)
	}
	column := map[string]int{}
	for i, name := range strings.Fields(strings.TrimPrefix(lines[1], "#")) {
		column[name] = i
	}
	for _, name := range []string{"be_name", "srv_name", "srv_addr", "srv_admin_state", "srv_uweight", "srv_fqdn"} {
		if _, ok := column[name]; !ok {
			return nil, fmt.Errorf("%w: its list of servers has no column %s", ErrHAProxy, name)
		}
	}
	var slots []slot
	for _, line := range lines[2:] {
		fields := strings.Fields(line)
		if len(fields) < len(column) {
			continue
		}
		s := slot{backend: fields[column["be_name"]], name: fields[column["srv_name"]]}
		m := slotName.FindStringSubmatch(s.name)
		if m == nil || !strings.HasSuffix(fields[column["srv_fqdn"]], ".invalid") {
			continue
		}
		s.role = strings.ToLower(strings.Trim(m[1], "-_."))
		s.number, _ = strconv.Atoi(m[2])
		if addr, err := netip.ParseAddr(fields[column["srv_addr"]]); err == nil {
			s.addr = addr.Unmap()
		}
		admin, _ := strconv.Atoi(fields[column["srv_admin_state"]])
		const maintenance = 0x01 | 0x02 | 0x20 // SRV_ADMF_MAINT; 0x04 is for "disabled" in the configuration, and stays
		s.maint = admin&maintenance != 0
		s.weight, _ = strconv.Atoi(fields[column["srv_uweight"]])
		slots = append(slots, s)
	}
	return slots, nil
}

// parseSessions returns the current sessions of each BACKEND/SERVER in the CSV of `show stat`.
func parseSessions(text string) (map[string]int, error) {
	r := csv.NewReader(strings.NewReader(strings.TrimPrefix(text, "# ")))
	r.FieldsPerRecord = -1
	rows, err := r.ReadAll()
	if err != nil || len(rows) == 0 {
		return nil, fmt.Errorf("%w: reading its statistics: %w", ErrHAProxy, cmp.Or(err, io.ErrUnexpectedEOF))
	}
	proxy, server, current := slices.Index(rows[0], "pxname"), slices.Index(rows[0], "svname"), slices.Index(rows[0], "scur")
	if proxy < 0 || server < 0 || current < 0 {
		return nil, fmt.Errorf("%w: its statistics have an unknown format", ErrHAProxy)
	}
	sessions := map[string]int{}
	for _, row := range rows[1:] {
		if len(row) > max(proxy, server, current) {
			n, _ := strconv.Atoi(row[current])
			sessions[row[proxy]+"/"+row[server]] = n
		}
	}
	return sessions, nil
}

func (h *HAProxy) command(ctx context.Context, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, haproxyLimit)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", h.Socket)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrHAProxy, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_, err = io.WriteString(conn, command+"\n")
	var b []byte
	if err == nil {
		b, err = io.ReadAll(io.LimitReader(conn, maxReply))
	}
	if err != nil {
		return "", fmt.Errorf("%w: no answer at %s: %w", ErrHAProxy, h.Socket, cmp.Or(ctx.Err(), err))
	}
	return string(b), nil
}
