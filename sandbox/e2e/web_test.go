// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/rig"
)

const (
	// shownWithin is how long the page may be behind the registry.
	shownWithin = 2 * time.Second
	// hostile would be an image and a script if it were not text.
	hostile = `</td>"><img src=x onerror="window.evil=1"><script>window.evil=1</script><x-evil>`
	// axeFile is what tools/scripts/axe.sh fetches.
	axeFile = "../../build/axe/node_modules/axe-core/axe.min.js"
)

// TestWeb: an open page in Chromium shows within 2 s, without a reload, that a node joins, drains, dies and returns. It runs
// alone: no t.Parallel. PICTURES names a folder for pictures of the page.
func TestWeb(t *testing.T) {
	m := newDatabase(t)
	first := newScaled(t, m, "10.0.9.1", fakeaws.AutoScalingOptions{})
	first.Serving()
	c := first.Client
	registerFleet(t, m, first.Node)
	own := startWeb(t, m)
	b := openBrowser(t)
	w := &webStory{t: t, b: b, c: c}
	b.size(1280, "light")
	b.open(own + "/")
	link := `#` + cssID(first.ID, first.Address) + ` a`
	until(t, "the first node is on the page", func() string {
		if !b.is("document.querySelector(" + js(link) + ")") {
			return "so far not"
		}
		return ""
	})
	b.eval("window.mark = 1; document.querySelector("+js(link)+").focus()", nil)

	second := newScaled(t, m, "10.0.9.2", fakeaws.AutoScalingOptions{})
	d := second.Daemon()
	w.shows("joins", second.Node, cluster.StateActive, cluster.Healthy)
	d.UntilReady()
	second.Viewers(2)
	second.Must("drain", "--detach", "--reason", "kernel update")
	w.shows("drains", second.Node, cluster.StateDraining, cluster.Healthy)
	until(t, "the page says what holds the drain", func() string {
		var text string
		if b.eval("document.getElementById('drains').innerText", &text); !strings.Contains(text, "2 viewers left") {
			return text
		}
		return ""
	})
	second.Must("undrain")
	w.shows("serves again", second.Node, cluster.StateActive, cluster.Healthy)

	second.KillServer()
	d.End(syscall.SIGKILL)
	w.shows("is silent", second.Node, cluster.StateActive, cluster.AgentStale)
	w.shows("is dead", second.Node, cluster.StateActive, cluster.Gone)
	must.OK(t, second.StartServer())
	second.Daemon()
	w.shows("returns", second.Node, cluster.StateActive, cluster.Healthy)
	var focus string
	b.eval("document.activeElement.closest('tr')?.id + ' ' + window.mark", &focus)
	if want := "n-" + first.ID + "-" + first.Address + " 1"; focus != want {
		t.Errorf("the focus and the mark are %q, want %q", focus, want)
	}

	if dir := os.Getenv("PICTURES"); dir != "" {
		w.pictures(own, dir)
	}
	t.Run("axe", func(t *testing.T) { w.axe(t, own) })
	w.hostileRows(own)
	w.withoutScripts(own)
	for _, page := range webPages() {
		b.size(360, "light")
		b.open(own + page)
		var wide []string
		b.eval("document.documentElement.scrollWidth <= document.documentElement.clientWidth ? [] : [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth).map(e => e.outerHTML.slice(0, 120))", &wide)
		if len(wide) > 0 {
			t.Errorf("%s is wider than a window of 360 px: %q", page, wide)
		}
	}
	b.quiet(own)
}

// webPages are one of each kind.
func webPages() []string {
	return []string{"/", "/?role=edge&sort=-cpu", "/node/" + webFleet(time.Now())[1].ID, "/events"}
}

func js(text string) string {
	b, _ := json.Marshal(text)
	return string(b)
}

// cssID is the row of a node, as a selector has it.
func cssID(id, ip string) string { return strings.NewReplacer(".", `\.`).Replace("n-" + id + "-" + ip) }

// startWeb starts `amsagent web` and returns its address.
func startWeb(t *testing.T, m *mongod.Server) string {
	t.Helper()
	cmd := exec.Command(bins.agent, "web", "--listen", "127.0.0.1:0")
	cmd.Env = []string{"AMSAGENT_ROOT=" + t.TempDir(), "AMSAGENT_MONGO=" + m.LoginURI()}
	p, err := proc.Start(cmd)
	must.OK(t, err)
	t.Cleanup(func() {
		if code, err := p.Stop(patience); code != 0 || err != nil || t.Failed() {
			t.Errorf("amsagent web: exit %d, %v\n%s", code, err, p.Output())
		}
	})
	address := regexp.MustCompile(`http://127\.0\.0\.1:\d+`)
	until(t, "the page is served", func() string {
		if !address.MatchString(p.Output()) {
			return soFar(p.Output())
		}
		return ""
	})
	return address.FindString(p.Output())
}

// webStory is an open page and the registry beside it.
type webStory struct {
	t        *testing.T
	b        *browser
	c        *cluster.Client
	observer cluster.Observer
}

