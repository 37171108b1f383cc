// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

const document = "/latest/dynamic/instance-identity/document"

func awsService() metadatatest.Service {
	return metadatatest.Service{
		Token: &metadatatest.Token{
			Path: "/latest/api/token", TTLHeader: "X-Aws-Ec2-Metadata-Token-Ttl-Seconds", Header: "X-Aws-Ec2-Metadata-Token",
		},
	}
}

func awsBodies() map[string]string {
	const meta = "/latest/meta-data/"
	return map[string]string{
		document: `{"accountId":"111122223333","availabilityZone":"eu-west-1a","instanceId":"i-0abc1234567890def",` +
			`"instanceType":"c7i.2xlarge","privateIp":"10.0.1.23","region":"eu-west-1","version":"2017-09-30"}`,
		meta + "instance-life-cycle":                     "on-demand",
		meta + "local-hostname":                          "ip-10-0-1-23.eu-west-1.compute.internal",
		meta + "public-ipv4":                             "203.0.113.7",
		meta + "mac":                                     "0e:49:61:0f:c3:11",
		meta + "network/interfaces/macs/":                "0e:49:61:0f:c3:11/",
		meta + "tags/instance":                           "Name\namsagent:role\naws:autoscaling:groupName",
		meta + "tags/instance/Name":                      "edge",
		meta + "tags/instance/amsagent:role":             "edge",
		meta + "tags/instance/aws:autoscaling:groupName": "edge-asg",
	}
}

func fakeAWS(t testing.TB) string {
	t.Helper()
	return metadatatest.NewFake(t, awsService(), awsBodies()).URL()
}

func serve(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func fakeAzure(t testing.TB) string {
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metadata/versions" || r.Header.Get("Metadata") != "true" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		fmt.Fprint(w, `{"apiVersions":["2017-03-01","2021-12-13"]}`)
	})
}

// A cloud that was known once and does not answer is still the one where this machine is, unless something names another.
func TestDetectRemembers(t *testing.T) {
	azure, refuses := fakeAzure(t), serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	for name, tt := range map[string]struct {
		known      string
		files      map[string]string
		endpoints  map[string]string
		want       string
		remembered bool
	}{
		"it refuses":                 {"aws", nil, map[string]string{"aws": refuses}, "aws", true},
		"nobody is asked":            {"alibaba", nil, nil, "alibaba", true},
		"it answers":                 {"azure", nil, map[string]string{"azure": azure}, "azure", false},
		"another cloud answers":      {"aws", nil, map[string]string{"aws": refuses, "azure": azure}, "azure", false},
		"several answer":             {"aws", nil, map[string]string{"azure": azure, "gcp": fakeGCP(t)}, "aws", true},
		"the firmware names another": {"aws", dmi("sys_vendor=Hetzner"), nil, "generic", false},
		"cloud-init names another":   {"aws", map[string]string{cloudInit: `{"v1":{"cloud_name":"openstack","instance_id":"b0fa911b"}}`}, nil, "generic", false},
		"it was in no cloud":         {"generic", nil, map[string]string{"aws": refuses}, "generic", false},
		"it had no metadata":         {"generic", nil, map[string]string{"aws": refuses}, "generic", false},
		"it never joined":            {"", nil, map[string]string{"aws": refuses}, "generic", false},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := metadata.Detect(t.Context(), metadata.Options{Root: tree(t, tt.files), Endpoints: tt.endpoints, Known: tt.known})
			must.OK(t, err)
			if d.Provider != tt.want || d.Remembered != tt.remembered {
				t.Errorf("detected %+v, want %s", d, tt.want)
			}
			checkEvidence(t, d)
		})
	}
}

func fakeGCP(t testing.TB) string {
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/computeMetadata/v1/instance/id" || r.Header.Get("Metadata-Flavor") != "Google" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("Metadata-Flavor", "Google")
		fmt.Fprint(w, "4567890123456789012")
	})
}

func fakeAlibaba(t testing.TB) string {
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token" && r.Header.Get("X-aliyun-ecs-metadata-token-ttl-seconds") != "":
			fmt.Fprint(w, "AQAB-token==")
		case r.URL.Path == "/latest/meta-data/instance-id" && r.Header.Get("X-aliyun-ecs-metadata-token") == "AQAB-token==":
			fmt.Fprint(w, "i-bp13znx0m0me8cq0001")
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	})
}

