// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realams"
)

// TestRealBalance runs two real servers behind HAProxy, configured by its socket, and behind nginx, configured by DNS. Encoders and
// players connect through both. One node drains, stops, joins again and gets new sessions: no encoder is cut, and no player has
// errors for longer than a segment.
//
// Before that, MongoDB is away for a minute: HAProxy refuses no client, and no frame of an encoder is lost.
//
// The Community Edition does not forward streams: one encoder writes the players' stream into the folders of both servers.
func TestRealBalance(t *testing.T) {
	t.Parallel()
	w := realams.New(t, realams.Options{Users: map[string]string{realUser: realPassword}})
	var nodes []*realNode
	var daemons []*realDaemon
	for range 2 {
		n := newRealNode(t, w, realRelease())
		n.AllowAgent(t)
		n.join(w.URI(), "--role", "origin")
		n.WaitServed(t, realApps(n.Release)...)
		nodes, daemons = append(nodes, n), append(daemons, n.daemon())
	}
	first, second := nodes[0], nodes[1]
	for _, d := range daemons {
		d.ready()
	}

	b := newBalancers(t, w.URI(), true)
	b.prefix = []string{"nsenter", "--target", strconv.Itoa(w.Network()), "--net"}
	b.haproxy(bySocket, "haproxy-slots.cfg")
	b.balance("lb", fronts[byDNS])
	b.nginx(byNginx, func(s string) string { return s })

	show := []string{"ffmpeg", "-nostdin", "-loglevel", "error", "-re", "-f", "lavfi", "-i", "testsrc=size=160x120:rate=5"}
	for _, n := range nodes {
		n.MustRun(t, "mkdir", "-p", realams.Home+"/webapps/LiveApp/streams")
		show = append(show, "-c:v", "libx264", "-preset", "ultrafast", "-g", "10", "-threads", "1", "-pix_fmt", "yuv420p", "-f", "hls", "-hls_time", "2",
			"-hls_flags", "delete_segments+temp_file", n.Path(realams.Home+"/webapps/LiveApp/streams/show.m3u8"))
	}
	b.prefix = nil
	b.command(show...)

	players := map[string]*realams.Player{}
	for _, way := range []string{bySocket, byNginx} {
		p := &realams.Player{Client: w.HTTP(5 * time.Second), Playlist: "http://" + fronts[way] + "/LiveApp/streams/show.m3u8"}
		must.Until(t, "a player of "+way+" sees the stream", func() bool { return p.Segment(t.Context()) == nil })
		players[way] = p
	}
	publish := func(way, stream string) *realams.Process {
		return w.Start(t, "ffmpeg", "-nostdin", "-loglevel", "error", "-re", "-f", "lavfi", "-i", "testsrc=size=160x120:rate=5", "-f", "lavfi", "-i",
			"sine=sample_rate=22050", "-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-g", "10", "-threads", "1", "-pix_fmt", "yuv420p",
			"-c:a", "aac", "-b:a", "32k", "-f", "flv", "rtmp://"+fronts[way]+"/LiveApp/"+stream)
	}
	published := func(n *realNode) int {
		v, err := viewAt(n.Path("/run/amsagent/control.sock"))
		if err != nil || v.Sessions.Publishers == nil {
			return -1
		}
		return *v.Sessions.Publishers
	}
	encoders := []*realams.Process{publish(bySocket, "one"), publish(byNginx, "two")}
	until(t, "both encoders publish", func() string {
		if a, b := published(first), published(second); a < 0 || b < 0 || a+b != len(encoders) {
			return fmt.Sprintf("%d and %d; %s %s", a, b, encoders[0].Output(), encoders[1].Output())
		}
		return ""
	})

	leaves, stays := first, second
	if published(first) == 0 {
		leaves, stays = second, first
	}
	leaves.outage(t, nodes, encoders)

	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	for _, p := range players {
		work.Go(func() { p.Run(ctx) })
	}

	before := published(stays)
	drain := leaves.Start(t, bins.agent, "drain", "--reason", "test", "--deadline", "5m")
	until(t, "the balancer has acted", func() string {
		out, _ := leaves.Run(t, bins.agent, "status")
		if !strings.Contains(out, "lb") {
			return out
		}
		return ""
	})
	wait(3 * time.Second) // nginx asks once a second, and again if the answer is late
	encoders = append(encoders, publish(bySocket, "three"), publish(byNginx, "four"))
	until(t, "new encoders go to the other node", func() string {
		if n := published(stays); n != before+2 {
			return fmt.Sprintf("%d", n)
		}
		return ""
	})
	uncut(t, encoders)
	select {
	case <-drain.Done():
		t.Fatalf("the drain did not wait for its encoders:\n%s", drain.Output())
	default:
	}
	for _, e := range encoders[:2] {
		e.Signal(syscall.SIGTERM)
	}
	if code, err := drain.Wait(2 * time.Minute); err != nil || code != 0 || strings.Contains(drain.Output(), "cut") {
		t.Fatalf("drain: exit %d, %v\n%s", code, err, drain.Output())
	}

	leaves.join(w.URI(), "--role", "origin")
	leaves.WaitServed(t, realApps(leaves.Release)...)
	tries := 0
	until(t, "it gets new sessions", func() string {
		tries++ // a name of its own: the server refuses one that it still takes for published
		e := publish(bySocket, fmt.Sprintf("again%d", tries))
		defer func() { _, _ = e.Stop(10 * time.Second) }()
		until(t, "it is published", func() string {
			if published(first)+published(second) <= len(encoders)-2 {
				return e.Output()
			}
			return ""
		})
		if published(leaves) == 0 {
			return "not yet"
		}
		return ""
	})
	wait(10 * time.Second)
	stop()
	work.Wait()
	for way, p := range players {
		met := p.Met()
		figure(t, "behind %s, a player got %d segments, the slowest after %s; %d answers failed, in a row for at most %s",
			way, met.Segments, met.Slowest.Round(10*time.Millisecond), met.Failed, met.Longest.Round(10*time.Millisecond))
		if met.Longest > 2*time.Second || met.Segments == 0 {
			t.Errorf("behind %s, a player met errors for %s, such as %v", way, met.Longest, met.Last)
		}
	}
	uncut(t, encoders[2:])
	first.differsFrom(second)
	for _, d := range daemons {
		d.end()
	}
}

