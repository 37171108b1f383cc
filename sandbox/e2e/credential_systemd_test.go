// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"strings"
	"syscall"
	"testing"

	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/internal/must"
)

// secretScript lists the places where a reader of logs, or any user of the machine, can find a secret. It excepts the stand-in
// of the database, which has its users on its command line.
func secretScript(secret string) string {
	return `{ journalctl --no-pager -b; systemctl show --all amsagent amsagent-node antmedia; cat /run/amsagent/*.json; } | grep -F '` + secret + `' | grep -v 'sandbox mongo ' || true
for f in /proc/[0-9]*/cmdline /proc/[0-9]*/environ; do
	words=$(tr '\0' ' ' <$f 2>/dev/null) || continue
	case $words in *"sandbox mongo "*) ;; *'` + secret + `'*) [ ${f%/*} = /proc/$$ ] || echo "$f: $words" ;; esac
done`
}

// TestSystemdCredential is a machine whose connection string, with its password, stands nowhere but in a credential of systemd:
// first in a file, then, with another password, in one that is encrypted with a key of the machine.
func TestSystemdCredential(t *testing.T) {
	const first, second = "first-Pa55w0rd", "second-Pa55w0rd"
	uri := func(password string) string { return "mongodb://ams:" + password + "@" + nodeMongo + "/admin" }
	m := newMachine(t)
	m.onDisk(t, `sed -i 's/sandbox mongo /sandbox mongo --user ams:`+first+` --user watch:watch /' "$1/etc/systemd/system/mongo.service"; mkdir -p -m 0700 "$1/etc/credstore" "$1/etc/credstore.encrypted"`)
	m.write(t, "/etc/amsagent/config.yaml", "beat_interval: 1s\n")
	watch, err := mongo.Connect(options.Client().ApplyURI("mongodb://watch:watch@" + nodeMongo + "/admin?directConnection=true&serverSelectionTimeoutMS=3000").SetDialer(m))
	must.OK(t, err)
	t.Cleanup(func() { _ = watch.Disconnect(context.Background()) })
	m.mongo = watch
	both := func(line string) {
		for _, unit := range []string{daemonUnit, convergeUnit} {
			m.write(t, "/etc/systemd/system/"+unit+".d/credential.conf", "[Service]\n"+line+"\n")
		}
	}
	// kept checks that the agent uses the password and that no other program can read it.
	kept := func(t *testing.T, password string) {
		t.Helper()
		m.active(t, nodeID, nodeAddress)
		if got := m.read(t, nodeHome+"/conf/red5.properties"); !strings.Contains(got, password) {
			t.Errorf("Ant Media Server does not have the password") // the checks below would prove nothing
		}
		if got := m.sh(t, secretScript(password)); got != "" {
			t.Errorf("the password can be read by others:\n%s", got)
		}
		if got := m.journal(t); strings.Contains(got, "level=ERROR") {
			t.Errorf("it says:\n%s", got)
		}
	}

	step := func(name string, do func(*testing.T)) {
		if !t.Run(name, do) {
			t.Logf("the agent said:\n%s", m.journal(t))
			t.FailNow() // each step begins where the one before it ended
		}
	}
	step("File", func(t *testing.T) {
		m.write(t, "/etc/credstore/amsagent.mongo", uri(first)+"\n")
		both("LoadCredential=mongo:/etc/credstore/amsagent.mongo")
		m.boot(t)
		kept(t, first)
		// The script finds a secret that can be read.
		const planted = "planted-Pa55w0rd"
		open := m.start(t, "env", "SECRET="+planted, "sleep", "300")
		must.Until(t, "the planted word", func() bool { return m.sh(t, secretScript(planted)) != "" })
		open.Signal(syscall.SIGTERM)
		open.wait(t)
	})
	step("Encrypted", func(t *testing.T) {
		// The plain text comes through a pipe and is never in a file.
		in := m.Command("systemd-creds", "encrypt", "--with-key=host", "--name=mongo", "-", "/etc/credstore.encrypted/amsagent.mongo")
		in.Stdin = strings.NewReader(uri(second))
		if out, err := in.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if got := m.read(t, "/etc/credstore.encrypted/amsagent.mongo"); got == "" || strings.Contains(got, second) {
			t.Fatalf("that is not encrypted: %q", got)
		}
		m.reboot(t, func() {
			both("LoadCredentialEncrypted=mongo:/etc/credstore.encrypted/amsagent.mongo")
			m.onDisk(t, `rm "$1/etc/credstore/amsagent.mongo"; sed -i 's/ams:`+first+`/ams:`+second+`/' "$1/etc/systemd/system/mongo.service"`)
		})
		// The unit before the server has read it: the files had the new password when the server started, and it started once.
		m.startedWith(t, nodeAddress)
		kept(t, second)
		if got := m.read(t, nodeHome+"/conf/red5.properties"); strings.Contains(got, first) {
			t.Error("Ant Media Server was left the old one")
		}
		if got := m.sh(t, secretScript(first)); got != "" {
			t.Errorf("the old password can be read by others:\n%s", got)
		}
	})
	// A credential that cannot be decrypted keeps the daemon from starting, and systemd reports it. The server still serves as a
	// node.
	step("CannotBeDecrypted", func(t *testing.T) {
		server := m.unit(t, nodeUnit)["InvocationID"]
		m.sh(t, `cd /etc/credstore.encrypted; mv amsagent.mongo mine; tr A-Za-z n-za-mN-ZA-M <mine >amsagent.mongo`)
		if r := m.run(t, "systemctl", "restart", "amsagent"); r.code == 0 {
			t.Errorf("it starts without its credential: %s", r)
		}
		if u := m.unit(t, daemonUnit); u["ExecMainStatus"] != "243" {
			t.Errorf("the daemon is %v", u)
		}
		m.sh(t, `cd /etc/credstore.encrypted; mv mine amsagent.mongo; systemctl reset-failed amsagent; systemctl restart amsagent`)
		m.active(t, nodeID, nodeAddress)
		if now := m.unit(t, nodeUnit)["InvocationID"]; now != server {
			t.Error("the server was restarted")
		}
	})
}