// anything answers everything, as a captive portal or a friendly gateway does at 169.254.169.254.
func anything(t testing.TB, body string) string {
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		for k, v := range r.Header {
			w.Header()[k] = v
		}
		fmt.Fprint(w, body)
	})
}

func nobody(t testing.TB) string {
	s := httptest.NewServer(http.NotFoundHandler())
	s.Close()
	return s.URL
}

func TestProbes(t *testing.T) {
	type ends map[string]string
	openstack := func(t testing.TB) string {
		// OpenStack's service speaks EC2's language, without session tokens.
		return serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/latest/meta-data/instance-id" {
				fmt.Fprint(w, "i-00000abc")
				return
			}
			w.WriteHeader(http.StatusNotFound)
		})
	}
	halfAWS := func(t testing.TB) string {
		// An imitation that gives out tokens and has no identity document.
		b := awsBodies()
		delete(b, document)
		return metadatatest.NewFake(t, awsService(), b).URL()
	}
	for _, tt := range []struct {
		name string
		ends func(t *testing.T) ends
		want string
	}{
		{"aws", func(t *testing.T) ends {
			return ends{"aws": fakeAWS(t), "azure": nobody(t), "gcp": nobody(t), "alibaba": nobody(t)}
		}, "aws"},
		{"azure", func(t *testing.T) ends { u := fakeAzure(t); return ends{"aws": u, "azure": u, "gcp": u, "alibaba": u} }, "azure"},
		{"gcp", func(t *testing.T) ends { u := fakeGCP(t); return ends{"aws": u, "azure": u, "gcp": u, "alibaba": u} }, "gcp"},
		{"alibaba", func(t *testing.T) ends {
			u := fakeAlibaba(t)
			return ends{"aws": u, "azure": u, "gcp": u, "alibaba": u}
		}, "alibaba"},
		{"nobody", func(t *testing.T) ends { u := nobody(t); return ends{"aws": u, "azure": u, "gcp": u, "alibaba": u} }, "generic"},
		{"something answers with a page", func(t *testing.T) ends {
			u := anything(t, "<html><body>It works!</body></html>")
			return ends{"aws": u, "azure": u, "gcp": u, "alibaba": u}
		}, "generic"},
		{"something answers with nothing", func(t *testing.T) ends {
			u := anything(t, "")
			return ends{"aws": u, "azure": u, "gcp": u, "alibaba": u}
		}, "generic"},
		{"something answers with JSON", func(t *testing.T) ends {
			u := anything(t, "{}")
			return ends{"aws": u, "azure": u, "gcp": u, "alibaba": u}
		}, "generic"},
		// It echoes our own header back, as Google's does, and is not Google's.
		{"something answers with a number", func(t *testing.T) ends {
			u := anything(t, "42, the answer")
			return ends{"aws": u, "azure": u, "gcp": u, "alibaba": u}
		}, "generic"},
		{"openstack", func(t *testing.T) ends { u := openstack(t); return ends{"aws": u, "azure": u, "gcp": u, "alibaba": u} }, "generic"},
		{"imitation of EC2", func(t *testing.T) ends { u := halfAWS(t); return ends{"aws": u, "azure": u, "gcp": u, "alibaba": u} }, "generic"},
		{"two clouds at once", func(t *testing.T) ends { return ends{"aws": fakeAWS(t), "gcp": fakeGCP(t)} }, "generic"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := metadata.Detect(t.Context(), metadata.Options{Root: tree(t, dmi("sys_vendor=QEMU")), Endpoints: tt.ends(t)})
			must.OK(t, err)
			if d.Provider != tt.want {
				t.Errorf("detected %s, want %s: %+v", d.Provider, tt.want, d.Evidence)
			}
			checkEvidence(t, d)
		})
	}
}

