// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/sandbox/realams"
)

// frameRate is that of the stream that the viewers watch.
const frameRate = 5

// The play of packaging/examples/ansible upgrades three real servers from 2.16.2 to 2.17.1 behind HAProxy, while ffmpeg publishes to
// them and watches. On the second node the installer fails: the play stops there, and the cluster serves. After the repair it
// continues. No encoder is cut before its node's deadline, and no viewer loses a frame. Then the same installer runs
// on all nodes at once, without a drain.
//
// The Community Edition does not forward streams: the test copies the viewers' stream into the folders of all servers.
func TestRealRollingUpgrade(t *testing.T) {
	t.Parallel()
	ansible := packageTool(t, "ansible-playbook")
	w := realams.New(t, realams.Options{Users: map[string]string{realUser: realPassword}})
	var nodes []*realNode
	var daemons []*realDaemon
	installer := ""
	for range 3 {
		n := newRealNode(t, w, realams.Older)
		n.AllowAgent(t)
		n.beforeStart()
		installer = n.Installer(t, realams.Newest, restoreSettings)
		n.MustRun(t, "ln", "-s", bins.agent, "/usr/local/sbin/amsagent")
		n.join(w.URI(), "--role", "origin")
		nodes, daemons = append(nodes, n), append(daemons, n.daemon())
	}
	for _, d := range daemons {
		d.ready()
	}
	first, second, third := nodes[0], nodes[1], nodes[2]

	b := newBalancers(t, w.URI(), false)
	b.prefix = []string{"nsenter", "--target", strconv.Itoa(w.Network()), "--net"}
	b.haproxy(bySocket, "haproxy-slots.cfg")
	b.balance("lb", fronts[byDNS])

	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	b.prefix = nil
	stream := filepath.Join(b.dir, "stream")
	must.OK(t, os.Mkdir(stream, 0o755))
	b.command("ffmpeg", "-nostdin", "-loglevel", "error", "-re", "-f", "lavfi", "-i", fmt.Sprintf("testsrc=size=160x120:rate=%d", frameRate), "-c:v", "libx264",
		"-preset", "ultrafast", "-tune", "zerolatency", "-g", "10", "-threads", "1", "-pix_fmt", "yuv420p", "-f", "hls", "-hls_time", "2", "-hls_list_size", "10",
		"-hls_flags", "delete_segments+temp_file", stream+"/show.m3u8")
	work.Go(func() { feed(ctx, stream, nodes) })
	playlist := "http://" + fronts[bySocket] + "/LiveApp/streams/show.m3u8"
	until(t, "HAProxy serves the playlist", func() string {
		if code := realams.Status(w.HTTP(5*time.Second), playlist); code != http.StatusOK {
			return strconv.Itoa(code)
		}
		return ""
	})
	viewers := make(hlsViewers, 6)
	for i := range viewers {
		viewers[i] = w.Start(t, "bash", "-c", `trap 'kill $!; exit' TERM
while :; do
ffmpeg -nostdin -loglevel error -copyts -i "$1" -map 0:v -c copy -f framehash - &
wait $! || sleep 0.2
done`, "bash", playlist)
	}
	encoders := make([]*realams.Process, 3)
	for i := range encoders {
		// A name of its own for each try: the server refuses one that it still considers published.
		encoders[i] = w.Start(t, "bash", "-c", `trap 'kill $!; exit' TERM
for ((try = 1; ; try++)); do
date +'begin %s%N'
ffmpeg -nostdin -loglevel error -re -f lavfi -i testsrc=size=160x120:rate=5 -f lavfi -i sine=sample_rate=22050 -c:v libx264 -preset ultrafast \
  -tune zerolatency -g 10 -threads 1 -pix_fmt yuv420p -c:a aac -b:a 32k -f flv "$1-$try" &
wait $! || :
date +'end %s%N'
sleep 1
done`, "bash", fmt.Sprintf("rtmp://%s/LiveApp/encoder%d", fronts[bySocket], i+1))
	}
	until(t, "the encoders publish", func() string { return published(nodes, len(encoders)) })
	drains := newDrainWatch(nodes)
	work.Go(func() { drains.run(ctx) })

	play := newPlay(t, ansible, b.dir, nodes, map[string]any{
		"ams_release": realams.Newest, "drain_options": "--deadline 30s", "canary_seconds": 10,
		"ams_install": `sh -c "test ! -e /run/installer-fails && exec ` + installer + `"`,
	})
	began := time.Now()
	lost := viewers.losesIn(t, func() {
		second.write("/run/installer-fails", "")
		asked := third.Asked()
		if out, code := play.run(); code == 0 || !strings.Contains(out, "NO MORE HOSTS LEFT") {
			t.Fatalf("the play whose second node fails: exit %d\n%s", code, out)
		}
		first.released(realams.Newest)
		third.released(realams.Older)
		third.asked("the play that failed before", asked)
		if second.Server() != 0 || daemons[0].readyz() != http.StatusOK || daemons[2].readyz() != http.StatusOK {
			t.Error("the play left more than its second node out of service")
		}
		until(t, "the other nodes have the encoders", func() string { return published([]*realNode{first, third}, len(encoders)) })

		second.MustRun(t, "rm", "/run/installer-fails")
		retry, err := os.ReadFile(filepath.Join(b.dir, "rolling-upgrade.retry"))
		must.OK(t, err)
		if got := strings.Fields(string(retry)); !slices.Equal(got, []string{second.Address}) {
			t.Errorf("hosts to retry: %v, want %s alone", got, second.Address)
		}
		for _, args := range [][]string{{"--limit", "@" + filepath.Join(b.dir, "rolling-upgrade.retry")}, nil} {
			if out, code := play.run(args...); code != 0 {
				t.Fatalf("the play %v: exit %d\n%s", args, code, out)
			}
		}
	})
	took := time.Since(began)
	for _, n := range nodes {
		n.released(realams.Newest)
	}
	cuts, without := cutsOf(encoders, began)
	for _, at := range cuts {
		if !drains.explain(at) {
			t.Errorf("an encoder was cut at %s, before a deadline: %v", at.Format(time.StampMilli), drains)
		}
	}
	figure(t, "by the play, with a failure on the second of three nodes: %s, %.1f viewer-seconds lost by %d viewers, %d encoders cut at deadlines, %s without one",
		took.Round(time.Second), float64(lost)/frameRate, len(viewers), len(cuts), without.Round(100*time.Millisecond))
	if lost > 0 {
		t.Errorf("viewers lost %d frames", lost)
	}

	began = time.Now()
	lost = viewers.losesIn(t, func() {
		var all []*realams.Process
		for _, n := range nodes {
			all = append(all, n.Start(t, installer))
		}
		for i, p := range all {
			if code, err := p.Wait(5 * time.Minute); err != nil || code != 0 {
				t.Fatalf("the installer of %s: exit %d, %v\n%s", nodes[i].Address, code, err, p.Output())
			}
		}
		for i, d := range daemons {
			nodes[i].WaitServed(t, realApps(realams.Newest)...)
			d.ready()
		}
		took = time.Since(began)
		until(t, "the encoders publish again", func() string { return published(nodes, len(encoders)) })
	})
	cuts, without = cutsOf(encoders, began)
	figure(t, "by the installer on all at once: %s, %.1f viewer-seconds lost by %d viewers, %d encoders cut, %s without one",
		took.Round(time.Second), float64(lost)/frameRate, len(viewers), len(cuts), without.Round(100*time.Millisecond))
	if lost == 0 {
		t.Error("the test sees no lost frame while all servers are down")
	}
	stop()
	work.Wait()
	for _, d := range daemons {
		d.end()
	}
}

