// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// listener listens on the loopback.
func listener(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.OK(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func port(a net.Addr) int { return int(netip.MustParseAddrPort(a.String()).Port()) }

// snapshot is every file of a tree with its mode and time.
func snapshot(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	must.OK(t, filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		must.OK(t, err)
		info, err := os.Lstat(p)
		must.OK(t, err)
		all[p] = info.Mode().String() + info.ModTime().String()
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(p)
			must.OK(t, err)
			all[p] += string(b)
		}
		return nil
	}))
	return all
}

// All is listed, in the order of the table, and nothing is changed, whatever is wrong.
func TestRun(t *testing.T) {
	for name, prepare := range map[string]func(*clinic){
		"before a join": nil,
		"a node":        func(c *clinic) { c.join("mongodb://u:secret@10.0.2.4"); c.put("var/lib/amsagent/journal", "{}") },
		"nothing":       noServer,
	} {
		t.Run(name, func(t *testing.T) {
			c := newClinic(t)
			if prepare != nil {
				prepare(c)
			}
			before := snapshot(t, c.root)
			results := Run(t.Context(), c.o)
			must.NoDiff(t, "the doctor changed something", snapshot(t, c.root), before)
			var order []string
			for _, r := range results {
				if len(order) == 0 || order[len(order)-1] != r.Check {
					order = append(order, r.Check)
				}
				if strings.Contains(r.Text+r.Hint, "secret") {
					t.Errorf("a secret: %+v", r)
				}
			}
			var want []string
			for _, c := range checks() {
				want = append(want, c.id)
			}
			must.NoDiff(t, "checks that are not listed, or not in order", order, want)
			if n := Count(results); n.Bad+n.Warning+n.Unknown+n.Good != len(results) || n.Ignored != 0 {
				t.Errorf("%+v of %d", n, len(results))
			}
		})
	}
}

func TestIgnore(t *testing.T) {
	c := newClinic(t)
	noServer(c)
	wrong := func() (ids []string) {
		for _, r := range Run(t.Context(), c.o) {
			if r.Wrong() {
				ids = append(ids, r.ID)
			}
		}
		return ids
	}
	if got := wrong(); !slices.Equal(got, []string{bootstrap.IDInstall}) {
		t.Fatalf("wrong: %v", got)
	}
	c.o.Ignore = []string{bootstrap.IDInstall}
	if got := wrong(); len(got) > 0 {
		t.Errorf("wrong although ignored: %v", got)
	}
	if n := Count(Run(t.Context(), c.o)); n.Ignored != 1 || n.Bad != 0 {
		t.Errorf("%+v", n)
	}
	// By the check's id, and by the finding's.
	row := check{id: "AMS-ADDRESS"}
	for _, id := range []string{"AMS-ADDRESS", ams.WarnAddressPublic} {
		if r := row.complete(warning("", "x").as(ams.WarnAddressPublic), Options{Ignore: []string{id}}); !r.Ignored {
			t.Errorf("not ignored by %s", id)
		}
	}
	if r := row.complete(good("x"), Options{Ignore: []string{"AMS-ADDRESS"}}); r.Ignored {
		t.Error("what is good cannot be ignored")
	}
}

// An error of a library gets the id that every command gives it.
func TestExplain(t *testing.T) {
	c := newClinic(t)
	c.target("10.0.2.4")
	c.o.Explain = func(err error) (string, string) {
		if cluster.KindOf(err) == cluster.KindRefused {
			return "AMS-MONGO-REFUSED", "let it listen"
		}
		return "", ""
	}
	fail(cluster.KindRefused, bootstrap.IDMongo)(c)
	r := c.check(bootstrap.IDMongo)
	if len(r) != 1 || r[0].ID != "AMS-MONGO-REFUSED" || r[0].Check != bootstrap.IDMongo || r[0].Hint != "let it listen" || r[0].Page != "amsagent doctor --explain AMS-MONGO-REFUSED" {
		t.Errorf("%+v", r)
	}
}

// With everything dead it is over in time, and says what it does not know.
func TestBounded(t *testing.T) {
	for name, known := range map[string]bool{"not even who it is": false, "all but who it is": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newClinic(t)
				hang := func(ctx context.Context) error {
					<-ctx.Done()
					return ctx.Err()
				}
				c.o.Machine.Service = &slowService{}
				c.target("10.0.2.4")
				if !known {
					c.o.Join.Identify = func(ctx context.Context) (metadata.Instance, error) { return metadata.Instance{}, hang(ctx) }
				}
				c.o.Machine.Connect = func(ctx context.Context, _ cluster.Target) (*cluster.Client, error) { return nil, hang(ctx) }
				c.o.Connect.Dialer = deadDialer{}
				c.o.Unit = func(ctx context.Context, _ string) (ams.State, error) { return ams.State{}, hang(ctx) }
				c.o.Daemon = func(ctx context.Context) (DaemonView, error) { return DaemonView{}, hang(ctx) }
				// This one does not even listen to its context.
				stuck := make(chan struct{})
				c.o.Hooks = func(context.Context) (cloud.Check, error) {
					<-stuck
					return cloud.Check{}, errors.New("late")
				}
				begin := time.Now()
				results := Run(t.Context(), c.o)
				if took := time.Since(begin); took > defaultLimit {
					t.Errorf("it took %s", took)
				}
				n := 0
				for _, r := range results {
					if r.Check == idHook {
						n++
						if r.Severity != Unknown || known && !strings.Contains(r.Text, "15s") && !strings.Contains(r.Text, "in time") {
							t.Errorf("%+v", r)
						}
					}
					// Checks of files need no answer.
					if r.ID == bootstrap.IDFile && r.Severity != Good {
						t.Errorf("%+v", r)
					}
				}
				if n != 1 {
					t.Errorf("the hook is reported %d times", n)
				}
				close(stuck)
				synctest.Wait()
			})
		})
	}
}

