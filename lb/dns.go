// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/amsagent/amsagent/internal/bounded"
)

const (
	// ttl is in seconds.
	ttl = 1
	// plainUDP is the answer size for a client that announces none, remoteUDP the largest for another machine.
	plainUDP, remoteUDP = 512, 1232
	// dnsIdle bounds the idle time of a TCP connection.
	dnsIdle = 10 * time.Second
	// weightUnit makes one percent: HAProxy divides a weight by 256, and nginx uses it as it is.
	weightUnit = 655

	rtmpPort = 1935
)

// NodeLabel is the label above the names of single nodes, and so no role.
const NodeLabel = "node"

// DNS answers queries below one domain from a list of servers:
//
//	ROLE.DOMAIN               A, AAAA   the addresses of the role
//	_http._tcp.ROLE.DOMAIN    SRV       its HTTP ports, with weights
//	_rtmp._tcp.ROLE.DOMAIN    SRV       the RTMP port, with weights
//	ADDRESS.node.DOMAIN       A, AAAA   the target of an SRV record: 10-0-1-11.node.DOMAIN
//
// A known role without servers gets SERVFAIL: after an empty answer, nginx drops all servers. A name with such names below it has
// an empty answer (RFC 8020). The role "node" has no names.
type DNS struct {
	// Domain has no leading or trailing dot.
	Domain string
	// Roles are known also without a server.
	Roles []string
	// List returns the servers, or false if empty. It returns the same slice until the list changes.
	List func() ([]Server, bool)
	// Log gets the errors of connections that were not accepted.
	Log *slog.Logger

	mu     sync.Mutex
	of     []Server
	recent map[string][]byte // large answers from the list of, by the query without its id
}

// Serve answers by UDP and TCP on addr until ctx ends. It calls bound with the address in use.
func (d *DNS) Serve(ctx context.Context, addr string, bound func(net.Addr)) error {
	var listen net.ListenConfig
	tcp, err := listen.Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(tcp.Addr().String())))
	if err != nil {
		return errors.Join(err, tcp.Close())
	}
	bound(tcp.Addr())
	stop := context.AfterFunc(ctx, func() { _, _ = udp.Close(), tcp.Close() })
	defer stop()
	var work sync.WaitGroup
	work.Go(func() { d.serveUDP(udp) })
	work.Go(func() { d.serveTCP(ctx, bounded.New(tcp, bounded.Logged(d.Log))) })
	work.Wait()
	return ctx.Err()
}

func (d *DNS) serveUDP(conn *net.UDPConn) {
	buf := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		if answer := d.Answer(buf[:n], largest(from)); answer != nil {
			_, _ = conn.WriteToUDPAddrPort(answer, from)
		}
	}
}

// largest returns the largest answer's size. Another machine may forge its address: it gets no answer much larger than a
// query.
func largest(client netip.AddrPort) int {
	if client.Addr().Unmap().IsLoopback() {
		return maxMessage
	}
	return remoteUDP
}

func (d *DNS) serveTCP(ctx context.Context, l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			d.serveConn(conn)
		}()
	}
}

