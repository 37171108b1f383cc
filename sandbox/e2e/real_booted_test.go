// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/amsagent/amsagent/sandbox/realams"
)

const realBootedAddress = "10.77.0.101"

// The real server under its own unit and a booted systemd, with our package. The stories
// run beside each other: in one of them a server takes two minutes to end.
func TestRealBooted(t *testing.T) {
	if os.Getenv("REQUIRE_REAL") == "1" {
		t.Setenv("REQUIRE_SYSTEMD", "1")
	}
	runScripts(scriptT{T: t}, []string{"../../testdata/real/booted/life.txtar"}, "real", func(t *testing.T) place {
		return &realBootedPlace{realPlace: newRealPlace(t)}
	})
	t.Run("Shutdown", realShutdown)
}

// realBootedPlace is a booted machine with the real server, and a real MongoDB.
type realBootedPlace struct {
	*realPlace
	b *realBooted
}

func (p *realBootedPlace) node(ts *testscript.TestScript, name string, _ []string) error {
	old := realRelease()
	if old == realams.Newest {
		old = realams.Older // it is upgraded
	}
	p.b = newRealBooted(p.t, p.world, old)
	p.b.boot(p.t)
	p.t.Cleanup(func() {
		if p.t.Failed() {
			p.t.Logf("the journal:\n%s", p.b.sh(p.t, "journalctl --no-pager -b -o short-precise -u amsagent -u amsagent-node -u antmedia; tail -n 40 /var/log/antmedia/*.log"))
		}
	})
	machine := &bootedPlace{t: p.t, n: p.b.machine}
	machine.enter(ts)
	if err := machine.named(ts, name, p.b.root); err != nil {
		return err
	}
	ts.Setenv(name+"_IP", realBootedAddress)
	return nil
}

// command also has `upgrade NAME`, which does what the vendor's installer does, and `create NAME APP`: a standalone application by the
// vendor's script. It runs outside: the machine has no unzip.
func (p *realBootedPlace) command(what, _ string, args []string) error {
	switch what {
	case "serves":
		p.b.served(p.t, args...)
	case "stays":
		return p.stays(args)
	case "upgrade":
		p.b.onDisk(p.t, `mv "$1`+nodeHome+`" "$1`+realams.Backup+`"`)
		realams.Install(p.t, realams.Newest, p.b.disk)
	case "create":
		p.b.onDisk(p.t, `bash "$1`+nodeHome+`/create_app.sh" -n `+args[0]+` -p "$1`+nodeHome+`" >/dev/null
chroot "$1" chown -R antmedia:antmedia `+nodeHome+`/webapps/`+args[0])
	}
	return nil
}

// realBooted is a booted machine on a real world's network, with the server as the
// vendor's installer leaves it, enabled and standalone, and our package on its disk.
type realBooted struct {
	*machine
	world *realams.World
}

func newRealBooted(t *testing.T, w *realams.World, release string) *realBooted {
	t.Helper()
	name := "real" + strings.ToLower(filepath.Base(t.Name()))
	options := append([]string{"--network-bridge=br0", "--machine=" + name}, realams.Java(t)...)
	b := &realBooted{newDisk(t, diskOptions{tree: `root_make ""`, boot: strings.Join(options, " "), net: w.Network()}), w}
	realams.Libraries(t, b.disk)
	realams.Install(t, release, b.disk)
	packages := t.TempDir()
	if err := makePackage(packages, "v0.1.0"); err != nil {
		t.Fatal(err)
	}
	nodeCopy(t, filepath.Join(packages, "packages", "amsagent_0.1.0-1_"+runtime.GOARCH+".deb"), b.disk+"/opt/amsagent.deb")
	b.write(t, "/etc/amsagent/config.yaml", "metrics_address: 0.0.0.0:9771\n")
	b.write(t, "/etc/systemd/system/antmedia.service.d/10-heap.conf", "[Service]\nEnvironment=\"JVM_MEMORY_OPTIONS=-Xms64m -Xmx384m -XX:TieredStopAtLevel=1\"\n")
	b.write(t, "/etc/systemd/system/cable.service", `[Unit]
Wants=network.target
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ip addr add `+realBootedAddress+`/24 dev host0 && ip link set host0 up'
[Install]
WantedBy=multi-user.target
`)
	b.onDisk(t, `chroot "$1" systemctl enable -q cable antmedia`)
	return b
}

// must runs a command that may take as long as a start of the server on a busy machine,
// and gives what it says.
func (b *realBooted) must(t *testing.T, args ...string) string {
	t.Helper()
	p := b.start(t, args...)
	select {
	case <-p.Done():
	case <-time.After(6 * time.Minute):
		t.Fatalf("%v does not end", args)
	}
	r := p.wait(t)
	r.expect(t, 0)
	return r.stdout + r.stderr
}

// served waits until the node is ready and every application serves a viewer: just after a restart the daemon still reports the
// state before it.
func (b *realBooted) served(t *testing.T, more ...string) {
	t.Helper()
	client := b.world.HTTP(2 * time.Second)
	defer client.CloseIdleConnections() // the server never does, and the agent counts them
	until(t, "/readyz answers 200, and every application a viewer", func() string {
		ready := realams.Status(client, "http://"+realBootedAddress+":9771/readyz")
		served := ready == http.StatusOK
		said := fmt.Sprint("/readyz ", ready)
		for _, app := range append(realApps(realRelease()), more...) {
			// An application that serves answers 404 for a stream that does not exist.
			code := realams.Status(client, "http://"+realBootedAddress+":5080/"+app+"/streams/nobody.m3u8")
			served = served && code == http.StatusNotFound
			said += fmt.Sprintf(", %s %d", app, code)
		}
		if !served {
			return said
		}
		return ""
	})
}
