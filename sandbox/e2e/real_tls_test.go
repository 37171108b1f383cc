// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"crypto/x509/pkix"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realams"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// A replica set that takes nothing but TLS. The agent reads the authority and its own
// certificate from the address; the server's Java reads them from its own stores alone.
// Without these the join says so and gives all files back; with them the server is in the
// cluster by a password, and by a certificate (x.509), also with another primary.
func TestRealTLS(t *testing.T) {
	t.Parallel()
	ca := realmongo.NewAuthority(t)
	w := realams.New(t, realams.Options{
		Members: 3, Users: map[string]string{realUser: realPassword}, Mongod: ca.Mongod(net.ParseIP(realams.HubAddress)),
	})
	subject := pkix.Name{CommonName: "node", Organization: []string{"amsagent"}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	must.OK(t, w.Mongo.AddSubject(ctx, subject.String()))
	must.OK(t, w.Mongo.RequireTLS(ctx))
	n := newRealNode(t, w, realRelease())
	n.AllowAgent(t)
	for name, file := range map[string]string{"ca.pem": ca.File, "node.pem": ca.Issue(subject)} {
		text, err := os.ReadFile(file)
		must.OK(t, err)
		n.write("/etc/amsagent/"+name, string(text))
	}
	found := n.files()
	password := w.URI() + "&tls=true&tlsCAFile=/etc/amsagent/ca.pem"
	certificate := "mongodb://" + w.Mongo.Addrs() + "/?replicaSet=" + realmongo.SetName + "&tls=true&tlsCAFile=/etc/amsagent/ca.pem" +
		"&tlsCertificateKeyFile=/etc/amsagent/node.pem&authSource=$external&authMechanism=MONGODB-X509"

	out, code := n.Run(t, n.joinArgs(password, "--timeout", "2m")...)
	ended := "[AMS-SERVICE]"
	if n.Release == "2.10.0" {
		ended = "[AMS-NOT-SEEN]" // that server goes on without its database
	}
	for _, want := range []string{"AMS-MONGO-OPTION", "tlsCAFile: AMS's Java driver ignores it", ended, "the files were put back"} {
		if code == 0 || !strings.Contains(out, want) {
			t.Errorf("a join of a server that does not know the authority does not say %q: exit %d\n%s", want, code, out)
		}
	}
	n.same("a join that failed", found)

	n.trust()
	out = n.join(password)
	if !strings.Contains(out, "in the cluster as "+n.Address) {
		t.Errorf("join by a password says: %s", out)
	}
	d := n.daemon()
	d.ready()
	d.end()

	out = n.join(certificate)
	if !strings.Contains(out, "in the cluster as "+n.Address) {
		t.Errorf("join by a certificate says: %s", out)
	}
	if text := n.Read(t, realams.Home+"/conf/red5.properties"); strings.Contains(text, realPassword) {
		t.Errorf("the password is in red5.properties after a join by a certificate:\n%s", text)
	}
	settled := n.settled()
	d = n.daemon()
	d.ready()
	n.quiet(d, 30*time.Second)
	n.same("half a minute of the daemon", settled)
	if err := w.Mongo.Member(0).Kill(); err != nil { // the primary
		t.Fatal(err)
	}
	until(t, "the node is active with another primary", func() string {
		if said, code := n.Run(t, bins.agent, "nodes"); code != 0 || !strings.Contains(said, " healthy ") {
			return said
		}
		return ""
	})
	d.ready()
	d.end()
	if out := n.MustRun(t, bins.agent, "leave", "--now"); !strings.Contains(out, "left: this machine is standalone") {
		t.Errorf("leave says: %s", out)
	}
	n.WaitServed(t, realApps(n.Release)...)
}

// trust gives the server's Java the authority and the node's certificate: the recipe of
// docs/errors/AMS-MONGO-TLS.md.
func (n *realNode) trust() {
	n.t.Helper()
	n.MustRun(n.t, "bash", "-c", `set -e
umask 077
mkdir /etc/antmedia-tls
cd /etc/antmedia-tls
cp /mnt/java/lib/security/cacerts trust
/mnt/java/bin/keytool -importcert -noprompt -alias mongodb -file /etc/amsagent/ca.pem -keystore trust -storepass changeit
openssl pkcs12 -export -in /etc/amsagent/node.pem -name node -out node.p12 -passout pass:changeit
chown -R antmedia: .
echo "export JAVA_TOOL_OPTIONS='-Djavax.net.ssl.trustStore=$PWD/trust -Djavax.net.ssl.trustStorePassword=changeit \
-Djavax.net.ssl.keyStore=$PWD/node.p12 -Djavax.net.ssl.keyStorePassword=changeit'" >>/usr/local/sbin/antmedia-service.env`)
}
