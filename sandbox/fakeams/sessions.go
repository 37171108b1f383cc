// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// ViewerKind is how a viewer watches.
type ViewerKind string

// The kinds. The server's statistics count all but RTMP.
const (
	WebRTC ViewerKind = "webrtc"
	HLS    ViewerKind = "hls"
	DASH   ViewerKind = "dash"
	RTMP   ViewerKind = "rtmp"
)

// viewerFields are where a broadcast document counts them.
var viewerFields = map[ViewerKind]string{
	WebRTC: "webRTCViewerCount", HLS: "hlsViewerCount", DASH: "dashViewerCount", RTMP: "rtmpViewerCount",
}

// Viewers are some who watch one stream on this node. The stream need not be
// published here: on an edge it is not.
type Viewers struct {
	App    string     `json:"app"`
	Stream string     `json:"stream"`
	Kind   ViewerKind `json:"kind"` // default webrtc
	N      int        `json:"n"`    // default 1
	// Connect opens a real connection to the HTTP port for each, and From is the
	// address it comes from; default: whatever the machine chooses.
	Connect bool   `json:"connect,omitempty"`
	From    string `json:"from,omitempty"`
}

type audience struct {
	app, stream string
	kind        ViewerKind
}

// Counts are sessions.
type Counts struct {
	Publishers int `json:"publishers"`
	Viewers    int `json:"viewers"`
}

func (c Counts) plus(o Counts) Counts {
	return Counts{c.Publishers + o.Publishers, c.Viewers + o.Viewers}
}

// Stats are the sessions of one life of a server: Served = Live + Left + Cut.
type Stats struct {
	State  State  `json:"state"`
	Live   Counts `json:"live"`
	Served Counts `json:"served"` // that ever began
	Left   Counts `json:"left"`   // that ended by themselves
	Cut    Counts `json:"cut"`    // that a stop, a crash or a kill ended
}

// Killed is the state of a server that had no time to say how it ended.
const Killed State = "killed"

// ReadStats reads what a server that has ended left in the file of
// [Options.Stats]. One that was killed could not write its end: what was live
// then was cut.
func ReadStats(file string) (Stats, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Stats{}, fmt.Errorf("reading the count of sessions: %w", err)
	}
	var st Stats
	if err := json.Unmarshal(b, &st); err != nil {
		return Stats{}, fmt.Errorf("reading the count of sessions from %s: %w", file, err)
	}
	if st.State != Stopped && st.State != Crashed {
		st.State = Killed
		st.Cut, st.Live = st.Cut.plus(st.Live), Counts{}
	}
	return st, nil
}

// Stats counts the sessions until now.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.statsLocked()
}

func (s *Server) statsLocked() Stats {
	st := s.stats
	st.State, st.Live = s.state, s.liveLocked()
	return st
}

// liveLocked returns the present sessions: none after a cut.
func (s *Server) liveLocked() Counts {
	if s.cut {
		return Counts{}
	}
	c := Counts{Publishers: len(s.streams), Viewers: len(s.watching)}
	for _, st := range s.streams {
		c.Viewers += int(st.WebRTC + st.HLS + st.DASH + st.RTMP)
	}
	for _, n := range s.viewers {
		c.Viewers += n
	}
	return c
}

// change lets sessions begin and end, and counts them. It returns false, and does
// nothing, when the server takes no sessions any more.
func (s *Server) change(do func()) bool {
	s.mu.Lock()
	if s.cut || s.state != Starting && s.state != Up {
		s.mu.Unlock()
		return false
	}
	before := s.liveLocked()
	do()
	after := s.liveLocked()
	s.stats.Served = s.stats.Served.plus(Counts{max(after.Publishers-before.Publishers, 0), max(after.Viewers-before.Viewers, 0)})
	s.stats.Left = s.stats.Left.plus(Counts{max(before.Publishers-after.Publishers, 0), max(before.Viewers-after.Viewers, 0)})
	s.mu.Unlock()
	s.writeStats()
	return true
}

// leave is change for sessions that end. While the server stops, before it cuts,
// they still end by themselves.
func (s *Server) leave(do func()) {
	s.mu.Lock()
	before := s.liveLocked()
	do()
	after := s.liveLocked()
	s.stats.Left = s.stats.Left.plus(Counts{before.Publishers - after.Publishers, before.Viewers - after.Viewers})
	s.mu.Unlock()
	s.writeStats()
}