// published is "" once nodes have so many publishers.
func published(nodes []*realNode, want int) string {
	sum := 0
	for _, n := range nodes {
		v, err := viewAt(n.Path("/run/amsagent/control.sock"))
		if err != nil {
			return err.Error()
		}
		if v.Sessions.Publishers == nil {
			return n.Address + " does not know its publishers"
		}
		sum += *v.Sessions.Publishers
	}
	if sum != want {
		return fmt.Sprintf("%d publishers", sum)
	}
	return ""
}

// feed copies a stream into the folders of the servers, also if an installer has replaced one, until ctx ends. Each server has a
// segment before any playlist names it: a viewer may get them from two of them.
func feed(ctx context.Context, from string, nodes []*realNode) {
	segment := regexp.MustCompile(`(?m)^show\d+\.ts$`)
	for ; ctx.Err() == nil; sleep(ctx, 100*time.Millisecond) {
		list, err := os.ReadFile(filepath.Join(from, "show.m3u8"))
		if err != nil {
			continue // ffmpeg has just begun
		}
		var ready []string
		for _, n := range nodes {
			to := n.Path(realams.Home + "/webapps/LiveApp/streams")
			if copySegments(from, to, segment.FindAllString(string(list), -1)) == nil {
				ready = append(ready, to)
			}
		}
		for _, to := range ready {
			_ = replaceFile(filepath.Join(to, "show.m3u8"), list) // else by the next round
		}
	}
}

