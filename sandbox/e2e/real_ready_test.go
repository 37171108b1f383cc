// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"cmp"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realams"
)

// realReadyBound is for how long /readyz and what a viewer gets may differ (issue 11,
// story 4).
const realReadyBound = 2 * time.Second

// realSilentBound is the same for a server that does not answer: it hangs, or its MongoDB is away.
const realSilentBound = 6 * time.Second

// TestRealReady compares, every 100 ms, /readyz with what a new viewer gets for a playlist. Meanwhile the daemon restarts, also with
// a wrong password; a real server restarts, is killed, hangs and stops; MongoDB hangs or is killed; and the panel changes a setting
// and makes and removes an application. The two never differ for longer than the bound (R4, S1, S2), and not at all during a leave.
// REAL_ROUNDS repeats all of it.
func TestRealReady(t *testing.T) {
	w := realams.New(t, realams.Options{Users: map[string]string{realUser: realPassword}})
	n := newRealNode(t, w, realRelease())
	n.AllowAgent(t)
	n.join(w.URI())
	n.WaitServed(t, realApps(n.Release)...)
	n.write("/etc/amsagent/config.yaml", "unhealthy_after: "+realUnhealthy.String()+"\n")
	d := n.daemon()
	d.ready()
	v := n.watch(d)
	defer v.stop()

	type step struct {
		name string
		do   func()
	}
	steps := []step{
		{"daemon restart", func() {
			d.end()
			d = n.daemon()
		}},
		{"daemon restart with a wrong password", func() { // the server has the right one
			d.end()
			n.write("/etc/amsagent/mongo", strings.Replace(w.URI(), realPassword, "wrong", 1)+"\n")
			d = n.daemon()
			wait(8 * time.Second)
			d.end()
			n.write("/etc/amsagent/mongo", w.URI()+"\n")
			d = n.daemon()
		}},
		{"restart", func() { n.MustRun(t, realams.Service, "restart") }},
		{"kill -9", func() {
			n.Signal(t, syscall.SIGKILL)
			v.until("the viewer is refused", func(m moment) bool { return !m.served })
			until(t, "/healthz answers 503", func() string {
				if code := d.healthz(); code != http.StatusServiceUnavailable {
					return strconv.Itoa(code)
				}
				return ""
			})
			n.MustRun(t, realams.Service, "start")
		}},
		{"SIGSTOP", func() {
			n.Signal(t, syscall.SIGSTOP)
			v.until("the viewer is refused", func(m moment) bool { return !m.served })
			wait(8 * time.Second)
			n.Signal(t, syscall.SIGCONT)
		}},
		{"stop", func() {
			n.MustRun(t, realams.Service, "stop")
			wait(4 * time.Second)
			n.MustRun(t, realams.Service, "start")
		}},
		{"MongoDB hangs", func() {
			must.OK(t, w.Mongo.Member(0).Pause())
			d.healthyFor(mongoAway)
			must.OK(t, w.Mongo.Member(0).Resume())
		}},
		{"MongoDB killed", func() {
			must.OK(t, w.Mongo.Member(0).Kill())
			d.healthyFor(mongoAway)
			must.OK(t, w.Mongo.Member(0).Start(t.Context()))
		}},
		{"a setting", n.changeSetting},
		{"a new app", func() {
			n.panel(http.MethodPost, "applications/made", nil)
			n.WaitServed(t, "made")
			wait(4 * time.Second) // the daemon has asked it
		}},
		{"its removal", func() {
			n.panel(http.MethodDelete, "applications/made?deleteDB=true", nil)
			until(t, "its folder is gone", func() string {
				out, _ := n.Run(t, "find", realams.Home+"/webapps/made", "-maxdepth", "1")
				if !strings.Contains(out, "No such file") {
					return soFar(out)
				}
				return ""
			})
		}},
	}
	var longest [2]time.Duration
	for _, step := range slices.Repeat(steps, realRounds(t)) {
		from := time.Now()
		step.do()
		v.until("after a "+step.name+" the viewer is served and /readyz says so", func(m moment) bool {
			return m.served && m.ready
		})
		wait(3 * time.Second)
		wrongly, late := v.differences(from)
		t.Logf("%-14s  %6s until served; ready while refused %6s, not ready while served %6s",
			step.name, v.servedAgain(from).Round(100*time.Millisecond), wrongly.Round(100*time.Millisecond), late.Round(100*time.Millisecond))
		longest = [2]time.Duration{max(longest[0], wrongly), max(longest[1], late)}
		bound := realReadyBound
		if slices.Contains([]string{"SIGSTOP", "MongoDB hangs", "MongoDB killed"}, step.name) {
			bound = realSilentBound
		}
		if wrongly > bound {
			t.Errorf("%s: /readyz says ready for %s while viewers are refused:\n%s", step.name, wrongly, v.story(from))
		}
		if late > bound {
			t.Errorf("%s: /readyz says not ready for %s while viewers are served:\n%s", step.name, late, v.story(from))
		}
	}
	figure(t, "in %d rounds ready while refused for at most %s, not ready while served for at most %s",
		realRounds(t), longest[0].Round(100*time.Millisecond), longest[1].Round(100*time.Millisecond))

	from := time.Now()
	n.MustRun(t, bins.agent, "leave", "--now")
	wait(3 * time.Second)
	if wrong, refused := v.wrongAnswers(from); wrong > 0 || refused == 0 {
		t.Errorf("a leave: %d times ready after a viewer was refused, who was refused %d times:\n%s", wrong, refused, v.story(from))
	}
	d.end()
}

