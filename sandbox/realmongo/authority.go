// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package realmongo

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
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/amsagent/amsagent/internal/must"
)

// Authority signs the certificates of a test.
type Authority struct {
	// File is its own certificate.
	File string

	t    testing.TB
	cert *x509.Certificate
	key  crypto.Signer
}

// NewAuthority makes one. Its files end with the test.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{t: t}
	a.File = a.Issue(pkix.Name{CommonName: "a CA"})
	return a
}

// Issue returns a file with a certificate and its key, as MongoDB takes it, for a server
// at addresses or for a client; the first one is the authority's own.
func (a *Authority) Issue(name pkix.Name, addresses ...net.IP) string {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.OK(a.t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	must.OK(a.t, err)
	cert := &x509.Certificate{
		SerialNumber: serial, Subject: name, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: addresses, BasicConstraintsValid: true,
	}
	signer, by := a.key, a.cert
	if a.cert == nil {
		cert.IsCA, cert.KeyUsage = true, x509.KeyUsageCertSign
		a.cert, a.key, signer, by = cert, key, key, cert
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, by, key.Public(), signer)
	must.OK(a.t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	must.OK(a.t, err)
	var b bytes.Buffer
	for _, block := range []pem.Block{{Type: "CERTIFICATE", Bytes: der}, {Type: "PRIVATE KEY", Bytes: secret}} {
		must.OK(a.t, pem.Encode(&b, &block))
	}
	file := filepath.Join(a.t.TempDir(), "certificate.pem")
	must.OK(a.t, os.WriteFile(file, b.Bytes(), 0o600))
	return file
}

// Mongod is what makes a mongod at addresses take TLS, besides connections without it,
// for its Options.Args.
func (a *Authority) Mongod(addresses ...net.IP) []string {
	a.t.Helper()
	server := a.Issue(pkix.Name{CommonName: "mongod", Organization: []string{"the database"}}, addresses...)
	return []string{
		"--tlsMode", "allowTLS", "--tlsCertificateKeyFile", server, "--tlsCAFile", a.File, "--tlsAllowConnectionsWithoutCertificates",
	}
}

// AddSubject makes a user of the subject of a certificate, who may read and write
// everything. It is called before [Set.RequireTLS].
func (s *Set) AddSubject(ctx context.Context, subject string) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	return command(ctx, c, "$external", bson.D{
		{Key: "createUser", Value: subject},
		{Key: "roles", Value: bson.A{bson.M{"role": "readWriteAnyDatabase", "db": "admin"}}},
		// Each member must have all users before a client connects to it alone, as RequireTLS does.
		{Key: "writeConcern", Value: bson.M{"w": len(s.members), "wtimeout": 30_000}},
	})
}

// RequireTLS makes members that were started with [Authority.Mongod] take no new
// connection without TLS: those of this package fail from then on, too.
func (s *Set) RequireTLS(ctx context.Context) error {
	for _, mode := range []string{"preferTLS", "requireTLS"} { // all of them talk TLS before one takes nothing else
		for _, m := range s.members {
			c, err := m.Client()
			if err != nil {
				return err
			}
			if err := command(ctx, c, "admin", bson.D{{Key: "setParameter", Value: 1}, {Key: "tlsMode", Value: mode}}); err != nil {
				return fmt.Errorf("%s of %s: %w", mode, m.Addr(), err)
			}
		}
	}
	return nil
}

// command sends a command over a client, and ends that.
func command(ctx context.Context, c *mongo.Client, db string, what bson.D) error {
	defer disconnect(c)
	if err := c.Database(db).RunCommand(ctx, what).Err(); err != nil {
		return fmt.Errorf("%s: %w", what[0].Key, err)
	}
	return nil
}