// shows waits until the registry and the page show a node so, and holds the page to be no more than a look behind.
func (w *webStory) shows(what string, h *rig.Node, state cluster.State, health cluster.Health) {
	w.t.Helper()
	want, known := string(state)+" "+string(health), time.Time{}
	until(w.t, "the page shows that "+h.ID+" "+what, func() string {
		var page string
		w.b.eval(`[...document.getElementById(`+js("n-"+h.ID+"-"+h.Address)+`)?.querySelectorAll('[data-name=STATE], [data-name=HEALTH]') || []].map(e => e.innerText).join(' ')`, &page)
		switch is := w.registry(h.ID); {
		case is != want: // perhaps again
			known = time.Time{}
			return "the registry has " + is
		case known.IsZero():
			known = time.Now()
		}
		if page != want {
			return "the page has " + page
		}
		return ""
	})
	behind := time.Since(known)
	w.t.Logf("figure: the page shows after %d ms that a node %s", behind.Milliseconds(), what)
	if behind > shownWithin {
		w.t.Errorf("the page is %s behind the registry: %s", behind, what)
	}
	if !w.b.is("window.mark === 1 && !document.hidden") {
		w.t.Errorf("%s: the page was loaded again, or is hidden", what)
	}
}

// registry returns a node's state and health.
func (w *webStory) registry(id string) string {
	w.t.Helper()
	look, err := w.c.Look(w.t.Context())
	must.OK(w.t, err)
	for _, m := range w.observer.Observe(look) {
		if m.ID() == id {
			return string(m.State()) + " " + string(m.Health)
		}
	}
	return "no record"
}

// webFleet are nodes whose machines do not exist, as they are now.
func webFleet(began time.Time) []cluster.Node {
	var list []cluster.Node
	at := time.Since(began).Seconds()
	for i := range 7 {
		score := 35 + 7*i%30 + int(15*math.Sin(float64(i)+at/40))
		n := cluster.Node{
			ID: fmt.Sprintf("i-0a1b2c3d4e5f6%04d", i+1), IP: fmt.Sprintf("10.0.%d.%d", 1+i%2, 20+i), BootID: "b", Role: "edge", Group: "edge-asg",
			Provider: "aws", Region: "eu-west-1", Zone: "eu-west-1" + string(rune('a'+i%2)), Type: "c7i.2xlarge",
			State: cluster.StateActive, Interval: seconds.Duration(time.Second), Heartbeat: cluster.Heartbeat{
				Seq: int64(at) + 1, Load: &cluster.Load{CPU: new(score), Mem: new(20 + 3*i), Score: new(score)},
				Sessions: &cluster.Sessions{Publishers: new(0), Viewers: new(90 + 31*i), By: cluster.CountedByAMS}, Serving: &cluster.Serving{Up: true},
			},
		}
		switch i {
		case 0:
			n.Role, n.Group, n.Sessions.Publishers, n.Sessions.Viewers = "origin", "origin-asg", new(12), new(0)
		case 1:
			n.State, n.Reason, n.Type = cluster.StateDraining, "scale-in", "g5.xlarge"
			n.Load.Score = new(63)
			n.Load.GPUs = []cluster.GPULoad{{Name: "NVIDIA A10G", Util: new(41), Enc: new(63), Dec: new(12), Mem: new(27)}}
			n.Drain = &cluster.DrainLimit{Until: began.Add(41 * time.Minute), By: "hook amsagent-terminate"}
		case 2:
			n.Serving = &cluster.Serving{Why: "LiveApp answers 503"}
		case 3:
			n.Load.Score, n.Load.CPU = nil, nil
		}
		list = append(list, n)
	}
	return list
}

// registerFleet keeps these nodes alive, but for the last, which dies at once.
func registerFleet(t *testing.T, m *mongod.Server, like *rig.Node) {
	t.Helper()
	c, version := like.Client, like.Record()
	raw, err := mongo.Connect(options.Client().ApplyURI(m.LoginURI()))
	must.OK(t, err)
	docs := raw.Database("clusterdb").Collection("clusternode")
	began := time.Now()
	nodes := webFleet(began)
	beat := func(ctx context.Context, n cluster.Node) error {
		_, err := docs.UpdateOne(ctx, bson.D{{Key: "_id", Value: "ams-" + n.IP}}, bson.D{{Key: "$set", Value: bson.D{
			{Key: "ip", Value: n.IP}, {Key: "lastUpdateTime", Value: time.Now().UnixMilli()}, {Key: "memory", Value: "586/1945"},
		}}}, options.UpdateOne().SetUpsert(true))
		if err == nil {
			err = c.Heartbeat(ctx, n, n.Heartbeat)
		}
		return err
	}
	for _, n := range nodes {
		n.Agent, n.AMS = version.Agent, version.AMS
		_, err := c.Register(t.Context(), n, cluster.RegisterOptions{})
		must.OK(t, err)
		must.OK(t, c.AddEvent(t.Context(), cluster.Event{Node: n.ID, Kind: "join", Who: "amsagent"}))
		must.OK(t, beat(t.Context(), n))
	}
	must.OK(t, c.AddEvent(t.Context(), cluster.Event{Node: nodes[1].ID, Kind: "drain", Who: "hook amsagent-terminate", Why: "scale-in"}))
	must.OK(t, c.SetBalancer(t.Context(), "lb-1", []string{nodes[3].ID, nodes[4].ID, nodes[5].ID}))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		for tick := time.NewTicker(time.Second); ; {
			select {
			case <-ctx.Done():
				done <- nil
				return
			case <-tick.C:
			}
			for _, n := range webFleet(began)[:6] {
				if err := beat(ctx, n); err != nil && ctx.Err() == nil {
					done <- err
					return
				}
			}
		}
	}()
	t.Cleanup(func() {
		stop()
		must.OK(t, <-done)
		_ = raw.Disconnect(context.Background())
	})
}