// uncut looks that no encoder has ended.
func uncut(t *testing.T, encoders []*realams.Process) {
	t.Helper()
	for i, e := range encoders {
		select {
		case <-e.Done():
			t.Errorf("encoder %d was cut: %s", i+1, e.Output())
		default:
		}
	}
}

// differsFrom changes a setting of the other node, as an operator does in the panel of one: `nodes` and doctor report it. Before,
// two nodes with the same settings are equal, whatever their servers have written.
func (n *realNode) differsFrom(other *realNode) {
	t := n.t
	t.Helper()
	if said := n.MustRun(t, bins.agent, "nodes"); strings.Contains(said, "AMS-UNEQUAL") {
		t.Errorf("equal nodes:\n%s", said)
	}
	other.MustRun(t, "sh", "-c", `printf '\nsettings.hlsListSize=77\n' >>"$1"`, "sh", realams.Home+"/webapps/LiveApp/WEB-INF/red5-web.properties")
	until(t, "nodes reports other settings", func() string {
		if said := n.MustRun(t, bins.agent, "nodes"); !strings.Contains(said, " differ from other nodes of role origin in the server's settings") {
			return said
		}
		return ""
	})
	said, _ := n.Run(t, bins.agent, "doctor")
	must.Contain(t, "doctor", said, "AMS-UNEQUAL")
}

// videoFrame is a line of ffmpeg's framehash: the stream, and the frame's time in ms.
var videoFrame = regexp.MustCompile(`(?m)^0, +([0-9]+),`)

// outage kills MongoDB for a minute. n has the stream "one", or "two".
func (n *realNode) outage(t *testing.T, nodes []*realNode, encoders []*realams.Process) {
	t.Helper()
	w := n.world
	var viewer *realams.Process
	frames := func() (times []int) {
		for _, m := range videoFrame.FindAllStringSubmatch(viewer.Output(), -1) {
			at, err := strconv.Atoi(m[1])
			must.OK(t, err)
			times = append(times, at)
		}
		return times
	}
	until(t, "a viewer by RTMP gets frames", func() string {
		for _, stream := range []string{"one", "two"} {
			viewer = w.Start(t, "ffmpeg", "-nostdin", "-loglevel", "error", "-i", "rtmp://"+n.Address+"/LiveApp/"+stream, "-map", "0:v", "-c", "copy", "-f", "framehash", "-")
			for began := time.Now(); time.Since(began) < 10*time.Second; wait(200 * time.Millisecond) {
				if len(frames()) > 0 {
					return ""
				}
			}
			_, _ = viewer.Stop(10 * time.Second)
		}
		return viewer.Output()
	})

	const path = "/LiveApp/streams/show.m3u8"
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	// first asks each 100 ms, and returns when the first playlist came.
	first := func(host string) <-chan time.Time {
		came := make(chan time.Time, 1)
		go func() {
			p := &realams.Player{Client: w.HTTP(time.Second), Playlist: "http://" + host + path}
			for ctx.Err() == nil {
				if p.Segment(ctx) == nil {
					came <- time.Now()
					return
				}
				wait(100 * time.Millisecond)
			}
		}()
		return came
	}
	must.OK(t, w.Mongo.Member(0).Kill())
	answers := map[int]int{}
	client := w.HTTP(30 * time.Second)
	for began := time.Now(); time.Since(began) < time.Minute; wait(200 * time.Millisecond) {
		answers[realams.Status(client, "http://"+fronts[bySocket]+path)]++
	}
	figure(t, "with MongoDB away for a minute, HAProxy's answers are %v; %d frames came by RTMP", answers, len(frames()))
	if answers[http.StatusServiceUnavailable] > 0 {
		t.Error("HAProxy refused requests")
	}
	must.OK(t, w.Mongo.Member(0).Start(t.Context()))
	byBalancer, own := first(fronts[bySocket]), []<-chan time.Time{}
	for _, node := range nodes {
		own = append(own, first(node.Address+":5080"))
	}
	var last time.Time
	for _, came := range own {
		if at := <-came; at.After(last) {
			last = at
		}
	}
	late := (<-byBalancer).Sub(last)
	figure(t, "after MongoDB's return the first playlist comes by HAProxy %s after the servers' own", late.Round(10*time.Millisecond))
	if late > 2*time.Second {
		t.Error("the balancer is late")
	}
	for _, node := range nodes {
		node.WaitServed(t, realApps(node.Release)...)
	}
	times := frames()
	for i := range times[1:] {
		if lost := times[i+1] - times[i]; lost > 300 {
			t.Errorf("no frame by RTMP between %d and %d ms", times[i], times[i+1])
		}
	}
	if span := time.Duration(times[len(times)-1]-times[0]) * time.Millisecond; span < time.Minute {
		t.Errorf("frames for %s only", span)
	}
	uncut(t, encoders)
	_, _ = viewer.Stop(10 * time.Second)
}
