// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
)

const (
	dnsNodes   = 500
	dnsRate    = 1000 // queries a second
	dnsSeconds = 20
	// bareAddress is the address of the child that answers without looking.
	bareAddress = "BENCH_BARE_ANSWERS"
)

// BenchmarkBalanceDNSRatio compares `balance`, with 500 nodes that heartbeat and 1,000 queries a second, with a program that
// returns each query: 20 queries are for all nodes, as two HAProxys with the example send, the others for the address of one, as
// nginx sends. The bounds are 24 MiB and twice the bare program, which takes 5.8 % of a core for waking up.
func BenchmarkBalanceDNSRatio(b *testing.B) {
	c, _ := connect(b, 64)
	for i := range dnsNodes {
		_, err := c.Register(b.Context(), member(i), cluster.RegisterOptions{})
		must.OK(b, err)
	}
	ctx, stop := context.WithCancel(b.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	work.Go(func() {
		tick := time.NewTicker(cluster.DefaultInterval / dnsNodes)
		defer tick.Stop()
		for i := 0; ctx.Err() == nil; i++ {
			_ = c.Heartbeat(ctx, member(i%dnsNodes), beat(int64(i/dnsNodes+1)))
			<-tick.C
		}
	})
	all := query(b, "_http._tcp.edge.ams.internal.", dnsmessage.TypeSRV)
	bare, addr := freeUDP(b), freeUDP(b)
	child := exec.Command(os.Args[0], "-test.run=^TestBareAnswers$")
	child.Env = append(os.Environ(), bareAddress+"="+bare)
	balance := exec.Command(buildAgent(b), "balance", "--mongo", c.Target().Raw().Reveal(), "--state-dir", b.TempDir(), "--dns", addr, "--domain", "ams.internal")
	for b.Loop() {
		least := askMany(b, child, bare, all, len(all))
		most := askMany(b, balance, addr, all, 20*dnsNodes)
		b.ReportMetric(100*most.CPU.Seconds()/dnsSeconds, "%-of-a-core")
		b.ReportMetric(most.CPU.Seconds()/least.CPU.Seconds(), "x-bare-answers")
		b.ReportMetric(float64(most.RSS)/(1<<20), "MiB-resident")
		b.ReportMetric(0, "ns/op")
	}
}

// askMany starts a program, waits for an answer of a size, asks it, and returns what that took of it.
func askMany(b *testing.B, cmd *exec.Cmd, addr string, all []byte, size int) proc.Usage {
	b.Helper()
	program := start(b, cmd)
	defer program.Signal(syscall.SIGKILL)
	conn, err := net.Dial("udp", addr)
	must.OK(b, err)
	defer conn.Close()
	buf := make([]byte, 1<<16)
	ask := func(q []byte) int {
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		_, _ = conn.Write(q)
		n, err := conn.Read(buf)
		if err != nil {
			return 0
		}
		return n
	}
	must.Until(b, "an answer", func() bool { return ask(all) >= size })
	before := usage(b, program)
	began, answers := time.Now(), 0
	for i := range dnsRate * dnsSeconds {
		q := all
		if i%50 != 0 {
			q = query(b, strings.ReplaceAll(member(i%dnsNodes).IP, ".", "-")+".node.ams.internal.", dnsmessage.TypeA)
		}
		pause(b, time.Until(began.Add(time.Duration(i)*time.Second/dnsRate)))
		if ask(q) > 0 {
			answers++
		}
	}
	after := usage(b, program)
	b.Logf("%d nodes, %.0f answers/s; load average %s", dnsNodes, float64(answers)/time.Since(began).Seconds(), proc.LoadAverage())
	after.CPU -= before.CPU
	return after
}

// TestBareAnswers is not a test: it is the program that returns each query.
func TestBareAnswers(t *testing.T) {
	addr := os.Getenv(bareAddress)
	if addr == "" {
		t.Skip("for BenchmarkBalanceDNSRatio")
	}
	conn, err := net.ListenPacket("udp", addr)
	must.OK(t, err)
	buf := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFrom(buf)
		must.OK(t, err)
		_, _ = conn.WriteTo(buf[:n], from)
	}
}

// query is one of HAProxy's: it takes the largest answers.
func query(b *testing.B, name string, kind dnsmessage.Type) []byte {
	b.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 1}, Questions: []dnsmessage.Question{
		{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET},
	}}
	var h dnsmessage.ResourceHeader
	must.OK(b, h.SetEDNS0(1<<16-1, dnsmessage.RCodeSuccess, false))
	m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
	packed, err := m.Pack()
	must.OK(b, err)
	return packed
}

// freeUDP returns an address of the loopback that no listener uses, by UDP and TCP.
func freeUDP(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.OK(b, err)
	defer l.Close()
	return l.Addr().String()
}
