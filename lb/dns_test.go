// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lb_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lb"
)

// query makes a query; size is that of EDNS, 0 without.
func query(t testing.TB, name string, typ dnsmessage.Type, size int) []byte {
	t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 7, RecursionDesired: true})
	must.OK(t, b.StartQuestions())
	n, err := dnsmessage.NewName(name)
	must.OK(t, err)
	must.OK(t, b.Question(dnsmessage.Question{Name: n, Type: typ, Class: dnsmessage.ClassINET}))
	if size > 0 {
		must.OK(t, b.StartAdditionals())
		var h dnsmessage.ResourceHeader
		must.OK(t, h.SetEDNS0(size, dnsmessage.RCodeSuccess, false))
		must.OK(t, b.OPTResource(h, dnsmessage.OPTResource{}))
	}
	q, err := b.Finish()
	must.OK(t, err)
	return q
}

// records are the records of an answer as text.
func records(rs []dnsmessage.Resource) (lines []string) {
	for _, r := range rs {
		switch b := r.Body.(type) {
		case *dnsmessage.AResource:
			lines = append(lines, fmt.Sprintf("%s %d A %s", r.Header.Name, r.Header.TTL, netip.AddrFrom4(b.A)))
		case *dnsmessage.AAAAResource:
			lines = append(lines, fmt.Sprintf("%s %d AAAA %s", r.Header.Name, r.Header.TTL, netip.AddrFrom16(b.AAAA)))
		case *dnsmessage.SOAResource:
			lines = append(lines, fmt.Sprintf("%s %d SOA %d", r.Header.Name, r.Header.TTL, b.MinTTL))
		case *dnsmessage.SRVResource:
			lines = append(lines, fmt.Sprintf("%s %d SRV %d %d %s", r.Header.Name, r.Header.TTL, b.Weight, b.Port, b.Target))
		}
	}
	return lines
}

func TestDNS(t *testing.T) {
	list := []lb.Server{
		{ID: "e1", Role: "edge", Addr: netip.MustParseAddr("10.0.0.1"), Port: 5080, Weight: 100},
		{ID: "e2", Role: "edge", Addr: netip.MustParseAddr("fd00::2"), Port: 6080, Weight: 1},
		{ID: "e3", Role: "edge", Addr: netip.MustParseAddr("10.0.0.3"), Port: 5080, Weight: 50, Full: true},
		{ID: "n5", Role: "node", Addr: netip.MustParseAddr("10.0.0.5"), Port: 5080, Weight: 30},
		{ID: "o4", Role: "origin", Addr: netip.MustParseAddr("10.0.0.4"), Port: 5080, Weight: 30, Full: true},
	}
	known := true
	d := &lb.DNS{Domain: "ams.test", Roles: []string{"Edge", "Relay"}, List: func() ([]lb.Server, bool) { return list, known }}
	for _, tt := range []struct {
		name  string
		typ   dnsmessage.Type
		code  dnsmessage.RCode
		want  []string
		extra []string
	}{
		{"edge.ams.test.", dnsmessage.TypeA, 0, []string{"edge.ams.test. 1 A 10.0.0.1", "edge.ams.test. 1 A 10.0.0.3"}, nil},
		{"edge.ams.test.", dnsmessage.TypeAAAA, 0, []string{"edge.ams.test. 1 AAAA fd00::2"}, nil},
		{"EDGE.AMS.test.", dnsmessage.TypeALL, 0, []string{"EDGE.AMS.test. 1 A 10.0.0.1", "EDGE.AMS.test. 1 AAAA fd00::2", "EDGE.AMS.test. 1 A 10.0.0.3"}, nil},
		{"edge.ams.test.", dnsmessage.TypeTXT, 0, nil, nil},
		{
			"_http._tcp.edge.ams.test.", dnsmessage.TypeSRV, 0,
			[]string{
				"_http._tcp.edge.ams.test. 1 SRV 65500 5080 10-0-0-1.node.ams.test.", "_http._tcp.edge.ams.test. 1 SRV 655 6080 fd00--2.node.ams.test.",
				"_http._tcp.edge.ams.test. 1 SRV 32750 5080 10-0-0-3.node.ams.test.",
			},
			[]string{"10-0-0-1.node.ams.test. 1 A 10.0.0.1", "fd00--2.node.ams.test. 1 AAAA fd00::2", "10-0-0-3.node.ams.test. 1 A 10.0.0.3"},
		},
		{
			"_rtmp._tcp.origin.ams.test.", dnsmessage.TypeSRV, 0,
			[]string{"_rtmp._tcp.origin.ams.test. 1 SRV 19650 1935 10-0-0-4.node.ams.test."},
			[]string{"10-0-0-4.node.ams.test. 1 A 10.0.0.4"},
		},
		{"10-0-0-3.node.ams.test.", dnsmessage.TypeA, 0, []string{"10-0-0-3.node.ams.test. 1 A 10.0.0.3"}, nil},
		{"10-0-0-9.node.ams.test.", dnsmessage.TypeA, dnsmessage.RCodeNameError, nil, nil},
		{"unknown.ams.test.", dnsmessage.TypeA, dnsmessage.RCodeNameError, nil, nil},
		{"relay.ams.test.", dnsmessage.TypeA, dnsmessage.RCodeServerFailure, nil, nil},
		{"ams.test.", dnsmessage.TypeSOA, 0, []string{"ams.test. 1 SOA 1"}, nil},
		{"_tcp.edge.ams.test.", dnsmessage.TypeSRV, 0, nil, nil}, // an empty answer: a name below has records
		{"_tcp.relay.ams.test.", dnsmessage.TypeA, 0, nil, nil},
		{"_udp.edge.ams.test.", dnsmessage.TypeSRV, dnsmessage.RCodeNameError, nil, nil},
		{"node.ams.test.", dnsmessage.TypeA, 0, nil, nil},
		{"_http._tcp.node.ams.test.", dnsmessage.TypeSRV, dnsmessage.RCodeNameError, nil, nil},
		{"example.com.", dnsmessage.TypeA, dnsmessage.RCodeRefused, nil, nil},
		{"xams.test.", dnsmessage.TypeA, dnsmessage.RCodeRefused, nil, nil},
	} {
		m := ask(t, d, query(t, tt.name, tt.typ, 4096), false)
		if m.RCode != tt.code || !m.Response || !m.Authoritative || m.RecursionAvailable || m.ID != 7 || m.Truncated {
			t.Errorf("%s %s: %+v", tt.name, tt.typ, m.Header)
		}
		negative := len(m.Answers) == 0 && (m.RCode == 0 || m.RCode == dnsmessage.RCodeNameError)
		must.Equal(t, fmt.Sprintf("%s %s: has an authority of %v", tt.name, tt.typ, m.Authorities), len(records(m.Authorities)) > 0, negative)
		must.NoDiff(t, fmt.Sprintf("%s %s", tt.name, tt.typ), append(records(m.Answers), records(m.Additionals)...), append(tt.want, tt.extra...))
	}
	known = false
	must.Equal(t, "before the first list", ask(t, d, query(t, "edge.ams.test.", dnsmessage.TypeA, 0), false).RCode, dnsmessage.RCodeServerFailure)
}