// realUnhealthy is after what time without its server /healthz gives a machine up here.
const realUnhealthy = 5 * time.Second

// healthyFor looks at /healthz for so long: by what all nodes share no machine is given up.
func (d *realDaemon) healthyFor(long time.Duration) {
	d.n.t.Helper()
	for end := time.Now().Add(long); time.Now().Before(end); wait(500 * time.Millisecond) {
		if code := d.healthz(); code != http.StatusOK {
			d.n.t.Errorf("/healthz answers %d while MongoDB is away", code)
			wait(time.Until(end))
		}
	}
}

// mongoAway is longer than an application waits for MongoDB before it refuses.
const mongoAway = 40 * time.Second

func realRounds(t *testing.T) int {
	t.Helper()
	text := cmp.Or(os.Getenv("REAL_ROUNDS"), "1")
	rounds, err := strconv.Atoi(text)
	if err != nil || rounds < 1 {
		t.Fatalf("REAL_ROUNDS=%s is no number of rounds", text)
	}
	return rounds
}

// sample is the answer to a viewer or a balancer. A viewer is refused from the time of a request that fails, and served from the
// time of an answer.
type sample struct {
	at       time.Time
	answered time.Time // of a viewer
	balancer bool
	ok       bool
	text     string
}

// moment is the state from one sample to the next.
type moment struct {
	at            time.Time
	served, ready bool
	text          string
}

// viewer sends requests until it is stopped.
type viewer struct {
	n    *realNode
	end  chan struct{}
	done chan struct{}

	mu      sync.Mutex
	samples []sample
}

// watch sends requests every 100 ms, also while earlier ones have no answer.
func (n *realNode) watch(d *realDaemon) *viewer {
	v := &viewer{n: n, end: make(chan struct{}), done: make(chan struct{})}
	// A viewer that gets no answer within a second is not served.
	client := n.world.HTTP(time.Second)
	balancer := n.world.HTTP(time.Second)
	go func() {
		defer close(v.done)
		var asked sync.WaitGroup
		defer asked.Wait()
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			asked.Go(func() { v.add(n.playlists(client)) })
			asked.Go(func() {
				at := time.Now()
				code := realams.Status(balancer, "http://"+n.Address+":9771/readyz")
				v.add(sample{at: at, balancer: true, ok: code == http.StatusOK, text: fmt.Sprint("/readyz ", code)})
			})
			select {
			case <-tick.C:
			case <-v.end:
				tick.Stop()
				return
			}
		}
	}()
	return v
}

