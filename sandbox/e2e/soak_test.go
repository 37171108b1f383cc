// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/realmongo"
	"github.com/amsagent/amsagent/sandbox/rig"
	"github.com/amsagent/amsagent/sandbox/standin"
	"github.com/amsagent/amsagent/sandbox/tree"
)

const (
	soakUsual = 3 * time.Minute // SOAK sets another time
	soakHosts = 4
	soakBeat  = time.Second
	// soakRecovery is how long after MongoDB is back a beat may take to come: the
	// longest pause between two tries, a beat, and what a busy machine adds.
	soakRecovery = 25 * time.Second
	// soakJoining is how long a row may say joining while MongoDB is there: AMS is
	// started, seen in the cluster, and the agent looks again.
	soakJoining = 45 * time.Second
	// soakCalm is how long beats are counted before the next blow.
	soakCalm = 5 * time.Second
)

// TestSoak lets real daemons beat while MongoDB is cut, slowed, refused and
// restarted, their AMS is restarted, and they are restarted and killed, at random,
// for as long as SOAK says. After each blow every beat arrives again; a row never
// says what is not so; and nothing grows: no thread, no descriptor, no memory, no
// log. SOAK_SEED repeats a run.
func TestSoak(t *testing.T) {
	length := soakUsual
	if text := os.Getenv("SOAK"); text != "" {
		var err error
		length, err = time.ParseDuration(text)
		must.OK(t, err)
	}
	seed := rand.Uint64()
	if text := os.Getenv("SOAK_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		must.OK(t, err)
	}
	s := newSoak(t, seed)
	s.say("seed %d, %s, load average %s", seed, length, proc.LoadAverage())
	watching, stop := context.WithCancel(t.Context())
	defer stop()
	var watcher sync.WaitGroup
	watcher.Go(func() { s.watch(watching) })
	s.recovered("the start")
	for !s.failed() && time.Since(s.began) < length {
		s.blow()
	}
	s.recovered("the end")
	stop()
	watcher.Wait()
	s.conclude(length)
}

// soak is one run.
type soak struct {
	t      *testing.T
	dir    string
	random *rand.Rand
	began  time.Time
	nodes  []*rig.Node
	client *cluster.Client
	addr   string

	mongo *mongod.Server

	mu       sync.Mutex
	daemons  []*rig.Daemon // by node; nil while the test keeps it stopped
	starts   []int
	logged   []int // bytes that the daemons before wrote
	timeline []string
	problems []string
	// broken is true while MongoDB has a fault; healed is when the last fault ended.
	broken bool
	healed time.Time
	// disturbed is when the test last disturbed each node.
	disturbed []time.Time
	base      map[*rig.Daemon]proc.Usage // when it had settled
	most      map[*rig.Daemon]proc.Usage
	blows     int
	beats     int64 // counted in calm
}

func newSoak(t *testing.T, seed uint64) *soak {
	t.Helper()
	s := &soak{
		t: t, dir: rig.ShortDir(t), daemons: make([]*rig.Daemon, soakHosts), starts: make([]int, soakHosts), logged: make([]int, soakHosts),
		random: rand.New(rand.NewPCG(seed, seed)), began: time.Now(), healed: time.Now(),
		disturbed: make([]time.Time, soakHosts), base: map[*rig.Daemon]proc.Usage{}, most: map[*rig.Daemon]proc.Usage{},
	}
	t.Cleanup(func() {
		if s.client != nil {
			_ = s.client.Close(context.Background())
		}
		_ = s.mongo.Close()
	})
	s.startMongo()
	target, err := cluster.ParseTarget(s.addr)
	must.OK(t, err)
	s.client, err = cluster.Connect(t.Context(), target, cluster.Options{AppName: "soak", Timeout: 2 * time.Second})
	must.OK(t, err)
	for i := range soakHosts {
		n, _ := rig.NewInEC2(t, rig.Options{
			Options: standin.Options{
				Sandbox: bins.sandbox, Tree: tree.Options{NoUnit: true, Host: fmt.Sprintf("edge-%d", i+1), HostResolves: true},
				Args: []string{"--period", "1s", "--mongo-timeout", "5s", "--stream-wait", "0s", "--save-at-start=false"},
			},
			Agent: bins.agent, ID: fmt.Sprintf("i-05042000000%06d", i+1), Address: fmt.Sprintf("10.0.5.%d", i+1),
			Env: []string{"AMSAGENT_METRICS_ADDRESS=127.0.0.1:0", "AMSAGENT_BEAT_INTERVAL=" + soakBeat.String()},
		})
		n.Must("join", "--mongo", s.addr, "--timeout", "60s")
		s.nodes = append(s.nodes, n)
		s.startAgent(i)
	}
	return s
}

