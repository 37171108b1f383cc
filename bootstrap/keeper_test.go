// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/metadata"
)

// asked counts how often the service was asked for its state: each whole
// comparison asks once.
type asked struct {
	ams.None
	n int
}

func (a *asked) State(ctx context.Context) (ams.State, error) {
	a.n++
	return a.None.State(ctx)
}

// keptTree is a machine that has joined and was converged once, an hour after its
// files were written by its keeper's clock.
func keptTree(t *testing.T) (*Keeper, ConvergeRequest, *asked) {
	t.Helper()
	k := NewKeeper(joinedTree(t))
	for name, text := range map[string]string{"etc/hostname": "edge-1\n", "etc/hosts": "10.0.1.7 edge-1\n"} {
		if err := os.WriteFile(filepath.Join(k.Root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	k.now = func() time.Time { return time.Now().Add(time.Hour) }
	service := &asked{}
	k.Service = service
	req := convergeRequest(t, joinedAs(), nil)
	req.Mode = ConvergeWatch // the daemon's
	if c := keep(t, k, req); k.clean == nil {
		t.Fatalf("nothing is remembered of %+v", c)
	}
	return k, req, service
}

func keep(t *testing.T, k *Keeper, req ConvergeRequest) *Convergence {
	t.Helper()
	c, err := k.Converge(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestKeeperLooksAtTheTimesOnly(t *testing.T) {
	k, req, service := keptTree(t)
	want, err := k.Machine.Converge(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	want.Unread = true
	service.n = 0
	for range 3 {
		got := keep(t, k, req)
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("another result (-want +got):\n%s", diff)
		}
		got.Warnings = append(got.Warnings, Finding{ID: "mine"}) // the caller's own
	}
	if service.n != 0 {
		t.Errorf("%d whole comparisons of files that nobody wrote to", service.n)
	}
	// Every now and then all the same.
	now := k.now
	k.now = func() time.Time { return now().Add(wholeEvery) }
	if c := keep(t, k, req); service.n != 1 || c.Unread {
		t.Errorf("%d whole comparisons after %s", service.n, wholeEvery)
	}
	// And after the clock was set back.
	k.now = now
	keep(t, k, req)
	if service.n != 2 {
		t.Errorf("%d whole comparisons after the clock was set back", service.n)
	}
}

// Whatever happens to a file, size and modification time may be as before.
func TestKeeperSeesEveryChange(t *testing.T) {
	const dir = "usr/local/antmedia"
	at := func(k *Keeper, name string) string { return filepath.Join(k.Root, name) }
	inPlace := func(name string) func(*testing.T, *Keeper) {
		return func(t *testing.T, k *Keeper) {
			t.Helper()
			b, info := readAll(t, at(k, name))
			f, err := os.OpenFile(at(k, name), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, werr := f.Write(b)
			if err := errors.Join(werr, f.Close(), os.Chtimes(at(k, name), info.ModTime(), info.ModTime())); err != nil {
				t.Fatal(err)
			}
		}
	}
	restored := func(name string) func(*testing.T, *Keeper) {
		return func(t *testing.T, k *Keeper) {
			t.Helper()
			b, info := readAll(t, at(k, name))
			other := at(k, name) + ".backup"
			if err := errors.Join(os.WriteFile(other, b, info.Mode()), os.Chtimes(other, info.ModTime(), info.ModTime()),
				os.Rename(other, at(k, name))); err != nil {
				t.Fatal(err)
			}
		}
	}
	write := func(name, text string) func(*testing.T, *Keeper) {
		return func(t *testing.T, k *Keeper) {
			t.Helper()
			if err := errors.Join(os.MkdirAll(filepath.Dir(at(k, name)), 0o755), os.WriteFile(at(k, name), []byte(text), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, change := range map[string]func(*testing.T, *Keeper){
		"the container, in place":     inPlace(dir + "/conf/jee-container.xml"),
		"the container, restored":     restored(dir + "/conf/jee-container.xml"),
		"the server's settings":       inPlace(dir + "/conf/red5.properties"),
		"an application's settings":   restored(dir + "/webapps/LiveApp/WEB-INF/red5-web.properties"),
		"an application more":         write(dir+"/webapps/New/WEB-INF/red5-web.properties", "db.name=new\n"),
		"the state":                   inPlace("var/lib/amsagent/state.json"),
		"the undo record":             inPlace("var/lib/amsagent/undo.json"),
		"a journal":                   write("var/lib/amsagent/journal.staging", "{}"),
		"the connection string":       inPlace("etc/amsagent/mongo"),
		"the drop-in":                 inPlace("etc/systemd/system/antmedia.service.d/50-amsagent.conf"),
		"another drop-in":             write("etc/systemd/system/antmedia.service.d/60-local.conf", "[Service]\n"),
		"the names":                   write("etc/hosts", "127.0.0.1 localhost\n"),
		"the release":                 write(dir+"/ant-media-server.jar", "x"),
		"who owns it, or what he may": func(t *testing.T, k *Keeper) { chmod(t, at(k, dir)) },
	} {
		t.Run(name, func(t *testing.T) {
			k, req, service := keptTree(t)
			service.n = 0
			change(t, k)
			_, _ = k.Converge(t.Context(), req) // what it makes of it is not the keeper's matter
			if service.n != 1 {
				t.Errorf("%d whole comparisons", service.n)
			}
		})
	}

	t.Run("an application that is deployed slowly", func(t *testing.T) {
		k, req, service := keptTree(t)
		if err := os.MkdirAll(at(k, dir+"/webapps/.slow/WEB-INF"), 0o755); err != nil {
			t.Fatal(err)
		}
		keep(t, k, req)
		keep(t, k, req)
		service.n = 0
		write(dir+"/webapps/.slow/WEB-INF/red5-web.properties", "db.name=slow\n")(t, k)
		if c := keep(t, k, req); service.n != 1 || ids(c.Repairs) != IDDrift {
			t.Errorf("%d whole comparisons, %+v", service.n, c.Repairs)
		}
	})
}

func readAll(t *testing.T, name string) ([]byte, os.FileInfo) {
	t.Helper()
	b, err := os.ReadFile(name)
	info, serr := os.Stat(name)
	if err := errors.Join(err, serr); err != nil {
		t.Fatal(err)
	}
	return b, info
}

func chmod(t *testing.T, name string) {
	t.Helper()
	info, err := os.Stat(name)
	if err == nil {
		err = os.Chmod(name, info.Mode())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A drift that was seen is mended, and what was mended is looked at until it is
// old enough to tell by its times.
func TestKeeperMends(t *testing.T) {
	k, req, service := keptTree(t)
	if err := os.Remove(filepath.Join(k.Root, ams.DropInPath)); err != nil {
		t.Fatal(err)
	}
	if c := keep(t, k, req); ids(c.Repairs) != IDDrift {
		t.Errorf("%+v", c.Repairs)
	}
	k.now = time.Now // the files were written just now
	service.n = 0
	for range 3 {
		if c := keep(t, k, req); len(c.Repairs) > 0 {
			t.Errorf("%+v", c.Repairs)
		}
	}
	if service.n != 3 {
		t.Errorf("%d whole comparisons of files that were just written", service.n)
	}
}

func TestKeeperAskedForSomethingElse(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*ConvergeRequest)
		repair string // "difference": told, and not mended by the daemon
	}{
		"another MongoDB": {func(r *ConvergeRequest) { r.Mongo = mustTarget(t, "mongodb://10.0.2.5/") }, IDDrift},
		"another valve":   {func(r *ConvergeRequest) { r.Valve = ValveRemove }, "difference"},
		"another beat":    {func(r *ConvergeRequest) { r.Interval = time.Second }, ""},
		"another machine": {func(r *ConvergeRequest) {
			inst := joinedAs()
			inst.ID = "i-2"
			*r = convergeRequest(t, inst, nil)
		}, IDCloned},
		"another address": {func(r *ConvergeRequest) {
			inst := joinedAs()
			inst.Address = netip.MustParseAddr("10.0.1.8")
			*r = convergeRequest(t, inst, nil)
		}, IDMoved + " " + IDDrift},
		"other tags": {func(r *ConvergeRequest) {
			inst := joinedAs()
			inst.Tags = map[string]string{"role": "origin"}
			*r = convergeRequest(t, inst, nil)
		}, ""},
		"nobody tells who it is": {func(r *ConvergeRequest) {
			r.Identify = func(context.Context) (metadata.Instance, error) {
				return metadata.Instance{}, errors.New("no metadata")
			}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			k, req, service := keptTree(t)
			service.n = 0
			c.change(&req)
			got := keep(t, k, req)
			did := ids(got.Repairs)
			if did == "" && len(got.Differences) > 0 {
				did = "difference"
			}
			if service.n != 1 || did != c.repair {
				t.Errorf("%d whole comparisons, %q, want %q", service.n, did, c.repair)
			}
		})
	}
}

// Who a machine is may be a question to a cloud that does not answer: it is asked
// once, and not for a machine that is no node.
func TestKeeperIdentifies(t *testing.T) {
	k, req, _ := keptTree(t)
	n := 0
	req.Identify = func(context.Context) (metadata.Instance, error) {
		n++
		return joinedAs(), nil
	}
	keep(t, k, req)
	req.Interval = time.Second
	keep(t, k, req)
	if n != 2 {
		t.Errorf("asked %d times for two convergences", n)
	}
	if err := k.store().RemoveFile(statePath); err != nil {
		t.Fatal(err)
	}
	keep(t, k, req) // it was a node a moment ago
	n = 0
	for range 2 {
		if c := keep(t, k, req); c.Phase != "" {
			t.Errorf("%+v", c)
		}
	}
	if n != 0 {
		t.Errorf("asked %d times for a machine that is no node", n)
	}
}

func TestKeeperStateFile(t *testing.T) {
	k, _, _ := keptTree(t)
	read := func() *State {
		t.Helper()
		s, err := k.StateFile()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := read()
	first.Role = "mine" // the caller's own
	if s := read(); s.Role != "edge" || k.state == nil {
		t.Errorf("%+v", s)
	}
	// By another hand, in the same instant or later.
	for _, role := range []string{"one", "two"} {
		s := *read()
		s.Role = role
		if err := saveState(k.store(), s); err != nil {
			t.Fatal(err)
		}
		if got := read(); got.Role != role {
			t.Errorf("%q, want %q", got.Role, role)
		}
	}
	k.now = time.Now
	s := *read()
	s.Role = "three"
	if err := saveState(k.store(), s); err != nil {
		t.Fatal(err)
	}
	if got := read(); got.Role != "three" || k.state != nil {
		t.Error("a file that was written just now is told by its times")
	}
	if err := os.WriteFile(filepath.Join(k.Root, statePath), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := k.StateFile(); err == nil {
		t.Errorf("a damaged file is %+v", s)
	}
	if err := os.Remove(filepath.Join(k.Root, statePath)); err != nil {
		t.Fatal(err)
	}
	if s, err := k.StateFile(); s != nil || err != nil {
		t.Errorf("%+v, %v", s, err)
	}
}