// A later version of EDNS is refused with the version that is spoken (RFC 6891, BADVERS).
func TestDNSVersion(t *testing.T) {
	d := &lb.DNS{Domain: "ams.test", List: func() ([]lb.Server, bool) { return nil, false }}
	q := query(t, "edge.ams.test.", dnsmessage.TypeA, 4096)
	q[len(q)-5] = 1 // before the flags and the length of the OPT record
	m := ask(t, d, q, false)
	if len(m.Additionals) != 1 {
		t.Fatalf("%+v", m)
	}
	if h := m.Additionals[0].Header; h.ExtendedRCode(m.RCode) != 16 || byte(h.TTL>>16) != 0 {
		t.Errorf("code %d, %+v", h.ExtendedRCode(m.RCode), h)
	}
}

// largest is the argument of Answer.
func largest(tcp bool) int {
	if tcp {
		return 0
	}
	return 1<<16 - 1
}

// ask asks without a network.
func ask(t testing.TB, d *lb.DNS, q []byte, tcp bool) (m dnsmessage.Message) {
	t.Helper()
	b := d.Answer(q, largest(tcp))
	if b == nil {
		t.Fatal("no answer")
	}
	must.OK(t, m.Unpack(b))
	return m
}

// The list is whole, or the client must ask by TCP; a part of it would be taken for all of it.
func TestDNSSizes(t *testing.T) {
	var list []lb.Server
	for i := range 500 {
		list = append(list, lb.Server{ID: fmt.Sprint(i), Role: "edge", Addr: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), Port: 5080, Weight: 100})
	}
	n := 0
	d := &lb.DNS{Domain: "ams.test", List: func() ([]lb.Server, bool) { return list[:n], true }}
	for n = 1; n <= len(list); n += 7 {
		for _, size := range []int{0, 512, 1232, 4096, 8192, 65535} {
			for _, tcp := range []bool{false, true} {
				q := query(t, "_http._tcp.edge.ams.test.", dnsmessage.TypeSRV, size)
				b := d.Answer(q, largest(tcp))
				most := max(size, 512)
				if tcp {
					most = 65535
				}
				if len(b) > most {
					t.Fatalf("%d bytes of %d", len(b), most)
				}
				m := ask(t, d, q, tcp)
				if remote := d.Answer(q, 1232); len(remote) > 1232 {
					t.Fatalf("%d bytes for another machine", len(remote))
				}
				hosts := len(records(m.Additionals))
				whole := len(m.Answers) == n && !m.Truncated && (hosts == n || hosts == 0)
				refused := len(m.Answers) == 0 && m.Truncated && hosts == 0
				if !whole && !refused || tcp && !whole {
					t.Fatalf("%d servers, %d bytes: %d answers, %d addresses, truncated %v", n, most, len(m.Answers), hosts, m.Truncated)
				}
			}
		}
	}
}