func (s *soak) startAgent(i int) {
	d := s.nodes[i].Daemon()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.daemons[i] = d
	s.starts[i]++
}

func (s *soak) daemon(i int) *rig.Daemon {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.daemons[i]
}

func (s *soak) startMongo() {
	var err error
	s.mongo, err = mongod.Start(context.Background(), mongod.Options{Binary: realmongo.Require(s.t), Dir: filepath.Join(s.dir, "mongo"), Listen: s.addr})
	s.must(err)
	s.addr = s.mongo.Addr()
}

func (s *soak) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("%v\n%s", err, s.story())
	}
}

// say adds a line to the timeline.
func (s *soak) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timeline = append(s.timeline, fmt.Sprintf("%7.1f s  %s", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...)))
}

// problem notes what must not be. The run ends soon after the first.
func (s *soak) problem(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.say("WRONG: %s", text)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problems = append(s.problems, text)
}

func (s *soak) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.problems) > 0 || s.t.Context().Err() != nil
}

func (s *soak) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.t.Context().Done():
	}
}

// between is a random time.
func (s *soak) between(least, most time.Duration) time.Duration {
	return least + time.Duration(s.random.Int64N(int64(most-least)+1))
}

// blow deals one blow, waits until all have recovered from it, and counts beats
// for a while.
func (s *soak) blow() {
	s.blows++
	blows := []func() string{
		s.fault(mongod.Fault{Mode: mongod.Cut}, 0, 0),
		s.fault(mongod.Fault{Mode: mongod.Delay, Delay: s.between(50*time.Millisecond, 3*time.Second)}, 2*time.Second, 8*time.Second),
		s.fault(mongod.Fault{Mode: mongod.Refuse}, time.Second, 20*time.Second),
		s.fault(mongod.Fault{Mode: mongod.BlackHole}, time.Second, 10*time.Second),
		s.fault(mongod.Fault{Mode: mongod.Error}, time.Second, 10*time.Second),
		s.fault(mongod.Fault{Mode: mongod.CutReply, Commands: []string{"update", "findAndModify"}, Times: 1 + s.random.IntN(5)}, 3*time.Second, 5*time.Second),
		s.restartMongo,
		s.restartAMS, s.restartAgent(syscall.SIGTERM), s.restartAgent(syscall.SIGKILL), s.restartAgent(syscall.SIGHUP),
	}
	s.recovered(blows[s.random.IntN(len(blows))]())
}

func (s *soak) fault(f mongod.Fault, least, most time.Duration) func() string {
	for_ := s.between(least, most)
	return func() string {
		what := fmt.Sprintf("MongoDB: %s for %s", f.Mode, for_.Round(time.Millisecond))
		if f.Delay > 0 {
			what += ", by " + f.Delay.Round(time.Millisecond).String()
		}
		s.say("%s", what)
		s.setBroken(true)
		s.must(s.mongo.Faults().Set(f))
		s.pause(for_)
		s.mongo.Faults().Clear()
		s.setBroken(false)
		return what
	}
}

func (s *soak) restartMongo() string {
	down := s.between(0, 15*time.Second)
	what := fmt.Sprintf("MongoDB: restarted, away for %s", down.Round(time.Millisecond))
	s.say("%s", what)
	s.setBroken(true)
	s.must(s.mongo.Close())
	s.pause(down)
	s.startMongo()
	s.setBroken(false)
	return what
}

func (s *soak) setBroken(broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken = broken; !broken {
		s.healed = time.Now()
	}
}

func (s *soak) disturb(i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disturbed[i] = time.Now()
}

func (s *soak) restartAMS() string {
	i := s.random.IntN(len(s.nodes))
	what := fmt.Sprintf("AMS of node %d: restarted", i+1)
	s.say("%s", what)
	s.disturb(i)
	s.must(s.nodes[i].StandIn.Stop())
	s.must(s.nodes[i].StartServer())
	s.disturb(i)
	return what
}

