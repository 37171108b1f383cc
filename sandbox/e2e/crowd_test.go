// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
	"github.com/amsagent/amsagent/sandbox/rig"
)

// TestDaemonCrowd lets 20,000 clients of 250 addresses connect to the HTTP port, send most
// of a request, and stay, as many as this process may open files for. They cost less than
// 16 MB, no beat, and no answer of a balancer that asks meanwhile.
func TestDaemonCrowd(t *testing.T) {
	const (
		crowd, hosts = 20000, 250
		most         = 16 << 20
	)
	var files unix.Rlimit
	must.OK(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &files))
	held := int(min(crowd, files.Cur/4*3)) // the rest is for everything else
	h := newOnAWS(t, newDatabase(t), "10.0.7.46")
	h.Config("mongo: file:/etc/amsagent/where\n")
	h.Write("etc/amsagent/where", h.Mongo.LoginURI()+"\n")
	p := h.Daemon()
	v := p.ViewIs("ready", func(v daemon.View) bool { return v.Ready })
	p.Beats()
	usage := func() proc.Usage {
		t.Helper()
		u, err := p.Usage()
		must.OK(t, err)
		return u
	}
	before, rows := usage(), h.Record()
	peak, slowest := before.RSS, time.Duration(0)
	request := "GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 4000)
	balancer := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	begin := time.Now()
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	quarter := int64(0) // the beat at the end of the first quarter
	// A daemon that is silent as long as they come must not pass by what it writes afterwards.
	for i := 0; i < crowd || h.Record().Seq < quarter+2; i++ {
		if i >= crowd && time.Since(begin) > patience {
			t.Fatalf("no two beats after the first %d of %d clients: %d", crowd/4, i, quarter)
		}
		if i == crowd/4 {
			quarter = h.Record().Seq
		}
		from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 9, 0, byte(1+i%hosts))}, Timeout: 5 * time.Second}
		c, err := from.DialContext(t.Context(), "tcp", v.Metrics)
		if err != nil {
			t.Fatalf("client %d: %v", i, err)
		}
		_, _ = c.Write([]byte(request)) // the daemon may have hung up
		if open = append(open, c); len(open) > held {
			_ = open[0].Close()
			open = open[1:]
		}
		if i%200 != 0 {
			continue
		}
		asked := time.Now()
		if body, code, err := rig.Fetch(t.Context(), &balancer, "http://"+v.Metrics+"/readyz"); err != nil || code != http.StatusOK {
			t.Errorf("/readyz among %d clients: %d %s %v", i, code, body, err)
		}
		slowest = max(slowest, time.Since(asked))
		peak = max(peak, usage().RSS)
	}
	took := time.Since(begin)
	peak = max(peak, usage().RSS)
	t.Logf("%d clients in %s: %.1f MiB more than %.1f; /readyz took at most %s",
		crowd, took.Round(time.Millisecond), float64(peak-before.RSS)/(1<<20), float64(before.RSS)/(1<<20), slowest.Round(time.Millisecond))
	if peak-before.RSS > most {
		t.Errorf("%d clients cost %d bytes, want at most %d", crowd, peak-before.RSS, most)
	}
	until(t, "the beats have gone on", func() string {
		n := h.Record()
		// One a second; the first and the last may lie outside.
		if want := rows.Seq + int64(took/time.Second) - 1; n.Seq < want {
			return fmt.Sprintf("beat %d, want %d", n.Seq, want)
		}
		return ""
	})
	if v := p.View(); v.Beat.Dropped != 0 {
		t.Errorf("%d beats were dropped", v.Beat.Dropped)
	}
}