// A repeated query gets the answer of the current list, with its own id.
func TestDNSRepeated(t *testing.T) {
	servers := func(port int) (list []lb.Server) {
		for i := range 100 {
			list = append(list, lb.Server{Role: "edge", Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), Port: port, Weight: 50})
		}
		return list
	}
	list := servers(5080)
	d := &lb.DNS{Domain: "ams.test", List: func() ([]lb.Server, bool) { return list, true }}
	for i, port := range []uint16{5080, 5080, 6080, 6080} {
		if i == 2 {
			list = servers(6080)
		}
		q := query(t, "_http._tcp.edge.ams.test.", dnsmessage.TypeSRV, 0)
		q[1] = byte(i)
		m := ask(t, d, q, true)
		if srv, ok := m.Answers[99].Body.(*dnsmessage.SRVResource); m.ID != uint16(i) || !ok || srv.Port != port {
			t.Errorf("query %d: id %d, %v", i, m.ID, m.Answers[99])
		}
	}
}

func TestDNSHostile(t *testing.T) {
	d := &lb.DNS{Domain: "ams.test", List: func() ([]lb.Server, bool) { return nil, true }}
	good := query(t, "edge.ams.test.", dnsmessage.TypeA, 0)
	answer := slices.Clone(good)
	answer[2] |= 0x80
	for name, q := range map[string][]byte{"empty": nil, "short": good[:11], "an answer": answer} {
		if b := d.Answer(q, largest(false)); b != nil {
			t.Errorf("%s: it is answered", name)
		}
	}
	update := slices.Clone(good)
	update[2] |= 5 << 3
	must.Equal(t, "another operation", ask(t, d, update, false).RCode, dnsmessage.RCodeNotImplemented)
	none := slices.Clone(good[:12])
	none[5] = 0
	must.Equal(t, "no question", ask(t, d, none, false).RCode, dnsmessage.RCodeFormatError)
}

func FuzzDNS(f *testing.F) {
	f.Add(query(f, "_http._tcp.edge.ams.test.", dnsmessage.TypeSRV, 4096))
	f.Add(query(f, "edge.ams.test.", dnsmessage.TypeA, 0))
	list := []lb.Server{{ID: "e1", Role: "edge", Addr: netip.MustParseAddr("10.0.0.1"), Port: 5080, Weight: 100}}
	d := &lb.DNS{Domain: "ams.test", List: func() ([]lb.Server, bool) { return list, true }}
	f.Fuzz(func(t *testing.T, q []byte) {
		b := d.Answer(q, largest(false))
		var m dnsmessage.Message
		if b != nil && (m.Unpack(b) != nil || len(b) > max(512, 20*len(q))) {
			t.Errorf("%d bytes for %d", len(b), len(q))
		}
	})
}

// By UDP and by TCP, several queries on one connection.
func TestDNSServe(t *testing.T) {
	list := []lb.Server{{ID: "e1", Role: "edge", Addr: netip.MustParseAddr("10.0.0.1"), Port: 5080, Weight: 100}}
	d := &lb.DNS{Domain: "ams.test", List: func() ([]lb.Server, bool) { return list, true }, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	addr := make(chan string, 1)
	ended := make(chan error, 1)
	go func() { ended <- d.Serve(ctx, "127.0.0.1:0", func(a net.Addr) { addr <- a.String() }) }()
	var at string
	select {
	case at = <-addr:
	case err := <-ended:
		t.Fatal(err)
	}
	// Connections that send nothing keep no others out: the oldest ones are closed, the newest are not.
	var silent []net.Conn
	for range 100 {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "tcp", at)
		must.OK(t, err)
		defer conn.Close()
		silent = append(silent, conn)
	}
	_, err := silent[0].Read(make([]byte, 1))
	must.Equal(t, "the oldest", err, io.EOF)
	must.OK(t, silent[99].SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	_, err = silent[99].Read(make([]byte, 1))
	must.Equal(t, "the newest is open", errors.Is(err, os.ErrDeadlineExceeded), true)
	for _, network := range []string{"udp", "tcp"} {
		r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, network, at)
		}}
		for range 3 {
			hosts, err := r.LookupHost(t.Context(), "edge.ams.test.")
			if err != nil || strings.Join(hosts, " ") != "10.0.0.1" {
				t.Errorf("%s: %v, %v", network, hosts, err)
			}
			_, srv, err := r.LookupSRV(t.Context(), "http", "tcp", "edge.ams.test.")
			if err != nil || len(srv) != 1 || *srv[0] != (net.SRV{Target: "10-0-0-1.node.ams.test.", Port: 5080, Weight: 65500}) {
				t.Errorf("%s: %+v, %v", network, srv, err)
			}
		}
	}
	cancel()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("it does not end")
	}
}