// serveConn follows RFC 7766.
func (d *DNS) serveConn(conn net.Conn) {
	defer conn.Close()
	for {
		_ = conn.SetDeadline(time.Now().Add(dnsIdle))
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		answer := d.Answer(query, 0)
		if answer == nil {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// maxRecent bounds the kept large answers: a load balancer repeats few queries many times a second.
const maxRecent = 16

// Answer returns nil for a message that is no query. udp is the size of the largest answer by UDP; 0 means TCP.
func (d *DNS) Answer(query []byte, udp int) []byte {
	list, known := d.List()
	key := fmt.Sprint(udp) + string(query[min(2, len(query)):])
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(list) != len(d.of) || len(list) > 0 && &list[0] != &d.of[0] {
		d.of, d.recent = list, map[string][]byte{}
	}
	if answer := d.recent[key]; answer != nil {
		return append(bytes.Clone(query[:2]), answer[2:]...)
	}
	answer := d.answer(query, udp, list, known)
	if len(answer) > remoteUDP && len(d.recent) < maxRecent {
		d.recent[key] = answer
	}
	return answer
}

func (d *DNS) answer(query []byte, udp int, list []Server, known bool) []byte {
	var p dnsmessage.Parser
	header, err := p.Start(query)
	if err != nil || header.Response {
		return nil
	}
	reply := dnsmessage.Header{
		ID: header.ID, Response: true, OpCode: header.OpCode, RecursionDesired: header.RecursionDesired, Authoritative: true,
	}
	questions, err := p.AllQuestions()
	if err != nil || len(questions) != 1 {
		reply.RCode = dnsmessage.RCodeFormatError
		return pack(reply, reply.RCode, nil, nil, nil, nil, maxMessage, false)
	}
	if header.OpCode != 0 {
		reply.RCode = dnsmessage.RCodeNotImplemented
		return pack(reply, reply.RCode, questions, nil, nil, nil, maxMessage, false)
	}
	size, edns, version := udpSize(&p)
	if size = min(size, udp); udp == 0 {
		size = maxMessage
	}
	if version > 0 {
		return pack(reply, badVersion, questions, nil, nil, nil, size, edns)
	}
	answers, additional, code := d.resolve(questions[0], list, known)
	var authority []dnsmessage.Resource
	if len(answers) == 0 && (code == dnsmessage.RCodeSuccess || code == dnsmessage.RCodeNameError) {
		authority = d.authority()
	}
	return pack(reply, code, questions, answers, authority, additional, size, edns)
}

// badVersion is BADVERS of RFC 6891, whose upper bits are in the OPT record.
const badVersion dnsmessage.RCode = 16

// authority has the SOA record of the domain, which bounds how long a resolver keeps a negative answer (RFC 2308).
func (d *DNS) authority() []dnsmessage.Resource {
	domain, err := dnsmessage.NewName(d.Domain + ".")
	if err != nil {
		return nil
	}
	return []dnsmessage.Resource{resource(domain, dnsmessage.TypeSOA, &dnsmessage.SOAResource{
		NS: domain, MBox: domain, Serial: 1, Refresh: ttl, Retry: ttl, Expire: ttl, MinTTL: ttl,
	})}
}

// maxMessage is in bytes.
const maxMessage = 1<<16 - 1

// udpSize returns the largest answer that the client accepts by UDP, and its version of EDNS.
func udpSize(p *dnsmessage.Parser) (size int, edns bool, version byte) {
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return plainUDP, false, 0
	}
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return plainUDP, false, 0
		}
		if h.Type == dnsmessage.TypeOPT {
			return max(plainUDP, int(h.Class)), true, byte(h.TTL >> 16)
		}
		if p.SkipAdditional() != nil {
			return plainUDP, false, 0
		}
	}
}