// hostileRows shows what an attacker wrote into the registry as text, on each page.
func (w *webStory) hostileRows(own string) {
	w.t.Helper()
	n := webFleet(time.Now())[4]
	n.ID, n.IP, n.Role, n.Group, n.State, n.Reason = hostile+"id", "10.0.3.1", hostile+"role", hostile+"group", cluster.StateDraining, hostile+"reason"
	_, err := w.c.Register(w.t.Context(), n, cluster.RegisterOptions{})
	must.OK(w.t, err)
	must.OK(w.t, w.c.AddEvent(w.t.Context(), cluster.Event{Node: n.ID, Kind: hostile + "kind", Who: hostile + "who", Why: hostile + "why"}))
	beat := n.Heartbeat
	beat.Drain, beat.Serving = &cluster.DrainLimit{Until: time.Now().Add(time.Hour), By: hostile + "by"}, &cluster.Serving{Why: hostile + "serving"}
	must.OK(w.t, w.c.Heartbeat(w.t.Context(), n, beat))
	for _, is := range []struct{ page, texts string }{
		{"/", "id role group"}, {"/node/" + url.PathEscape(n.ID), "role group reason kind who why"}, {"/events", "kind who why"},
	} {
		w.b.open(own + is.page)
		for _, name := range strings.Fields(is.texts) {
			until(w.t, is.page+" has the hostile "+name, func() string {
				var text string
				if w.b.eval("document.body.textContent", &text); !strings.Contains(text, hostile+name) {
					return text
				}
				return ""
			})
		}
		if !w.b.is("!window.evil && document.scripts.length === 1 && !document.querySelector('img, x-evil')") {
			w.t.Errorf("%s has an element of an attacker", is.page)
		}
	}
}

// withoutScripts compares the rows.
func (w *webStory) withoutScripts(own string) {
	w.t.Helper()
	rows := func() (text string) {
		w.b.eval(`[...document.querySelectorAll('#rows tr')].map(r => [r.id, ...[...r.querySelectorAll('th, [data-name=ROLE], [data-name=STATE], [data-name=GROUP]')].map(e => e.textContent)].join(' ')).join('\n')`, &text)
		return text
	}
	w.b.open(own + "/")
	with := rows()
	w.b.call("Emulation.setScriptExecutionDisabled", map[string]any{"value": true}, nil)
	w.b.open(own + "/")
	if without := rows(); without != with || strings.Count(with, "\n") < 8 {
		w.t.Errorf("without scripts the page has the rows\n%s\nwith them\n%s", without, with)
	}
	w.b.call("Emulation.setScriptExecutionDisabled", map[string]any{"value": false}, nil)
}

// axe holds the pages to the rules of axe-core.
func (w *webStory) axe(t *testing.T, own string) {
	source, err := os.ReadFile(axeFile)
	if err != nil {
		t.Skip("axe-core is not here: tools/scripts/axe.sh fetches it by npm")
	}
	for _, page := range webPages() {
		for _, scheme := range []string{"light", "dark"} {
			w.b.size(1280, scheme)
			w.b.open(own + page)
			w.b.eval(string(source)+";0", nil)
			var found struct {
				Passes     int
				Violations []json.RawMessage
			}
			w.b.eval("axe.run({resultTypes: ['violations']}).then(r => ({passes: r.passes.length, violations: r.violations}))", &found)
			for _, v := range found.Violations {
				t.Errorf("%s, %s: %s", page, scheme, v)
			}
			if found.Passes < 20 {
				t.Errorf("%s, %s: only %d rules were applied", page, scheme, found.Passes)
			}
		}
	}
}

// pictures writes pictures of two pages, with a history of some minutes.
func (w *webStory) pictures(own, dir string) {
	w.t.Helper()
	history, err := time.ParseDuration(os.Getenv("PICTURES_HISTORY"))
	must.OK(w.t, err)
	wait(history)
	must.OK(w.t, os.MkdirAll(dir, 0o755))
	w.b.call("Emulation.setScrollbarsHidden", map[string]any{"hidden": true}, nil)
	for name, page := range map[string]string{"nodes": "/", "node": webPages()[2]} {
		for _, width := range []int{360, 1280, 2560} {
			for _, scheme := range []string{"light", "dark"} {
				w.b.size(width, scheme)
				w.b.open(own + page)
				must.OK(w.t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%d-%s.png", name, width, scheme)), w.b.picture(), 0o644))
			}
		}
	}
}