// copySegments copies what is not there. It fails while an installer has moved the former tree and not made the new one.
func copySegments(from, to string, names []string) error {
	if _, err := os.Stat(to); err != nil {
		// The server writes its own streams there, as another user.
		if err := errors.Join(os.Mkdir(to, 0o755), os.Chmod(to, 0o777)); err != nil {
			return err
		}
	}
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(to, name)); err == nil {
			continue
		}
		content, err := os.ReadFile(filepath.Join(from, name))
		if err == nil {
			err = replaceFile(filepath.Join(to, name), content)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func replaceFile(name string, content []byte) error {
	if err := os.WriteFile(name+".new", content, 0o644); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// hlsViewers are viewers whose output is ffmpeg's framehash, with the stream's own times.
type hlsViewers []*realams.Process

// frames are the numbers of the frames that each viewer got, and the last of them.
func (v hlsViewers) frames() (got []map[int]bool, last []int) {
	const ticks = 90000 / frameRate // of MPEG-TS
	for _, p := range v {
		frames, newest := map[int]bool{}, 0
		for _, m := range videoFrame.FindAllStringSubmatch(p.Output(), -1) {
			at, _ := strconv.Atoi(m[1]) // digits
			number := (at + ticks/2) / ticks
			frames[number], newest = true, max(newest, number)
		}
		got, last = append(got, frames), append(last, newest)
	}
	return got, last
}

// losesIn returns how many frames the viewers did not get in the time of f: what the stream had, and they skipped.
func (v hlsViewers) losesIn(t *testing.T, f func()) (lost int) {
	t.Helper()
	// catchUp waits until each viewer has three more seconds of the stream.
	catchUp := func() (last []int) {
		_, before := v.frames()
		until(t, "each viewer gets frames", func() string {
			_, last = v.frames()
			for i := range v {
				if last[i] < before[i]+3*frameRate {
					wait(time.Second)
					return fmt.Sprintf("viewer %d has %d, had %d", i+1, last[i], before[i])
				}
			}
			return ""
		})
		return last
	}
	from := slices.Max(catchUp())
	f()
	to := slices.Min(catchUp())
	got, _ := v.frames()
	for _, frames := range got {
		for n := from + 1; n <= to; n++ {
			if !frames[n] {
				lost++
			}
		}
	}
	return lost
}

// cutsOf returns when encoders that had published for 5 s were cut since a time, and how long encoders were missing in all.
func cutsOf(encoders []*realams.Process, since time.Time) (cuts []time.Time, without time.Duration) {
	for _, p := range encoders {
		var begin, cut time.Time
		for _, m := range regexp.MustCompile(`(?m)^(begin|end) (\d+)$`).FindAllStringSubmatch(p.Output()+"\n", -1) {
			ns, _ := strconv.ParseInt(m[2], 10, 64) // digits
			at := time.Unix(0, ns)
			if m[1] == "begin" {
				begin = at
				continue
			}
			if at.Sub(begin) < 5*time.Second {
				continue // it was refused
			}
			if !cut.IsZero() {
				without += begin.Sub(cut)
			}
			cut = time.Time{}
			if at.After(since) {
				cut, cuts = at, append(cuts, at)
			}
		}
		if !cut.IsZero() {
			without += begin.Sub(cut)
		}
	}
	return cuts, without
}

// drainWatch records the deadlines of drains, and when the nodes had left.
type drainWatch struct {
	nodes []*realNode
	mu    sync.Mutex
	seen  map[string]*[2]time.Time // by address: the deadline, and the first sight of the node that has left
}

func newDrainWatch(nodes []*realNode) *drainWatch {
	return &drainWatch{nodes: nodes, seen: map[string]*[2]time.Time{}}
}

func (d *drainWatch) run(ctx context.Context) {
	for ; ctx.Err() == nil; sleep(ctx, 200*time.Millisecond) {
		for _, n := range d.nodes {
			v, err := viewAt(n.Path("/run/amsagent/control.sock"))
			if err != nil || v.Lifecycle == nil {
				continue
			}
			d.mu.Lock()
			switch at := d.seen[n.Address]; {
			case v.Lifecycle.State == lifecycle.StateDraining && !v.Lifecycle.Deadline.IsZero():
				d.seen[n.Address] = &[2]time.Time{v.Lifecycle.Deadline, {}}
			case v.Lifecycle.State == lifecycle.StateLeft && at != nil && at[1].IsZero():
				at[1] = time.Now()
			}
			d.mu.Unlock()
		}
	}
}

// explain reports whether a session that ended at a time may have been cut at a deadline: between it and the end of the server.
func (d *drainWatch) explain(at time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.seen {
		if at.After(s[0].Add(-500*time.Millisecond)) && (s[1].IsZero() || at.Before(s[1].Add(2*time.Second))) {
			return true
		}
	}
	return false
}

func (d *drainWatch) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b strings.Builder
	for address, s := range d.seen {
		fmt.Fprintf(&b, "%s deadline %s left %s; ", address, s[0].Format(time.StampMilli), s[1].Format(time.StampMilli))
	}
	return b.String()
}

// playbook runs the play of packaging on real nodes. In the place of sudo it has a program for each node that enters its namespaces.
type playbook struct {
	t            *testing.T
	program, dir string
}

func newPlay(t *testing.T, program, dir string, nodes []*realNode, vars map[string]any) *playbook {
	t.Helper()
	inventory := "[ams]\n"
	for _, n := range nodes {
		enter := "#!/bin/sh\nwhile [ \"$1\" != /bin/sh ]; do shift; done\nexec " + strings.Join(n.Command().Args, " ") + " \"$@\"\n"
		must.OK(t, os.WriteFile(filepath.Join(dir, "enter-"+n.Address), []byte(enter), 0o755))
		inventory += n.Address + "\n"
	}
	inventory += "[ams:vars]\nansible_connection=local\nansible_python_interpreter=/usr/bin/python3\nansible_become_exe=" + dir + "/enter-{{ inventory_hostname }}\n"
	must.OK(t, os.WriteFile(filepath.Join(dir, "inventory.ini"), []byte(inventory), 0o600))
	text, err := json.Marshal(vars)
	must.OK(t, err)
	must.OK(t, os.WriteFile(filepath.Join(dir, "vars.json"), text, 0o600))
	return &playbook{t, program, dir}
}

// run returns the play's output and its exit status.
func (p *playbook) run(args ...string) (string, int) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 10*time.Minute)
	defer cancel()
	args = append([]string{"-i", p.dir + "/inventory.ini", "-e", "@" + p.dir + "/vars.json", "../../packaging/examples/ansible/rolling-upgrade.yml"}, args...)
	cmd := exec.CommandContext(ctx, p.program, args...)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=" + p.dir, "NO_COLOR=1", "ANSIBLE_NOCOLOR=1",
		"ANSIBLE_HOME=" + p.dir + "/ansible", "ANSIBLE_PIPELINING=true", "ANSIBLE_BECOME_ALLOW_SAME_USER=true",
		"ANSIBLE_RETRY_FILES_ENABLED=true", "ANSIBLE_RETRY_FILES_SAVE_PATH=" + p.dir,
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &out, 5*time.Second
	began := time.Now()
	err := cmd.Run()
	p.t.Logf("the play %v took %s", args[5:], time.Since(began).Round(time.Second))
	if cmd.ProcessState == nil {
		must.OK(p.t, err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}