// restartAgent leaves the first daemon alone: it lives from the beginning to the
// end, so that what grows slowly is seen.
func (s *soak) restartAgent(signal syscall.Signal) func() string {
	i := 1 + s.random.IntN(len(s.nodes)-1)
	away := s.between(0, 3*time.Second)
	return func() string {
		d := s.daemon(i)
		if signal == syscall.SIGHUP {
			s.say("agent of node %d: reads its settings again", i+1)
			d.Signal(signal)
			s.pause(2 * soakBeat) // the next count of heartbeats must start after the reload
			return "the settings were read again"
		}
		what := fmt.Sprintf("agent of node %d: %s, away for %s", i+1, signal, away.Round(time.Millisecond))
		s.say("%s", what)
		s.disturb(i)
		s.mu.Lock()
		s.daemons[i] = nil
		s.mu.Unlock()
		d.End(signal)
		s.logged[i] += len(d.Output())
		s.pause(away)
		s.startAgent(i)
		s.disturb(i)
		return what
	}
}

// recovered waits until every node sends heartbeats again. After that none may be lost, and record and agent agree.
func (s *soak) recovered(from string) {
	deadline := time.Now().Add(soakRecovery)
	before := make([]int64, len(s.nodes))
	for i := range s.nodes {
		for {
			v, err := s.agrees(i)
			if err == nil {
				before[i] = v.Beat.Seq
				break
			}
			if s.failed() {
				return
			}
			if time.Now().After(deadline) {
				s.problem("node %d does not beat %s after %s: %v", i+1, soakRecovery, from, err)
				return
			}
			s.pause(100 * time.Millisecond)
		}
	}
	start := time.Now()
	s.pause(soakCalm)
	for i := range s.nodes {
		v, err := s.agrees(i)
		if err != nil {
			// A beat may be on its way.
			s.pause(soakBeat)
			v, err = s.agrees(i)
		}
		if err != nil {
			s.problem("node %d lost a beat in calm, after %s: %v", i+1, from, err)
			return
		}
		// The pace is jittered, and one may just be due.
		wrote, want := v.Beat.Seq-before[i], int64(time.Since(start)/soakBeat)-2
		if wrote < want {
			s.problem("node %d wrote %d beats in %s of calm, after %s", i+1, wrote, time.Since(start).Round(time.Millisecond), from)
		}
		s.beats += max(0, wrote)
	}
}

// agrees compares the agent's heartbeats with the record.
func (s *soak) agrees(i int) (daemon.View, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 3*time.Second)
	defer cancel()
	d := s.daemon(i)
	was, _, err := d.Ask(ctx)
	if err != nil {
		return was, err
	}
	n, err := s.client.Node(ctx, s.nodes[i].ID)
	if err != nil {
		return was, err
	}
	is, _, err := d.Ask(ctx)
	switch {
	case err != nil:
		return is, err
	case is.Beat.Dropped > 0 || is.Beat.Error != "":
		return is, fmt.Errorf("%d beats dropped, %s", is.Beat.Dropped, is.Beat.Error)
	case is.Beat.Seq == 0:
		return is, errors.New("no heartbeat yet")
	case n.Seq < was.Beat.Seq || n.Seq > is.Beat.Seq+1:
		return is, fmt.Errorf("the row has beat %d, the agent has written %d to %d", n.Seq, was.Beat.Seq, is.Beat.Seq)
	case n.State != cluster.StateActive:
		return is, fmt.Errorf("the row says %s, because of %q", n.State, n.Reason)
	}
	return is, nil
}