type deadDialer struct{}

func (deadDialer) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestJudge(t *testing.T) {
	if r := judgeSync(unix.TIME_OK, 0); r.Severity != Good {
		t.Errorf("%+v", r)
	}
	for _, r := range []Result{judgeSync(unix.TIME_ERROR, 0), judgeSync(unix.TIME_OK, unix.STA_UNSYNC)} {
		if r.Severity != Warning || r.Hint == "" {
			t.Errorf("%+v", r)
		}
	}
	for d, want := range map[time.Duration]string{time.Hour: "1h", 90 * time.Second: "1m30s", 48 * time.Hour: "48h", 30 * time.Second: "30s", 15 * time.Minute: "15m"} {
		if got := span(d); got != want {
			t.Errorf("%v: %s", d, got)
		}
	}
	for n, want := range map[uint64]string{3 << 30: "3.0 GiB", 5 << 20: "5 MiB", 100: "0 KiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
	if got := few([]string{"a", "b", "c", "d"}); got != "a, b and 2 more" {
		t.Error(got)
	}
}

// Of many nodes some are tried, from all over the list.
func TestSample(t *testing.T) {
	var list []peer
	for i := range 100 {
		list = append(list, peer{port: i})
	}
	got := sample(list, mostPeers)
	if len(got) != mostPeers || got[0].port != 0 || got[4].port != 80 {
		t.Errorf("%v", got)
	}
	if got := sample(list[:3], mostPeers); len(got) != 3 {
		t.Errorf("%v", got)
	}
}

// mount lasts until the end of the test.
func mount(t *testing.T, source, target, kind string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	t.Cleanup(func() { must.OK(t, unix.Unmount(target, unix.MNT_DETACH)) })
}

// A file system that is nearly full, in a mount of its own.
func TestSpace(t *testing.T) {
	c := newClinic(t)
	at := c.at("var/log/antmedia")
	must.OK(t, os.MkdirAll(at, 0o755))
	mount(t, "tmpfs", at, "tmpfs", 0, "size=512m")
	if found := c.check(bootstrap.IDSpace); !slices.ContainsFunc(found, func(r Result) bool { return r.ID == bootstrap.IDSpace && r.Severity == Warning && r.Hint != "" }) {
		t.Errorf("%+v", found)
	}
}

// A read-only folder is found before a join finds it.
func TestReadOnly(t *testing.T) {
	c := newClinic(t)
	at := c.at("usr/local/antmedia/conf")
	mount(t, at, at, "", unix.MS_BIND, "")
	must.OK(t, unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	r := c.check(bootstrap.IDWritable)
	if len(r) != 1 || r[0].Severity != Bad || !strings.Contains(r[0].Text, "read-only") {
		t.Errorf("%+v", r)
	}
}

// Ids are words of capitals, and each check has one of its own.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	group := Group("")
	groups := map[Group]bool{}
	for _, c := range checks() {
		if seen[c.id] || !strings.HasPrefix(c.id, "AMS-") && !strings.HasPrefix(c.id, "AGENT-") || strings.ToUpper(c.id) != c.id || c.title == "" || c.run == nil {
			t.Errorf("%+v", c)
		}
		seen[c.id] = true
		if c.group != group {
			if groups[c.group] {
				t.Errorf("group %s stands in two places", c.group)
			}
			group, groups[c.group] = c.group, true
		}
	}
}

// A server that starts during the check needs the ports: the check opens none.
func TestPortsStayFree(t *testing.T) {
	l := listener(t)
	l.Close()
	c := newClinic(t)
	ports("", ams.State{Activity: ams.ActivityInactive})(c)
	c.put(server, fmt.Sprintf("rtmp.port=%d\nclusterdb.host=\n", port(l.Addr())))
	checked := make(chan struct{})
	go func() {
		defer close(checked)
		for range 50 {
			c.check(idPorts)
		}
	}()
	for more := true; more; {
		select {
		case <-checked:
			more = false
		default:
		}
		server, err := net.Listen("tcp", l.Addr().String())
		if err != nil {
			t.Fatalf("the server cannot start: %v", err)
		}
		must.OK(t, server.Close())
	}
}

// The kernel's own tables: by IPv4, by IPv6 and by UDP.
func TestSockets(t *testing.T) {
	p := newPatient(Options{Machine: &bootstrap.Machine{}})
	l := listener(t)
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	must.OK(t, err)
	t.Cleanup(func() { _ = u.Close() })
	client, err := net.Dial("tcp", l.Addr().String())
	must.OK(t, err)
	t.Cleanup(func() { _ = client.Close() })
	sockets, err := p.sockets()
	must.OK(t, err)
	if !sockets[socket{"tcp", port(l.Addr())}] || !sockets[socket{"udp", port(u.LocalAddr())}] || sockets[socket{"tcp", port(client.LocalAddr())}] {
		t.Errorf("%v", sockets)
	}
	six, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skipf("no IPv6: %v", err)
	}
	t.Cleanup(func() { _ = six.Close() })
	if sockets, err = p.sockets(); err != nil || !sockets[socket{"tcp", port(six.Addr())}] {
		t.Errorf("%v, %v", sockets, err)
	}
}
