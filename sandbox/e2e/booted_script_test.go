// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/realmongo"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// TestSystemdScripts runs scripts on a booted machine: those of the gate that name the world booted, and those of testdata/booted.
// One by one, for a machine compares what it left on this host with what was there before.
func TestSystemdScripts(t *testing.T) {
	files, err := filepath.Glob("../../testdata/booted/*.txtar")
	must.OK(t, err)
	runScripts(scriptT{t, true}, append(files, scriptsOf(t, "booted")...), "booted", func(t *testing.T) place { return &bootedPlace{t: t} })
}

// bootedPlace is one machine with a systemd, in which MongoDB and EC2's metadata service run, too. `exec machine SCRIPT` runs a shell
// there.
type bootedPlace struct {
	t *testing.T
	n *machine
	// left is the MongoDB of a machine that is off.
	left *mongod.Server
}

func (p *bootedPlace) mongod(ts *testscript.TestScript, _ []string) error {
	ts.Setenv("MONGO", nodeMongo)
	ts.Setenv("MONGO_PORT", "27017")
	ts.Setenv("MONGO_ALIAS", nodeMongo+":27017")
	units, err := filepath.Abs("../../packaging/systemd")
	ts.Setenv("PACKAGING", units)
	return err
}

// node boots the machine; again, it gives it back as it was installed. With an image it makes a disk, which the script boots: golden has
// the agent and its units, bare has two versions of its packages in their place.
func (p *bootedPlace) node(ts *testscript.TestScript, name string, args []string) error {
	bare := slices.Contains(args, "image=bare")
	if bare || slices.Contains(args, "image=golden") {
		p.n = newMachine(p.t)
		if bare {
			p.unpack()
		}
		if !slices.Contains(args, "statistics=no") {
			p.n.onDisk(p.t, nodeReports+`"$1`+nodeHome+`/conf/red5.properties"`)
		}
		return p.named(ts, name, p.n.disk)
	}
	flags := []string{"--save-at-start"}
	if i := slices.Index(args, "--"); i >= 0 {
		flags = append(flags, args[i+1:]...)
	}
	first := p.n == nil
	if first {
		p.n = bootNode(p.t)
	}
	p.n.reset(p.t, flags...)
	if !slices.Contains(args, "statistics=no") {
		p.n.sh(p.t, `systemctl stop antmedia
`+nodeReports+nodeHome+`/conf/red5.properties
rm `+nodeStarts+`; systemctl start antmedia`)
		must.Until(p.t, "a server that is up", func() bool { return p.n.mode(p.t) == "standalone" })
	}
	if !first {
		return nil
	}
	const second = "10.9.0.8"
	p.n.sh(p.t, "ip addr add "+second+"/24 dev eth0")
	ts.Setenv(name+"_IP2", second)
	p.enter(ts)
	return p.named(ts, name, p.n.root)
}

// unpack takes the agent from the disk, and puts its packages there.
func (p *bootedPlace) unpack() {
	p.n.onDisk(p.t, `chroot "$1" systemctl disable -q amsagent-node amsagent
rm -r "$1"/usr/bin/amsagent "$1"/usr/lib/systemd/system/amsagent* "$1/etc/amsagent"
mkdir "$1/opt/packages"`)
	set := packages(p.t)
	for name, from := range map[string]string{
		"old.deb": set.deb[packageOld], "new.deb": set.deb[packageNew], "old.rpm": set.rpm[packageOld], "new.rpm": set.rpm[packageNew],
	} {
		nodeCopy(p.t, from, p.n.disk+"/opt/packages/"+name)
	}
}

// named sets the variables of a machine, whose files lie below root.
func (p *bootedPlace) named(ts *testscript.TestScript, name, root string) error {
	for suffix, value := range map[string]string{"": root, "_AMS": root + nodeHome, "_SVC": "", "_PORT": "5080", "_IP": nodeAddress} {
		ts.Setenv(name+suffix, value)
	}
	return os.Symlink(root, ts.MkAbs(name))
}

// enter lets `amsagent` and `machine` run in the machine as it is booted now, which has its own ways to reach the service and the
// metadata.
func (p *bootedPlace) enter(ts *testscript.TestScript) {
	enter := fmt.Sprintf("*) enter=(nsenter -t %d -a env -u AMSAGENT_SERVICE_COMMAND HOME=/root LANG=C.UTF-8) ;;\n", p.n.leader)
	enterBy(p.t, ts, enter, "amsagent", "amsagent")
	enterBy(p.t, ts, enter, "machine", "sh -euc")
}

func (p *bootedPlace) boot(ts *testscript.TestScript) error {
	if err := p.close(); err != nil {
		return err
	}
	if p.n.leader != 0 {
		p.n.tell(p.t, "poweroff")
	}
	p.n.boot(p.t)
	p.enter(ts)
	return nil
}

func (p *bootedPlace) off() (err error) {
	p.n.off(p.t)
	p.left, err = mongod.Start(p.t.Context(), mongod.Options{Binary: realmongo.Require(p.t), Dir: p.n.disk + "/opt/cloud/database"})
	return err
}

func (p *bootedPlace) service(_, what string) ([]byte, error) {
	if what == "status" {
		what = "is-active"
	}
	return p.n.Command("systemctl", what, nodeUnit).CombinedOutput()
}

func (p *bootedPlace) asked(string) []string { return p.n.Asked() }

func (p *bootedPlace) take(string) (t taken, err error) {
	t.bytes = p.n.bytes(p.t)
	for _, dir := range []string{nodeHome, "/etc"} {
		lines, err := tree.SnapshotBy(p.n.Path(dir), meaning)
		if err != nil {
			return t, err
		}
		t.meaning = append(t.meaning, lines...)
	}
	t.touched = p.n.touched(p.t)
	return t, nil
}

func (p *bootedPlace) connect(ctx context.Context) (*cluster.Client, error) {
	address, o := nodeMongo, cluster.Options{Dialer: p.n}
	if p.left != nil {
		address, o = p.left.URI(), cluster.Options{}
	}
	target, err := cluster.ParseTarget(address)
	if err != nil {
		return nil, err
	}
	return cluster.Connect(ctx, target, o)
}

func (p *bootedPlace) publish(string, string, bool) error {
	return errors.New("the server of a booted machine has no encoder")
}

func (p *bootedPlace) watch(_ string, viewers int) error {
	method, path := http.MethodDelete, "/viewers?app=LiveApp&stream=s1"
	if viewers > 0 {
		method, path = http.MethodPost, path+"&n="+strconv.Itoa(viewers)
	}
	req, err := http.NewRequestWithContext(p.t.Context(), method, "http://"+serverControl+path, nil)
	if err != nil {
		return err
	}
	resp, err := p.n.http.Do(req)
	if err != nil {
		return err
	}
	// A server whose MongoDB is away answers with an error, and the viewers go all the same.
	return resp.Body.Close()
}

func (p *bootedPlace) close() error {
	if p.left == nil {
		return nil
	}
	err := p.left.Close()
	p.left = nil
	return err
}