// watch checks the records and the processes all the time.
func (s *soak) watch(ctx context.Context) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	joining := make([]time.Time, len(s.nodes))
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.processes()
		nodes, err := s.client.Nodes(ctx)
		s.mu.Lock()
		broken, healed, disturbed := s.broken, s.healed, append([]time.Time(nil), s.disturbed...)
		s.mu.Unlock()
		if err != nil {
			if since := time.Since(healed); !broken && since > soakRecovery && ctx.Err() == nil {
				s.problem("MongoDB is there for %s, and does not answer: %v", since.Round(time.Second), err)
			}
			continue
		}
		if len(nodes) != len(s.nodes) {
			s.problem("%d rows of %d nodes", len(nodes), len(s.nodes))
		}
		for i, h := range s.nodes {
			for _, n := range nodes {
				if n.ID != h.ID {
					continue
				}
				switch n.State {
				case cluster.StateActive:
					joining[i] = time.Time{}
				case cluster.StateJoining:
					if joining[i].IsZero() {
						joining[i] = time.Now()
					}
					since := joining[i]
					for _, excuse := range []time.Time{healed, disturbed[i]} {
						if excuse.After(since) {
							since = excuse
						}
					}
					if left := time.Since(since); !broken && left > soakJoining {
						s.problem("node %d is joining for %s, reason %q", i+1, left.Round(time.Second), n.Reason)
					}
				default:
					s.problem("node %d is %s without a command, reason %q", i+1, n.State, n.Reason)
				}
			}
		}
	}
}

// Bounds on the growth of a process after it has settled. A call to a server that does not answer holds up to two descriptors, and a
// blocked one a thread.
const (
	settled     = 20 * time.Second
	moreThreads = 8
	moreFDs     = 12
	moreMemory  = 6 << 20
	// usualMemory is what a daemon takes that has talked to MongoDB. One that could not
	// until it was measured takes less, and has yet to grow to this.
	usualMemory = 13 << 20
	// A log says what changed: some lines for each blow, none for each beat.
	logOfStart, logOfBlow = 4 << 10, 2 << 10
)

func (s *soak) processes() {
	for i := range s.nodes {
		d := s.daemon(i)
		if d == nil {
			continue
		}
		// Checked again: the test may have stopped it meanwhile.
		if d.Ended() && s.daemon(i) == d {
			s.problem("the agent of node %d has ended by itself", i+1)
			continue
		}
		u, err := d.Usage()
		if err != nil {
			continue // it was just stopped
		}
		s.mu.Lock()
		base, known := s.base[d]
		if !known {
			base, s.base[d] = u, u
		}
		young := u.CPU == 0 || time.Since(s.began) < settled || u.Age < settled
		if young {
			s.base[d] = u
		}
		m := s.most[d]
		m.RSS, m.Threads, m.FDs = max(m.RSS, u.RSS), max(m.Threads, u.Threads), max(m.FDs, u.FDs)
		s.most[d] = m
		s.mu.Unlock()
		if young {
			continue
		}
		if u.Threads > base.Threads+moreThreads || u.FDs > base.FDs+moreFDs || u.RSS > max(base.RSS, usualMemory)+moreMemory {
			s.problem("the agent of node %d has grown: %d threads, %d descriptors, %d KiB; settled it had %d, %d and %d",
				i+1, u.Threads, u.FDs, u.RSS>>10, base.Threads, base.FDs, base.RSS>>10)
		}
	}
}

// conclude says how it went.
func (s *soak) conclude(length time.Duration) {
	for i, d := range s.daemons {
		size := s.logged[i] + len(d.Output())
		if most := logOfStart*s.starts[i] + logOfBlow*(s.blows+1); size > most {
			s.problem("the logs of node %d have %d bytes after %d blows and %d starts", i+1, size, s.blows, s.starts[i])
		}
		u, err := d.Usage()
		if err == nil {
			base := s.base[d]
			s.say("node %d: %d starts, %d bytes of log; %d threads, %d descriptors, %.1f MiB; settled %d, %d, %.1f",
				i+1, s.starts[i], size, u.Threads, u.FDs, float64(u.RSS)/(1<<20), base.Threads, base.FDs, float64(base.RSS)/(1<<20))
		}
	}
	// A connection that leaks is one more each time.
	const perHost = 12 // agent and AMS, with what watches
	if open := s.mongo.Stats().Open; open > perHost*soakHosts {
		s.problem("%d connections to MongoDB are open", open)
	}
	s.say("%d blows, %d beats counted in calm, %d connections open, load average %s", s.blows, s.beats, s.mongo.Stats().Open, proc.LoadAverage())
	if !s.failed() {
		s.t.Log("\n" + s.story())
		if s.blows == 0 {
			s.t.Errorf("nothing happened in %s", length)
		}
		return
	}
	s.t.Errorf("%s\n%s", strings.Join(s.problems[:min(len(s.problems), 3)], "\n"), s.story())
}

func (s *soak) story() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.timeline, "\n")
}