// pack drops the additional records if they do not fit, then all answers: a client would treat a part of the list as the
// whole. It returns nil for an invalid name.
func pack(h dnsmessage.Header, code dnsmessage.RCode, question []dnsmessage.Question, answers, authority, additional []dnsmessage.Resource, size int, edns bool) []byte {
	var end []dnsmessage.Resource
	var opt dnsmessage.ResourceHeader
	h.RCode = code & 0xf
	if edns && opt.SetEDNS0(maxMessage, code, false) == nil {
		end = append(end, dnsmessage.Resource{Header: opt, Body: &dnsmessage.OPTResource{}})
	}
	m := dnsmessage.Message{Header: h, Questions: question, Answers: answers, Authorities: authority}
	for _, extra := range [][]dnsmessage.Resource{additional, nil} {
		m.Additionals = slices.Concat(extra, end)
		if b, err := m.Pack(); err == nil && len(b) <= size {
			return b
		}
	}
	m.Truncated, m.Answers, m.Authorities = true, nil, nil
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

func (d *DNS) resolve(q dnsmessage.Question, list []Server, known bool) (answers, additional []dnsmessage.Resource, code dnsmessage.RCode) {
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	if q.Class != dnsmessage.ClassINET {
		return nil, nil, dnsmessage.RCodeRefused
	}
	if name == strings.ToLower(d.Domain) {
		if q.Type == dnsmessage.TypeSOA {
			answers = d.authority()
		}
		return answers, nil, dnsmessage.RCodeSuccess
	}
	labels, ok := strings.CutSuffix(name, "."+strings.ToLower(d.Domain))
	if !ok {
		return nil, nil, dnsmessage.RCodeRefused
	}
	if !known {
		return nil, nil, dnsmessage.RCodeServerFailure
	}
	if label, ok := strings.CutSuffix(labels, "."+NodeLabel); ok && !strings.HasPrefix(label, "_") {
		return node(list, label, q)
	}
	service, role := "", labels
	for _, prefix := range []string{"_http._tcp.", "_rtmp._tcp."} {
		if rest, ok := strings.CutPrefix(labels, prefix); ok {
			service, role = prefix, rest
		}
	}
	var servers []Server
	if role != NodeLabel {
		servers = ofRole(list, role)
	}
	if len(servers) == 0 {
		switch {
		case slices.ContainsFunc(d.Roles, func(r string) bool { return strings.EqualFold(r, role) }):
			return nil, nil, dnsmessage.RCodeServerFailure
		case labels == NodeLabel, slices.ContainsFunc(append(Roles(list), d.Roles...), func(r string) bool {
			return strings.HasSuffix("._tcp."+strings.ToLower(r), "."+labels)
		}):
			return nil, nil, dnsmessage.RCodeSuccess
		}
		return nil, nil, dnsmessage.RCodeNameError
	}
	if service == "" {
		return addresses(servers, q), nil, dnsmessage.RCodeSuccess
	}
	if q.Type != dnsmessage.TypeSRV && q.Type != dnsmessage.TypeALL {
		return nil, nil, dnsmessage.RCodeSuccess
	}
	for _, s := range servers {
		target, err := dnsmessage.NewName(addressLabel(s.Addr) + ".node." + d.Domain + ".")
		if err != nil {
			return nil, nil, dnsmessage.RCodeServerFailure
		}
		port := s.Port
		if service == "_rtmp._tcp." {
			port = rtmpPort
		}
		answers = append(answers, resource(q.Name, dnsmessage.TypeSRV, &dnsmessage.SRVResource{Weight: uint16(s.Weight * weightUnit), Port: uint16(port), Target: target}))
		additional = append(additional, address(target, s.Addr))
	}
	return answers, additional, dnsmessage.RCodeSuccess
}

// node answers for one server.
func node(list []Server, label string, q dnsmessage.Question) (answers, additional []dnsmessage.Resource, code dnsmessage.RCode) {
	addr, err := netip.ParseAddr(strings.ReplaceAll(label, "-", "."))
	if err != nil {
		addr, err = netip.ParseAddr(strings.ReplaceAll(label, "-", ":"))
	}
	i := slices.IndexFunc(list, func(s Server) bool { return s.Addr == addr })
	if err != nil || i < 0 {
		return nil, nil, dnsmessage.RCodeNameError
	}
	return addresses(list[i:i+1], q), nil, dnsmessage.RCodeSuccess
}

func addresses(servers []Server, q dnsmessage.Question) (answers []dnsmessage.Resource) {
	for _, s := range servers {
		if r := address(q.Name, s.Addr); q.Type == dnsmessage.TypeALL || r.Header.Type == q.Type {
			answers = append(answers, r)
		}
	}
	return answers
}

func address(name dnsmessage.Name, a netip.Addr) dnsmessage.Resource {
	if a.Is4() {
		return resource(name, dnsmessage.TypeA, &dnsmessage.AResource{A: a.As4()})
	}
	return resource(name, dnsmessage.TypeAAAA, &dnsmessage.AAAAResource{AAAA: a.As16()})
}

func resource(name dnsmessage.Name, kind dnsmessage.Type, body dnsmessage.ResourceBody) dnsmessage.Resource {
	return dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: name, Type: kind, Class: dnsmessage.ClassINET, TTL: ttl}, Body: body}
}

// addressLabel returns 10-0-1-11 or fd00--1.
func addressLabel(a netip.Addr) string {
	return strings.Map(func(r rune) rune {
		if r == '.' || r == ':' {
			return '-'
		}
		return r
	}, a.String())
}
