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

	"github.com/amsagent/amsagent/sandbox/realams"
)

const realBootedAddress = "10.77.0.101"

// The real server under its own unit and a booted systemd, with our package. The stories
// run beside each other: in one of them a server takes two minutes to end.
func TestRealBooted(t *testing.T) {
	if os.Getenv("REQUIRE_REAL") == "1" {
		t.Setenv("REQUIRE_SYSTEMD", "1")
	}
	t.Run("FromJoinToLeave", realFromJoinToLeave)
	t.Run("Shutdown", realShutdown)
}

// realFromJoinToLeave is a first boot, a join as in user data, an upgrade by the vendor's installer, a new application and another
// /etc/hosts (S2, S3), kill -9, a drain and a leave.
func realFromJoinToLeave(t *testing.T) {
	t.Parallel()
	w := realams.New(t, realams.Options{Users: map[string]string{realUser: realPassword}})
	old := realRelease()
	if old == realams.Newest {
		old = realams.Older // it is upgraded
	}
	b := newRealBooted(t, w, old)
	b.boot(t)
	defer func() {
		if t.Failed() {
			t.Logf("the journal:\n%s", b.sh(t, "journalctl --no-pager -b -o short-precise -u amsagent -u amsagent-node -u antmedia; tail -n 40 /var/log/antmedia/*.log"))
		}
	}()

	if err := os.WriteFile(b.Path("/run/mongo"), []byte(w.URI()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	b.must(t, "dpkg", "-i", "/opt/amsagent.deb")
	// Standard input is closed, as cloud-init has it.
	out := b.must(t, "sh", "-c", "exec amsagent join --mongo file:/run/mongo --address "+realBootedAddress+" --provider generic <&-")
	if !strings.Contains(out, "in the cluster as "+realBootedAddress) || strings.Contains(out, realPassword) {
		t.Errorf("join says: %s", out)
	}
	b.served(t)
	figure(t, "from the package to a node that serves: %s", time.Since(begin).Round(100*time.Millisecond))
	first := b.unit(t, nodeUnit)
	first.want(t, map[string]string{"ActiveState": "active", "NRestarts": "0", "DropInPaths": "/etc/systemd/system/antmedia.service.d/10-heap.conf " + nodeDropIn, "NeedDaemonReload": "no"})
	proc := "/proc/" + first["MainPID"]
	if env := b.read(t, proc+"/environ"); !strings.Contains(env, "\x00AMS_HOST_ADDRESS="+realBootedAddress+"\x00") {
		t.Errorf("the server's environment is %q", env)
	}
	for _, unit := range []string{daemonUnit, convergeUnit} {
		if u := b.unit(t, unit); u["ActiveState"] != "active" || u["UnitFileState"] != "enabled" {
			t.Errorf("after the join %s is %v", unit, u)
		}
	}

	// The vendor's upgrade, which leaves the new release's own files: without us the server would start standalone.
	b.must(t, "systemctl", "stop", nodeUnit)
	b.onDisk(t, `mv "$1`+nodeHome+`" "$1`+realams.Backup+`"`)
	realams.Install(t, realams.Newest, b.disk)
	b.must(t, "systemctl", "daemon-reload")
	restarted := time.Now()
	b.must(t, "systemctl", "start", nodeUnit)
	if log := b.sh(t, "journalctl --no-pager -b -o cat -u "+nodeUnit); strings.Count(log, "AMS-DRIFT: not as joined, and written again: ") != 1 || !strings.Contains(log, nodeHome+"/conf/jee-container.xml") {
		t.Errorf("the journal of the server's unit says nothing of the files that were put right:\n%s", log)
	}
	b.served(t)
	figure(t, "from the first start of the new release to a node that serves: %s", time.Since(restarted).Round(100*time.Millisecond))
	until(t, "status names the new release", func() string {
		if out := b.must(t, "amsagent", "status"); !strings.Contains(out, realams.Newest+" ") {
			return soFar(out)
		}
		return ""
	})
	second := b.unit(t, nodeUnit)
	second.want(t, map[string]string{"ActiveState": "active", "NRestarts": "0"})
	if second["InvocationID"] == first["InvocationID"] {
		t.Error("the server was not restarted")
	}
	b.must(t, "amsagent", "status", "--strict")
	if now := b.unit(t, nodeUnit)["InvocationID"]; now != second["InvocationID"] {
		t.Error("the server was restarted again")
	}

	// Neither change restarts the server. The daemon checks once a minute.
	b.create(t, "shop")
	b.sh(t, "sed -i '/"+realBootedAddress+"/d' /etc/hosts; echo 10.77.0.199 other >>/etc/hosts")
	wait(75 * time.Second)
	if now := b.unit(t, nodeUnit)["InvocationID"]; now != second["InvocationID"] {
		t.Error("the daemon restarted the server for an application or for /etc/hosts")
	}
	// The server writes in place: a crash or a full disk leaves a truncated file.
	const live = nodeHome + "/webapps/LiveApp/WEB-INF/red5-web.properties"
	half, _, found := strings.Cut(b.read(t, live), "\ndb.host=")
	if !found {
		t.Fatalf("%s names no MongoDB", live)
	}
	b.sh(t, fmt.Sprintf("truncate -s %d %s", len(half)+len("\ndb.ho"), live))
	// Here the server crashes: the agent repairs the file before systemd starts the server again.
	b.must(t, "systemctl", "kill", "--kill-who=main", "--signal=KILL", nodeUnit)
	until(t, "/readyz answers 503", func() string {
		client := w.HTTP(2 * time.Second)
		defer client.CloseIdleConnections()
		if code := realams.Status(client, "http://"+realBootedAddress+":9771/readyz"); code != http.StatusServiceUnavailable {
			return fmt.Sprint("/readyz ", code)
		}
		return ""
	})
	until(t, "systemd starts it again", func() string {
		if now := b.unit(t, nodeUnit); now["InvocationID"] == second["InvocationID"] || now["ActiveState"] != "active" {
			return fmt.Sprint(now)
		}
		return ""
	})
	if log := b.sh(t, "journalctl --no-pager -b -o cat -u "+nodeUnit); !strings.Contains(log, "half written or empty, as after a crash or on a full disk: "+live) {
		t.Errorf("the journal of the server's unit says nothing of the file that was half written:\n%s", log)
	}
	b.served(t, "shop")
	if text := b.read(t, live); !strings.Contains(text, "\ndb.host=") || !strings.Contains(text, "\ndb.type=mongodb\n") {
		t.Errorf("the file that was half written is\n%s", text)
	}

	// A drain and a join start the server again.
	second = b.unit(t, nodeUnit)
	second.want(t, map[string]string{"ActiveState": "active", "NRestarts": "1"})
	asked := time.Now()
	b.must(t, "amsagent", "drain", "--reason", "restart")
	b.must(t, "amsagent", "join")
	if now := b.unit(t, nodeUnit); now["InvocationID"] == second["InvocationID"] || now["ActiveState"] != "active" {
		t.Errorf("after a drain and a join: %v", now)
	}
	b.served(t, "shop")
	figure(t, "from the drain to a node that serves again: %s", time.Since(asked).Round(100*time.Millisecond))
	third := b.unit(t, nodeUnit)
	if text := b.read(t, nodeHome+"/webapps/shop/WEB-INF/red5-web.properties"); !strings.Contains(text, "\ndb.type=mongodb\n") {
		t.Errorf("the new application is not configured for the cluster:\n%s", text)
	}
	b.must(t, "amsagent", "status", "--strict")
	if now := b.unit(t, nodeUnit)["InvocationID"]; now != third["InvocationID"] {
		t.Error("the server was restarted again")
	}

	told := b.must(t, "amsagent", "support")
	for _, want := range []string{
		"=== amsagent status --timeout 20s (exit 0, ", "in the cluster as " + realBootedAddress, "=== amsagent nodes --all (exit 0, ",
		"Id=amsagent.service\n", "Id=antmedia.service\n", "DropInPaths=/etc/systemd/system/antmedia.service.d/10-heap.conf " + nodeDropIn + "\n",
		"Ant Media Server serves viewers", "/etc/amsagent/config.yaml",
	} {
		if !strings.Contains(told, want) {
			t.Errorf("support does not say %q:\n%s", want, told)
		}
	}
	if strings.Contains(told, realPassword) {
		t.Error("support shows the password")
	}

	b.must(t, "amsagent", "drain", "--deadline", "1m", "--reason", "test")
	if u := b.unit(t, nodeUnit); u["ActiveState"] != "inactive" || u["Result"] != "success" {
		t.Errorf("after the drain the server's unit is %v", u)
	}
	if out := b.must(t, "amsagent", "leave"); !strings.Contains(out, "left: this machine is standalone") {
		t.Errorf("leave says: %s", out)
	}
	b.unit(t, nodeUnit).want(t, map[string]string{"ActiveState": "inactive", "DropInPaths": "/etc/systemd/system/antmedia.service.d/10-heap.conf", "NeedDaemonReload": "no"})
	if out := b.run(t, "grep", "-rlF", realPassword, nodeHome+"/conf", nodeHome+"/webapps", "/etc", "/var/lib/amsagent").stdout; out != "" {
		t.Errorf("the password is still in\n%s", out)
	}
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

// create makes a standalone application by the vendor's script. It runs outside: the machine has no unzip.
func (b *realBooted) create(t *testing.T, app string) {
	t.Helper()
	b.onDisk(t, `bash "$1`+nodeHome+`/create_app.sh" -n `+app+` -p "$1`+nodeHome+`" >/dev/null
chroot "$1" chown -R antmedia:antmedia `+nodeHome+`/webapps/`+app)
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
