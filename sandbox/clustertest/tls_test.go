// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  crypto.Signer
	file string // its own certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.file = a.issue(pkix.Name{CommonName: "a CA"})
	return a
}

// issue returns a file with a certificate and its key, as MongoDB takes it; the first
// one is the authority's own.
func (a *authority) issue(name pkix.Name) string {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		a.t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: serial, Subject: name, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true,
	}
	signer, by := a.key, a.cert
	if a.cert == nil {
		cert.IsCA, cert.KeyUsage = true, x509.KeyUsageCertSign
		a.cert, a.key, signer, by = cert, key, key, cert
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, by, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	var b bytes.Buffer
	for kind, bytes := range map[string][]byte{"CERTIFICATE": der, "PRIVATE KEY": secret} {
		if err := pem.Encode(&b, &pem.Block{Type: kind, Bytes: bytes}); err != nil {
			a.t.Fatal(err)
		}
	}
	file := filepath.Join(a.t.TempDir(), "certificate.pem")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return file
}

// TestCertificates: a real mongod with TLS, by passwords and by certificates (x.509).
// What is wrong with either is named.
func TestCertificates(t *testing.T) {
	t.Parallel()
	binary := realmongo.Require(t)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	ca, otherCA := newAuthority(t), newAuthority(t)
	server := ca.issue(pkix.Name{CommonName: "mongod", Organization: []string{"the database"}})
	s, err := realmongo.Start(ctx, realmongo.Options{
		Binary: binary, Users: map[string]string{"root": "secret"},
		Args: []string{"--tlsMode", "allowTLS", "--tlsCertificateKeyFile", server, "--tlsCAFile", ca.file, "--tlsAllowConnectionsWithoutCertificates"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	b := openURI(t, s.URI())
	run := func(db string, command bson.D) {
		t.Helper()
		if err := b.Database(db).RunCommand(t.Context(), command).Err(); err != nil {
			t.Fatal(err)
		}
	}
	subject := pkix.Name{CommonName: "node", OrganizationalUnit: []string{"nodes"}, Organization: []string{"amsagent"}}
	run("$external", bson.D{
		{Key: "createUser", Value: "CN=node,OU=nodes,O=amsagent"},
		{Key: "roles", Value: bson.A{bson.M{"role": "readWriteAnyDatabase", "db": "admin"}}},
	})
	known, stranger := ca.issue(subject), ca.issue(pkix.Name{CommonName: "stranger", Organization: []string{"amsagent"}})
	foreign := otherCA.issue(subject)

	password := "mongodb://root:secret@" + s.Addrs() + "/?authSource=admin"
	certificate := "mongodb://" + s.Addrs() + "/?authSource=$external&authMechanism=MONGODB-X509&tlsCAFile=" + ca.file + "&tlsCertificateKeyFile="
	for name, tt := range map[string]struct {
		uri  string
		kind cluster.Kind // "": it works
		text string
	}{
		"a password":                      {password + "&tlsCAFile=" + ca.file, "", ""},
		"a certificate":                   {certificate + known, "", ""},
		"a wrong password":                {strings.Replace(password, "secret", "wr0ng", 1) + "&tlsCAFile=" + ca.file, cluster.KindAuth, ""},
		"a certificate that is no user":   {certificate + stranger, cluster.KindAuth, ""},
		"a certificate of another CA":     {certificate + foreign, cluster.KindLost, ""},
		"a server of another CA":          {password + "&tlsCAFile=" + otherCA.file, cluster.KindTLS, "unknown authority"},
		"no certificate where one counts": {"mongodb://" + s.Addrs() + "/?authSource=$external&authMechanism=MONGODB-X509&tlsCAFile=" + ca.file, cluster.KindAuth, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t, tt.uri, cluster.Options{Timeout: 5 * time.Second})
			err := c.CheckAccess(t.Context())
			switch {
			case tt.kind == "" && err != nil:
				t.Fatal(err)
			case tt.kind == "":
				n := node()
				n.ID = "i-" + strings.ReplaceAll(name, " ", "-")
				register(t, c, n)
				if b.row(n.ID)["state"] != string(n.State) {
					t.Errorf("the row: %v", b.row(n.ID))
				}
			case cluster.KindOf(err) != tt.kind, !strings.Contains(err.Error(), tt.text), strings.Contains(err.Error(), "wr0ng"):
				t.Errorf("kind %s: %v", cluster.KindOf(err), err)
			}
		})
	}

	// From now on it takes nothing else.
	for _, mode := range []string{"preferTLS", "requireTLS"} {
		run("admin", bson.D{{Key: "setParameter", Value: 1}, {Key: "tlsMode", Value: mode}})
	}
	err = connect(t, password, cluster.Options{Timeout: 5 * time.Second}).CheckAccess(t.Context())
	if cluster.KindOf(err) != cluster.KindLost || !strings.Contains(err.Error(), "tls=true") {
		t.Errorf("without TLS: kind %s: %v", cluster.KindOf(err), err)
	}
	if err := connect(t, certificate+known, cluster.Options{Timeout: 5 * time.Second}).CheckAccess(t.Context()); err != nil {
		t.Errorf("with TLS alone: %v", err)
	}
}
