// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeaws_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/sandbox/fakeaws"
)

func start(t *testing.T, o fakeaws.Options) *fakeaws.Server {
	t.Helper()
	s, err := fakeaws.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// client is the real SDK, without its patience.
func client(s *fakeaws.Server) *imds.Client {
	return imds.New(imds.Options{
		Endpoint: s.Endpoint(), EnableFallback: aws.FalseTernary,
		Retryer: retry.AddWithMaxBackoffDelay(retry.NewStandard(), time.Millisecond),
	})
}

func get(t *testing.T, c *imds.Client, path string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := c.GetMetadata(ctx, &imds.GetMetadataInput{Path: path})
	if err != nil {
		return "", err
	}
	defer out.Content.Close()
	b, err := io.ReadAll(out.Content)
	return string(b), err
}

func status(err error) int {
	var re *smithyhttp.ResponseError
	if errors.As(err, &re) {
		return re.HTTPStatusCode()
	}
	return 0
}

func TestItems(t *testing.T) {
	t.Parallel()
	i := fakeaws.Sample()
	i.NICs[0].IPv6s = []string{"2600:1f18::a1", "2600:1f18::a2"}
	i.NICs = append(i.NICs, fakeaws.NIC{MAC: "0e:49:61:0f:c3:99", IPv4s: []string{"10.0.2.9", "10.0.2.10"}})
	i.Extra = map[string]string{"autoscaling/target-lifecycle-state": "InService", "mac": ""}
	i.Tags["k=+-.,_:@"] = ""
	s := start(t, fakeaws.Options{Instance: &i})
	c := client(s)
	tests := []struct {
		path, want string // want empty: 404
	}{
		{"instance-id", "i-0abc1234567890def"},
		{"local-ipv4", "10.0.1.23"},
		{"public-ipv4", "203.0.113.7"},
		{"network/interfaces/macs/", "0e:49:61:0f:c3:11/\n0e:49:61:0f:c3:99/"},
		{"network/interfaces/macs/0e:49:61:0f:c3:11/ipv6s", "2600:1f18::a1\n2600:1f18::a2"},
		{"network/interfaces/macs/0e:49:61:0f:c3:99/local-ipv4s", "10.0.2.9\n10.0.2.10"},
		{"network/interfaces/macs/0e:49:61:0f:c3:99/ipv6s", ""},
		{"network/interfaces/macs/0e:49:61:0f:c3:99/device-number", "1"},
		{"placement/availability-zone", "eu-west-1a"},
		{"placement/availability-zone-id", "euw1-az1"},
		{"placement/region", "eu-west-1"},
		{"placement", "availability-zone\navailability-zone-id\nregion"},
		{"instance-type", "c7i.2xlarge"},
		{"instance-life-cycle", "on-demand"},
		{"hostname", "ip-10-0-1-23.eu-west-1.compute.internal"},
		{"local-hostname", "ip-10-0-1-23.eu-west-1.compute.internal"},
		{"services/domain", "amazonaws.com"},
		{"services/partition", "aws"},
		{"tags/instance", "Name\namsagent:role\naws:autoscaling:groupName\nk=+-.,_:@"},
		{"tags/instance/aws:autoscaling:groupName", "edge-asg"},
		{"tags/instance/amsagent:role", "edge"},
		{"iam/security-credentials/", "ams-node"},
		{"autoscaling/target-lifecycle-state", "InService"},
		{"mac", ""},
		{"spot/instance-action", ""},
		{"no/such/item", ""},
	}
	for _, tt := range tests {
		got, err := get(t, c, tt.path)
		if tt.want == "" {
			if status(err) != http.StatusNotFound {
				t.Errorf("%s: %q, %v; want 404", tt.path, got, err)
			}
			continue
		}
		if err != nil || got != tt.want {
			t.Errorf("%s: %q, %v; want %q", tt.path, got, err, tt.want)
		}
	}
	if got, err := get(t, c, "tags/instance/k=+-.,_:@"); err != nil || got != "" {
		t.Errorf("a tag with an empty value: %q, %v", got, err)
	}

	doc, err := c.GetInstanceIdentityDocument(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := imds.InstanceIdentityDocument{
		AccountID: "123456789012", InstanceID: "i-0abc1234567890def", PrivateIP: "10.0.1.23",
		Region: "eu-west-1", AvailabilityZone: "eu-west-1a", InstanceType: "c7i.2xlarge",
		ImageID: "ami-0abc1234567890def", Architecture: "x86_64", Version: "2017-09-30",
		PendingTime: time.Date(2026, 11, 20, 8, 0, 0, 0, time.UTC),
	}
	if diff := cmp.Diff(want, doc.InstanceIdentityDocument); diff != "" {
		t.Errorf("identity document (-want +got):\n%s", diff)
	}
	if out, err := c.GetRegion(t.Context(), nil); err != nil || out.Region != "eu-west-1" {
		t.Errorf("GetRegion: %+v, %v", out, err)
	}
	if out, err := c.GetIAMInfo(t.Context(), nil); err != nil || !strings.HasSuffix(out.InstanceProfileArn, "/ams-node") {
		t.Errorf("GetIAMInfo: %+v, %v", out, err)
	}
	creds, err := get(t, c, "iam/security-credentials/ams-node")
	if err != nil || !strings.Contains(creds, `"Code":"Success"`) {
		t.Errorf("credentials: %s, %v", creds, err)
	}
	// One token served all of it.
	puts := 0
	for _, r := range s.Requests() {
		if r.Method == http.MethodPut {
			puts++
		}
	}
	if puts != 1 {
		t.Errorf("%d tokens were asked for, want 1", puts)
	}
}

func TestVariations(t *testing.T) {
	t.Parallel()
	s := start(t, fakeaws.Options{})
	c := client(s)
	s.Update(func(i *fakeaws.Instance) { i.TagsEnabled = false })
	for _, path := range []string{"tags/instance", "tags/instance/Name", "tags/"} {
		if _, err := get(t, c, path); status(err) != http.StatusNotFound {
			t.Errorf("%s with tags off: %v, want 404", path, err)
		}
	}
	if _, err := c.GetUserData(t.Context(), nil); status(err) != http.StatusNotFound {
		t.Errorf("user data: %v, want 404", err)
	}
	const script = "#!/bin/sh\namsagent join --mongo 10.0.2.4\n"
	s.Update(func(i *fakeaws.Instance) { i.UserData = script })
	out, err := c.GetUserData(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(out.Content)
	_ = out.Content.Close()
	if string(b) != script {
		t.Errorf("user data %q", b)
	}

	// A machine with IPv6 only and no public address.
	s.Update(func(i *fakeaws.Instance) {
		i.NICs = []fakeaws.NIC{{MAC: "0e:00:00:00:00:01", IPv6s: []string{"2600:1f18::b1"}}}
	})
	for _, path := range []string{"local-ipv4", "public-ipv4"} {
		if _, err := get(t, c, path); status(err) != http.StatusNotFound {
			t.Errorf("%s: %v, want 404", path, err)
		}
	}
	doc, err := c.GetInstanceIdentityDocument(t.Context(), nil)
	if err != nil || doc.PrivateIP != "" {
		t.Errorf("identity document: %+v, %v", doc, err)
	}
	if got, err := get(t, c, "ipv6"); err != nil || got != "2600:1f18::b1" {
		t.Errorf("ipv6: %q, %v", got, err)
	}
}

// do is a request without the SDK.
func do(t *testing.T, method, url string, header map[string]string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

func TestTokens(t *testing.T) {
	t.Parallel()
	s := start(t, fakeaws.Options{})
	const ttl, tok = "X-aws-ec2-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token"
	tests := []struct {
		name, method, path string
		header             map[string]string
		want               int
	}{
		{"PUT without a time to live", "PUT", "/latest/api/token", nil, 400},
		{"too short", "PUT", "/latest/api/token", map[string]string{ttl: "0"}, 400},
		{"too long", "PUT", "/latest/api/token", map[string]string{ttl: "21601"}, 400},
		{"no number", "PUT", "/latest/api/token", map[string]string{ttl: "ten"}, 400},
		{"dated path", "PUT", "/2021-03-23/api/token", map[string]string{ttl: "60"}, 403},
		{"over a proxy", "PUT", "/latest/api/token", map[string]string{ttl: "60", "X-Forwarded-For": "10.0.0.1"}, 403},
		{"GET on the token's path", "GET", "/latest/api/token", nil, 405},
		{"without a token", "GET", "/latest/meta-data/instance-id", nil, 401},
		{"with a false token", "GET", "/latest/meta-data/instance-id", map[string]string{tok: "x"}, 401},
		{"POST", "POST", "/latest/meta-data/instance-id", nil, 405},
		{"longest", "PUT", "/latest/api/token", map[string]string{ttl: "21600"}, 200},
	}
	for _, tt := range tests {
		if got, body, _ := do(t, tt.method, s.Endpoint()+tt.path, tt.header); got != tt.want {
			t.Errorf("%s: %d %s, want %d", tt.name, got, body, tt.want)
		}
	}
	_, token, header := do(t, "PUT", s.Endpoint()+"/latest/api/token", map[string]string{ttl: "1"})
	if got := header.Get(ttl); got != "1" {
		t.Errorf("the time to live is echoed as %q", got)
	}
	with := map[string]string{tok: token}
	for path, want := range map[string]int{
		"/latest/meta-data/instance-id": 200, "/2021-03-23/meta-data/instance-id": 200,
		"/": 200, "/latest/": 200, "/nonsense/meta-data": 404,
	} {
		if got, body, _ := do(t, "GET", s.Endpoint()+path, with); got != want {
			t.Errorf("%s: %d %s, want %d", path, got, body, want)
		}
	}
	// It expires in a second.
	deadline := time.After(time.Minute)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if got, _, _ := do(t, "GET", s.Endpoint()+"/latest/meta-data/instance-id", with); got == 401 {
			break
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the token does not expire")
		}
	}

	v1 := start(t, fakeaws.Options{AllowV1: true})
	if got, _, _ := do(t, "GET", v1.Endpoint()+"/latest/meta-data/instance-id", nil); got != 200 {
		t.Errorf("optional tokens: %d without one", got)
	}
	if got, _, _ := do(t, "GET", v1.Endpoint()+"/latest/meta-data/instance-id", map[string]string{tok: "x"}); got != 401 {
		t.Errorf("optional tokens: %d with a false one", got)
	}
}

// The SDK asks for a new token when the old one is refused.
func TestExpiredTokenIsRefreshedByTheSDK(t *testing.T) {
	t.Parallel()
	s := start(t, fakeaws.Options{})
	c := client(s)
	if _, err := get(t, c, "instance-id"); err != nil {
		t.Fatal(err)
	}
	s.ExpireTokens()
	if got, err := get(t, c, "instance-id"); !good(got, err) {
		t.Errorf("%q, %v", got, err)
	}
	var seen []string
	for _, r := range s.Requests() {
		seen = append(seen, r.Method+" "+r.Token)
	}
	want := []string{"PUT none", "GET good", "GET bad", "PUT none", "GET good"}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		fault fakeaws.Fault
		want  func(string, error) bool
	}{
		{"500 once is retried", fakeaws.Fault{Path: "meta-data/instance-id", Status: 500, Times: 1}, good},
		{"500", fakeaws.Fault{Path: "meta-data/instance-id", Status: 500}, answers(500)},
		{"404", fakeaws.Fault{Path: "/latest/meta-data/*", Status: 404}, answers(404)},
		{"410", fakeaws.Fault{Path: "meta-data/*", Status: 410}, answers(410)},
		{"429", fakeaws.Fault{Status: 429, Method: "GET"}, answers(429)},
		{"other path", fakeaws.Fault{Path: "meta-data/instance", Status: 500}, good},
		{"other method", fakeaws.Fault{Path: "meta-data/*", Method: "PUT", Status: 500}, good},
		{"token forbidden", fakeaws.Fault{Path: "/latest/api/token", Status: 403}, func(_ string, err error) bool {
			return err != nil && strings.Contains(err.Error(), "403") // the SDK does not wrap it
		}},
		{"slow", fakeaws.Fault{Path: "api/token", Delay: 50 * time.Millisecond}, good},
		{"truncated", fakeaws.Fault{Path: "meta-data/*", Truncate: true}, func(_ string, err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		{"reset", fakeaws.Fault{Path: "meta-data/*", Reset: true}, fails},
		{"body", fakeaws.Fault{Path: "meta-data/*", Status: 200, Body: "<html>"}, func(s string, err error) bool { return err == nil && s == "<html>" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, fakeaws.Options{})
			if err := s.AddFault(tt.fault); err != nil {
				t.Fatal(err)
			}
			if got, err := get(t, client(s), "instance-id"); !tt.want(got, err) {
				t.Errorf("%q, %v", got, err)
			}
			s.ClearFaults()
			if got, err := get(t, client(s), "instance-id"); !good(got, err) {
				t.Errorf("after the fault: %q, %v", got, err)
			}
		})
	}
}

func good(s string, err error) bool  { return err == nil && s == "i-0abc1234567890def" }
func fails(_ string, err error) bool { return err != nil }
func answers(code int) func(string, error) bool {
	return func(_ string, err error) bool { return status(err) == code }
}

// A hop limit of 1, seen from a container: TCP connects, no token comes.
func TestHangingToken(t *testing.T) {
	t.Parallel()
	s := start(t, fakeaws.Options{})
	if err := s.AddFault(fakeaws.Fault{Path: "api/token", Hang: true}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := client(s).GetMetadata(ctx, &imds.GetMetadataInput{Path: "instance-id"})
	if err == nil || ctx.Err() == nil {
		t.Errorf("%v, want the deadline's error", err)
	}
	conn, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatalf("TCP does not connect: %v", err)
	}
	_ = conn.Close()
	// Close does not wait for what hangs; Cleanup would tell.
}

func TestBadFaults(t *testing.T) {
	t.Parallel()
	s := start(t, fakeaws.Options{Control: "127.0.0.1:0"})
	for _, q := range []string{
		"path=x", "status=500&hang=true", "status=99", "status=x", "sttus=500", "ms=-1", "status=500&times=-1", "status=500&method=POST",
	} {
		if got, _, _ := do(t, "POST", "http://"+s.ControlAddr()+"/fault?"+q, nil); got != 400 {
			t.Errorf("POST /fault?%s: %d, want 400", q, got)
		}
	}
	if n := len(s.Faults()); n != 0 {
		t.Errorf("%d faults in force after refused requests", n)
	}
}

func TestControlPort(t *testing.T) {
	t.Parallel()
	s := start(t, fakeaws.Options{Control: "127.0.0.1:0"})
	base := "http://" + s.ControlAddr()
	send := func(method, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	for _, r := range [][3]string{
		{"PUT", "/tag?key=amsagent:role", "origin"},
		{"DELETE", "/tag?key=Name", ""},
		{"PUT", "/item?path=spot/termination-time", "2026-11-20T08:22:00Z"},
		{"PATCH", "/instance", `{"id":"i-2","nics":[{"mac":"0e:1","ipv4s":["10.0.0.2"]}]}`},
		{"POST", "/fault?path=meta-data/instance-type&status=403&times=3&ms=1", ""},
		{"POST", "/expire-tokens", ""},
	} {
		if got, body := send(r[0], r[1], r[2]); got != 200 {
			t.Fatalf("%s %s: %d %s", r[0], r[1], got, body)
		}
	}
	c := client(s)
	for path, want := range map[string]string{
		"tags/instance/amsagent:role": "origin", "spot/termination-time": "2026-11-20T08:22:00Z",
		"instance-id": "i-2", "local-ipv4": "10.0.0.2", "placement/region": "eu-west-1",
	} {
		if got, err := get(t, c, path); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
	if _, err := get(t, c, "tags/instance/Name"); status(err) != 404 {
		t.Errorf("a deleted tag: %v", err)
	}
	want := []fakeaws.Fault{{Path: "meta-data/instance-type", Status: 403, Times: 3, Delay: time.Millisecond}}
	if diff := cmp.Diff(want, s.Faults()); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
	for path, want := range map[string]int{"/requests": 200, "/instance": 200, "/fault": 200} {
		if got, body := send("GET", path, ""); got != want || !strings.HasPrefix(strings.TrimSpace(body), "[") && path != "/instance" {
			t.Errorf("GET %s: %d %s", path, got, body)
		}
	}
	for _, r := range [][3]string{{"PATCH", "/instance", `{"idd":"x"}`}, {"PUT", "/tag", "x"}, {"PATCH", "/instance", "x"}} {
		if got, _ := send(r[0], r[1], r[2]); got != 400 {
			t.Errorf("%s %s %s: %d, want 400", r[0], r[1], r[2], got)
		}
	}
}