// cutAll ends every session at once, as the server does when it stops.
func (s *Server) cutAll() {
	s.mu.Lock()
	s.stats.Cut = s.stats.Cut.plus(s.liveLocked())
	s.cut = true
	watching := s.watching
	s.watching = nil
	s.mu.Unlock()
	for w := range watching {
		_ = w.conn.Close()
	}
	s.writeStats()
}

// writeStats keeps the file true: a server that is killed cannot do it then.
func (s *Server) writeStats() {
	if s.o.Stats == "" {
		return
	}
	s.statsFile.Lock()
	defer s.statsFile.Unlock()
	b, err := json.MarshalIndent(s.Stats(), "", "  ")
	if err == nil {
		err = os.WriteFile(s.o.Stats+".new", append(b, '\n'), 0o644)
	}
	if err == nil {
		err = os.Rename(s.o.Stats+".new", s.o.Stats)
	}
	if err != nil {
		s.log.Error("the count of sessions could not be written", "error", err)
	}
}

func (v *Viewers) check() error {
	if v.Kind == "" {
		v.Kind = WebRTC
	}
	if v.N == 0 {
		v.N = 1
	}
	switch {
	case viewerFields[v.Kind] == "":
		return fmt.Errorf("viewers: no kind %q (webrtc, hls, dash, rtmp)", v.Kind)
	case v.N < 0:
		return fmt.Errorf("viewers: %d of them", v.N)
	case v.Stream == "":
		return errors.New("viewers: of no stream")
	}
	return nil
}

// AddViewers lets viewers come.
func (s *Server) AddViewers(ctx context.Context, v Viewers) error {
	if err := v.check(); err != nil {
		return err
	}
	rt, ok := s.app(v.App)
	switch {
	case !ok:
		return fmt.Errorf("viewers: no application %q", v.App)
	case s.State() != Up:
		return errors.New("viewers: the server is not up")
	}
	if err := s.awaitServing(ctx, v.App); err != nil {
		return err
	}
	if v.Connect {
		for range v.N {
			if err := s.watch(ctx, v); err != nil {
				return fmt.Errorf("a viewer: %w", err)
			}
		}
		return nil
	}
	if !s.change(func() { s.viewers[audience{v.App, v.Stream, v.Kind}] += v.N }) {
		return errors.New("viewers: the server is not up")
	}
	return s.countViewers(ctx, rt, v.Stream, v.Kind, v.N)
}

// awaitServing waits for an application that is still in its start: a viewer who
// is refused tries again.
func (s *Server) awaitServing(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, servingWait+time.Duration(len(s.in.apps))*s.o.AppStart)
	defer cancel()
	for {
		rt, ok := s.app(name)
		switch {
		case !ok:
			return fmt.Errorf("viewers: no application %q", name)
		case rt.state == AppServing:
			return nil
		case s.State() != Up:
			return errors.New("viewers: the server is not up")
		case !wait(ctx, 5*time.Millisecond):
			return fmt.Errorf("viewers: application %q does not serve, it is %s", name, rt.state)
		}
	}
}

// servingWait is how long viewers try.
const servingWait = time.Second

// RemoveViewers lets viewers go, all of that kind if n is 0: first those without a
// connection.
func (s *Server) RemoveViewers(ctx context.Context, v Viewers) error {
	all := v.N == 0
	if err := v.check(); err != nil {
		return err
	}
	rt, ok := s.app(v.App)
	if !ok {
		return fmt.Errorf("viewers: no application %q", v.App)
	}
	of := audience{v.App, v.Stream, v.Kind}
	var gone []*watcher
	counted, there := 0, 0
	s.leave(func() {
		for w := range s.watching {
			if w.of == of {
				gone = append(gone, w)
			}
		}
		there = s.viewers[of] + len(gone)
		if all {
			v.N = there
		}
		if there < v.N || s.cut {
			gone = nil
			return
		}
		counted = min(v.N, s.viewers[of])
		if s.viewers[of] -= counted; s.viewers[of] == 0 {
			delete(s.viewers, of)
		}
		gone = gone[:v.N-counted]
		for _, w := range gone {
			delete(s.watching, w)
		}
	})
	if there < v.N || there == 0 {
		return fmt.Errorf("viewers: %q in application %q has %d of kind %s", v.Stream, v.App, there, v.Kind)
	}
	for _, w := range gone {
		_ = w.conn.Close()
	}
	return s.countViewers(ctx, rt, v.Stream, v.Kind, -counted-len(gone))
}