// Below a root the network is that of another machine, so only a service that somebody pointed to is asked.
func TestProbesBelowRoot(t *testing.T) {
	d, err := metadata.Detect(t.Context(), metadata.Options{Root: t.TempDir(), DialContext: noDial(t)})
	must.OK(t, err)
	if d.Provider != "generic" {
		t.Errorf("detected %s", d.Provider)
	}
	d, err = metadata.Detect(t.Context(), metadata.Options{Root: t.TempDir(), Endpoints: map[string]string{"gcp": fakeGCP(t)}})
	must.OK(t, err)
	if d.Provider != "gcp" {
		t.Errorf("detected %s: %+v", d.Provider, d.Evidence)
	}
}

func TestProbesDisabled(t *testing.T) {
	d, err := metadata.Detect(t.Context(), metadata.Options{
		Root: t.TempDir(), Endpoints: map[string]string{"aws": fakeAWS(t)}, Disabled: []string{"aws"},
	})
	must.OK(t, err)
	if d.Provider != "generic" {
		t.Errorf("detected %s", d.Provider)
	}
}

// All are asked at the same time: four silent services cost one bound.
func TestProbesAreBounded(t *testing.T) {
	block := make(chan struct{})
	slow := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-block:
		}
	})
	t.Cleanup(func() { close(block) })
	begin := time.Now()
	d, err := metadata.Detect(t.Context(), metadata.Options{
		Root: t.TempDir(), ProbeTimeout: time.Hour, // more than a second is not to be had
		Endpoints: map[string]string{"aws": slow, "azure": slow, "gcp": slow, "alibaba": slow},
	})
	must.OK(t, err)
	if took := time.Since(begin); d.Provider != "generic" || took > time.Minute {
		t.Errorf("detected %s after %v", d.Provider, took)
	}
}

func TestDetectCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := metadata.Detect(ctx, metadata.Options{Root: t.TempDir(), Endpoints: map[string]string{"aws": nobody(t)}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
}

// A redirect is somebody else's address; a probe must not carry its question there.
func TestProbesFollowNoRedirect(t *testing.T) {
	asked := false
	elsewhere := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		asked = true
		w.Header().Set("Metadata-Flavor", "Google")
		fmt.Fprint(w, "4567890123456789012")
	})
	here := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere+r.URL.Path, http.StatusFound)
	})
	d, err := metadata.Detect(t.Context(), metadata.Options{Root: t.TempDir(), Endpoints: map[string]string{"gcp": here, "azure": here, "alibaba": here, "aws": here}})
	must.OK(t, err)
	if asked || d.Provider != "generic" {
		t.Errorf("redirect followed: %v; detected %s", asked, d.Provider)
	}
	for _, e := range d.Evidence {
		if strings.Contains(e.Source, "Google") && !strings.Contains(e.Verdict, "HTTP 302") {
			t.Errorf("evidence: %+v", e)
		}
	}
}

// The environment of a cron job or of cloud-init may name a proxy: no question about the cloud goes there, nor a token.
func TestProbesIgnoreProxies(t *testing.T) {
	for _, k := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"} {
		t.Setenv(k, "http://192.0.2.1:3128")
	}
	for _, k := range []string{"NO_PROXY", "no_proxy"} {
		t.Setenv(k, "")
	}
	// net/http reads the environment once in a process: this must be the one it has read.
	control := &http.Request{URL: &url.URL{Scheme: "http", Host: "169.254.169.254"}}
	if u, err := http.ProxyFromEnvironment(control); err != nil || u == nil || u.Host != "192.0.2.1:3128" {
		t.Fatalf("the control failed: Go's default would use %v, %v", u, err)
	}
	var mu sync.Mutex
	dialled := map[string]bool{}
	d, err := metadata.Detect(t.Context(), metadata.Options{DialContext: func(_ context.Context, _, addr string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		dialled[addr] = true
		return nil, errors.New("no network in this test")
	}})
	must.OK(t, err)
	if by := d.Decisive().Source; by != "all of the above" {
		t.Skipf("this machine is known by %s", by)
	}
	for _, want := range []string{"169.254.169.254:80", "100.100.100.200:80"} {
		if !dialled[want] {
			t.Errorf("nobody dialled %s: %v", want, dialled)
		}
		delete(dialled, want)
	}
	delete(dialled, "[fd00:ec2::254]:80")
	if len(dialled) > 0 {
		t.Errorf("dialled %v", dialled)
	}
}