// playlists asks every application for one.
func (n *realNode) playlists(client *http.Client) sample {
	s := sample{at: time.Now(), ok: true}
	var asked sync.WaitGroup
	codes := make([]int, len(realApps(n.Release)))
	for i, app := range realApps(n.Release) {
		asked.Go(func() { codes[i] = realams.Status(client, realams.PlaylistURL(n.Node, app, "nobody")) })
	}
	asked.Wait()
	for _, code := range codes {
		// An application that serves answers 404 for a stream that does not exist.
		s.ok = s.ok && code == http.StatusNotFound
	}
	s.text, s.answered = fmt.Sprint("playlists ", codes), time.Now()
	if s.ok {
		s.at = time.Now()
	}
	return s
}

func (v *viewer) add(s sample) {
	v.mu.Lock()
	defer v.mu.Unlock()
	i, _ := slices.BinarySearchFunc(v.samples, s.at, func(s sample, t time.Time) int { return s.at.Compare(t) })
	v.samples = slices.Insert(v.samples, i, s)
}

func (v *viewer) stop() {
	close(v.end)
	<-v.done
}

// since is what held from a moment on, as soon as viewer and balancer have said it.
func (v *viewer) since(from time.Time) (out []moment) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var texts [2]string
	var m moment
	for _, s := range v.samples {
		if s.at.Before(from) {
			continue
		}
		if m.at = s.at; s.balancer {
			m.ready, texts[1] = s.ok, s.text
		} else {
			m.served, texts[0] = s.ok, s.text
		}
		if texts[0] != "" && texts[1] != "" {
			m.text = texts[0] + ", " + texts[1]
			out = append(out, m)
		}
	}
	return out
}

func (v *viewer) until(what string, ok func(moment) bool) {
	v.n.t.Helper()
	from := time.Now()
	until(v.n.t, what, func() string {
		if !slices.ContainsFunc(v.since(from), ok) {
			return soFar(v.story(from))
		}
		return ""
	})
}

// servedAgain is how long it took from a moment until viewers were served, after they
// were refused.
func (v *viewer) servedAgain(from time.Time) time.Duration {
	refused := false
	for _, s := range v.since(from) {
		if refused && s.served {
			return s.at.Sub(from)
		}
		refused = refused || !s.served
	}
	return 0
}

// wrongAnswers counts the refused viewers, and the requests answered by "ready" that began after the first refusal.
func (v *viewer) wrongAnswers(from time.Time) (wrong, refused int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var first time.Time
	for _, s := range v.samples {
		if !s.balancer && !s.ok && !s.at.Before(from) {
			if refused++; first.IsZero() || s.answered.Before(first) {
				first = s.answered
			}
		}
	}
	for _, s := range v.samples {
		if s.balancer && s.ok && refused > 0 && s.at.After(first) {
			wrong++
		}
	}
	return wrong, refused
}

// differences are the longest time of "ready" while viewers are refused, and of "not
// ready" while they are served.
func (v *viewer) differences(from time.Time) (wrongly, late time.Duration) {
	var wrongSince, lateSince time.Time
	for _, s := range v.since(from) {
		wrongly = max(wrongly, lasts(&wrongSince, s.at, s.ready && !s.served))
		late = max(late, lasts(&lateSince, s.at, !s.ready && s.served))
	}
	return wrongly, late
}

// lasts returns for how long a condition has been true, including the sample that ends it.
func lasts(since *time.Time, now time.Time, is bool) time.Duration {
	d := time.Duration(0)
	if !since.IsZero() {
		d = now.Sub(*since)
	}
	switch {
	case !is:
		*since = time.Time{}
	case since.IsZero():
		*since = now
	}
	return d
}

// story has a line for each change.
func (v *viewer) story(from time.Time) string {
	var b strings.Builder
	last := ""
	for _, s := range v.since(from) {
		if s.text != last {
			fmt.Fprintf(&b, "%7.1f s  %s\n", s.at.Sub(from).Seconds(), s.text)
			last = s.text
		}
	}
	return b.String()
}