// countViewers adds to the number in the stream's document, wherever it is
// published: that number is the cluster's.
func (s *Server) countViewers(ctx context.Context, rt appRuntime, stream string, kind ViewerKind, n int) error {
	if rt.client == nil || n == 0 {
		return nil
	}
	_, err := rt.broadcasts().UpdateOne(ctx, bson.M{"streamId": stream}, bson.M{"$inc": bson.M{viewerFields[kind]: int32(n)}})
	if err != nil {
		return fmt.Errorf("counting viewers: %w", err)
	}
	return nil
}

// watcher is a viewer with a connection.
type watcher struct {
	of   audience
	conn net.Conn
}

// play serves a viewer that came over the network: GET /APP/play/STREAM?kind=hls
// is a stream of nothing until one side hangs up. The path is the stand-in's own.
func (s *Server) play(w http.ResponseWriter, r *http.Request, rt appRuntime) {
	v := Viewers{App: rt.name, Stream: r.PathValue("stream"), Kind: ViewerKind(r.URL.Query().Get("kind"))}
	if err := v.check(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	me := &watcher{audience{v.App, v.Stream, v.Kind}, conn}
	if !s.change(func() { s.watching[me] = struct{}{} }) {
		return
	}
	// Count before the answer, so that a client that reads the first line is counted.
	_, err = io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/octet-stream\r\n\r\n")
	s.noteViewers(rt, me.of, 1)
	if err == nil {
		_, _ = io.Copy(io.Discard, rw.Reader)
	}
	removed := false
	s.leave(func() {
		_, removed = s.watching[me]
		delete(s.watching, me)
	})
	if removed {
		s.noteViewers(rt, me.of, -1)
	}
}

// noteViewers calls countViewers for a viewer without a caller that could take the error.
func (s *Server) noteViewers(rt appRuntime, of audience, n int) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := s.countViewers(ctx, rt, of.stream, of.kind, n); err != nil && s.State() == Up {
		s.log.Error("a viewer was not counted", "error", err)
	}
}

// watch is the other side of play, for those who have no player.
func (s *Server) watch(ctx context.Context, v Viewers) error {
	var d net.Dialer
	if v.From != "" {
		ip := net.ParseIP(v.From)
		if ip == nil {
			return fmt.Errorf("%q is no address to come from", v.From)
		}
		d.LocalAddr = &net.TCPAddr{IP: ip}
	}
	conn, err := d.DialContext(ctx, "tcp", s.HTTPAddr())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(conn, "GET /%s/play/%s?kind=%s HTTP/1.1\r\nHost: stand-in\r\n\r\n",
		url.PathEscape(v.App), url.PathEscape(v.Stream), url.QueryEscape(string(v.Kind)))
	r := bufio.NewReader(conn)
	var line string
	if err == nil {
		line, err = r.ReadString('\n')
	}
	if err == nil && !strings.Contains(line, " 200 ") {
		err = fmt.Errorf("the server says %q", strings.TrimSpace(line))
	}
	if err != nil {
		_ = conn.Close()
		return err
	}
	go func() { // until the server hangs up, which it does at its end at the latest
		_, _ = io.Copy(io.Discard, r)
		_ = conn.Close()
	}()
	return nil
}

// Audience lists the viewers that came by AddViewers or over the network, sorted.
func (s *Server) Audience() []Viewers {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cut {
		return []Viewers{}
	}
	counts := map[audience]int{}
	for of, n := range s.viewers {
		counts[of] += n
	}
	connected := map[audience]int{}
	for w := range s.watching {
		connected[w.of]++
	}
	list := []Viewers{}
	for _, part := range []struct {
		of      map[audience]int
		connect bool
	}{{counts, false}, {connected, true}} {
		for of, n := range part.of {
			list = append(list, Viewers{App: of.app, Stream: of.stream, Kind: of.kind, N: n, Connect: part.connect})
		}
	}
	slices.SortFunc(list, func(a, b Viewers) int {
		if c := strings.Compare(a.App+"\x00"+a.Stream+"\x00"+string(a.Kind), b.App+"\x00"+b.Stream+"\x00"+string(b.Kind)); c != 0 || a.Connect == b.Connect {
			return c
		}
		return map[bool]int{false: -1, true: 1}[a.Connect]
	})
	return list
}

// viewersOf counts the viewers of a kind, however they came.
func (s *Server) viewersOf(kind ViewerKind) int {
	n := 0
	for _, v := range s.Audience() {
		if v.Kind == kind {
			n += v.N
		}
	}
	for _, st := range s.Streams() {
		n += int(map[ViewerKind]int32{WebRTC: st.WebRTC, HLS: st.HLS, DASH: st.DASH, RTMP: st.RTMP}[kind])
	}
	return n
}
