// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"crypto/x509/pkix"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

// TestCertificates: a real mongod with TLS, with passwords and client certificates (x.509), and errors for both.
func TestCertificates(t *testing.T) {
	t.Parallel()
	ca, otherCA := realmongo.NewAuthority(t), realmongo.NewAuthority(t)
	s := startReal(t, realmongo.Options{Users: map[string]string{"root": "secret"}, Args: ca.Mongod(net.IPv4(127, 0, 0, 1))})
	b := openURI(t, s.URI())
	subject := pkix.Name{CommonName: "node", OrganizationalUnit: []string{"nodes"}, Organization: []string{"amsagent"}}
	must.OK(t, s.AddSubject(t.Context(), subject.String()))
	known, stranger := ca.Issue(subject), ca.Issue(pkix.Name{CommonName: "stranger", Organization: []string{"amsagent"}})
	foreign := otherCA.Issue(subject)

	password := "mongodb://root:secret@" + s.Addrs() + "/?authSource=admin"
	certificate := "mongodb://" + s.Addrs() + "/?authSource=$external&authMechanism=MONGODB-X509&tlsCAFile=" + ca.File + "&tlsCertificateKeyFile="
	for name, tt := range map[string]struct {
		uri  string
		kind cluster.Kind // "": it works
		text string
	}{
		"a password":                      {password + "&tlsCAFile=" + ca.File, "", ""},
		"a certificate":                   {certificate + known, "", ""},
		"a wrong password":                {strings.Replace(password, "secret", "wr0ng", 1) + "&tlsCAFile=" + ca.File, cluster.KindAuth, ""},
		"a certificate that is no user":   {certificate + stranger, cluster.KindAuth, ""},
		"a certificate of another CA":     {certificate + foreign, cluster.KindLost, ""},
		"a server of another CA":          {password + "&tlsCAFile=" + otherCA.File, cluster.KindTLS, "unknown authority"},
		"no_certificate_where_one_counts": {"mongodb://" + s.Addrs() + "/?authSource=$external&authMechanism=MONGODB-X509&tlsCAFile=" + ca.File, cluster.KindAuth, ""},
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
				must.Equal[any](t, "state in the record", b.record(n.ID)["state"], string(n.State))
			case cluster.KindOf(err) != tt.kind, !strings.Contains(err.Error(), tt.text), strings.Contains(err.Error(), "wr0ng"):
				t.Errorf("kind %s: %v", cluster.KindOf(err), err)
			}
		})
	}

	must.OK(t, s.RequireTLS(t.Context()))
	err := connect(t, password, cluster.Options{Timeout: 5 * time.Second}).CheckAccess(t.Context())
	if e, ok := errors.AsType[*cluster.Error](err); !ok || e.Kind != cluster.KindLost || !strings.Contains(e.Hint, "add tls=true") {
		t.Errorf("without TLS: kind %s: %v", cluster.KindOf(err), err)
	}
	must.Equal(t, "with TLS alone", connect(t, certificate+known, cluster.Options{Timeout: 5 * time.Second}).CheckAccess(t.Context()), nil)
}
