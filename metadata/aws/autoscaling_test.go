// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// apiInMemory is the Auto Scaling API without a network.
type apiInMemory struct {
	mu      sync.Mutex
	calls   []apiCall
	answers []answer // one after the other, the last for good
}

// answer is what the API does with one call.
type answer struct {
	status int
	body   string
	err    error
	hang   bool
}

type apiCall struct {
	url, auth, token string
	form             url.Values
}

// named is an error for a request that does not say that it is ours.
func named(req *http.Request) error {
	if !strings.HasPrefix(req.UserAgent(), cloud.UserAgent) {
		return fmt.Errorf("the request says that it is %q", req.UserAgent())
	}
	return nil
}

// RoundTrip implements http.RoundTripper.
func (a *apiInMemory) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := named(req); err != nil {
		return nil, err
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	a.calls = append(a.calls, apiCall{
		req.Method + " " + req.URL.String(), req.Header.Get("Authorization"), req.Header.Get("X-Amz-Security-Token"), form,
	})
	next := a.answers[0]
	if len(a.answers) > 1 {
		a.answers = a.answers[1:]
	}
	a.mu.Unlock()
	switch {
	case next.hang:
		<-req.Context().Done()
		return nil, req.Context().Err()
	case next.err != nil:
		return nil, next.err
	}
	return reply(req, next.status, next.body), nil
}

func xmlAnswer(status int, body string) answer { return answer{status: status, body: body} }

func xmlError(status int, code, message string) answer {
	return xmlAnswer(status, `<ErrorResponse xmlns="http://autoscaling.amazonaws.com/doc/2011-01-01/"><Error><Type>Sender</Type><Code>`+code+
		`</Code><Message>`+message+`</Message></Error><RequestId>7c6e177f-f082-11e1-ac58-3714bEXAMPLE</RequestId></ErrorResponse>`)
}

func xmlDone(action string) answer {
	return xmlAnswer(http.StatusOK, `<`+action+`Response xmlns="http://autoscaling.amazonaws.com/doc/2011-01-01/"><`+action+
		`Result/><ResponseMetadata><RequestId>7c6e177f-f082-11e1-ac58-3714bEXAMPLE</RequestId></ResponseMetadata></`+action+`Response>`)
}

const credentials = `{"Code":"Success","LastUpdated":"2026-11-20T08:00:00Z","Type":"AWS-HMAC","AccessKeyId":"ASIAEXAMPLE%d","SecretAccessKey":"s","Token":"t%d","Expiration":"2099-01-01T00:00:00Z"}`

// instanceWithRole is the metadata of an instance whose role gives other credentials with every reading.
func instanceWithRole() *imdsInMemory {
	m := newIMDS()
	m.set("dynamic/instance-identity/document", document(`"10.0.1.23"`))
	m.set("services/domain", "amazonaws.com")
	m.set("services/partition", "aws")
	m.set("iam/security-credentials/", "ams-node")
	n := 0
	m.breakWith(func(path string) (int, string, bool) {
		if path != "iam/security-credentials/ams-node" {
			return 0, "", false
		}
		n++
		return http.StatusOK, fmt.Sprintf(credentials, n, n), false
	})
	return m
}

func openAPI(t *testing.T, imds *imdsInMemory, o aws.AutoScalingOptions, answers ...answer) (*aws.AutoScaling, *apiInMemory, *locked.Buffer) {
	t.Helper()
	log := &locked.Buffer{}
	p, err := aws.New(cloud.Options{Transport: imds, RetryWait: time.Millisecond, Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	must.OK(t, err)
	api := &apiInMemory{answers: answers}
	o.Transport = api
	a, err := p.AutoScaling(o)
	must.OK(t, err)
	return a, api, log
}

func TestAutoScalingWire(t *testing.T) {
	t.Parallel()
	a, api, log := openAPI(
		t, instanceWithRole(), aws.AutoScalingOptions{},
		xmlAnswer(200, `<DescribeAutoScalingInstancesResponse xmlns="http://autoscaling.amazonaws.com/doc/2011-01-01/"><DescribeAutoScalingInstancesResult>
			<AutoScalingInstances><member><AutoScalingGroupName>edge-asg</AutoScalingGroupName><InstanceId>i-0abc1234567890def</InstanceId>
			<LifecycleState>Terminating:Wait</LifecycleState></member></AutoScalingInstances></DescribeAutoScalingInstancesResult></DescribeAutoScalingInstancesResponse>`),
		xmlAnswer(200, `<?xml version="1.0"?><DescribeLifecycleHooksResponse xmlns="http://autoscaling.amazonaws.com/doc/2011-01-01/"><DescribeLifecycleHooksResult><LifecycleHooks>
			<member><LifecycleHookName>z</LifecycleHookName><LifecycleTransition>autoscaling:EC2_INSTANCE_TERMINATING</LifecycleTransition><HeartbeatTimeout>300</HeartbeatTimeout><GlobalTimeout>30000</GlobalTimeout></member>
			<member><LifecycleHookName>up</LifecycleHookName><LifecycleTransition>autoscaling:EC2_INSTANCE_LAUNCHING</LifecycleTransition></member>
			<member><LifecycleHookName>other</LifecycleHookName><LifecycleTransition>autoscaling:EC2_INSTANCE_DREAMING</LifecycleTransition></member>
			</LifecycleHooks></DescribeLifecycleHooksResult></DescribeLifecycleHooksResponse>`),
		xmlDone("RecordLifecycleActionHeartbeat"), xmlDone("CompleteLifecycleAction"), xmlDone("CompleteLifecycleAction"),
	)
	ctx := t.Context()
	m, err := a.Membership(ctx)
	if err != nil || m == nil || *m != (aws.Membership{Group: "edge-asg", State: "Terminating:Wait"}) {
		t.Fatal(m, err)
	}
	hooks, err := a.Hooks(ctx, "edge-asg")
	if diff := cmp.Diff([]aws.LifecycleHook{
		{Name: "up", Launching: true},
		{Name: "z", Timeout: 5 * time.Minute, Limit: 30000 * time.Second},
	}, hooks); diff != "" || err != nil {
		t.Error(diff, err)
	}
	for _, err := range []error{
		a.Heartbeat(ctx, aws.Action{Group: "edge-asg", Hook: "z"}),
		a.Complete(ctx, aws.Action{Group: "edge-asg", Hook: "z"}),
		a.Complete(ctx, aws.Action{Group: "edge-asg", Hook: "up", Token: "tok"}),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	var forms []string
	for _, c := range api.calls {
		forms = append(forms, c.form.Encode())
		if c.url != "POST https://autoscaling.eu-west-1.amazonaws.com/" || c.token != "t1" ||
			!strings.HasPrefix(c.auth, "AWS4-HMAC-SHA256 Credential=ASIAEXAMPLE1/") || !strings.Contains(c.auth, "/eu-west-1/autoscaling/aws4_request") {
			t.Errorf("%+v", c)
		}
	}
	want := []string{
		"Action=DescribeAutoScalingInstances&InstanceIds.member.1=i-0abc1234567890def&Version=2011-01-01",
		"Action=DescribeLifecycleHooks&AutoScalingGroupName=edge-asg&Version=2011-01-01",
		"Action=RecordLifecycleActionHeartbeat&AutoScalingGroupName=edge-asg&InstanceId=i-0abc1234567890def&LifecycleHookName=z&Version=2011-01-01",
		"Action=CompleteLifecycleAction&AutoScalingGroupName=edge-asg&InstanceId=i-0abc1234567890def&LifecycleActionResult=CONTINUE&LifecycleHookName=z&Version=2011-01-01",
		"Action=CompleteLifecycleAction&AutoScalingGroupName=edge-asg&InstanceId=i-0abc1234567890def&LifecycleActionResult=CONTINUE&LifecycleActionToken=tok&LifecycleHookName=up&Version=2011-01-01",
	}
	if diff := cmp.Diff(want, forms); diff != "" {
		t.Error(diff)
	}
	if strings.Contains(log.String(), "again") {
		t.Errorf("log:\n%s", log)
	}
}

// TestAutoScalingPlace holds where the API is looked for: what the metadata says, and where it says nothing what the
// region means.
func TestAutoScalingPlace(t *testing.T) {
	t.Parallel()
	china := strings.ReplaceAll(document(`"10.0.1.23"`), "eu-west-1", "cn-north-1")
	gov := strings.ReplaceAll(document(`"10.0.1.23"`), "eu-west-1", "us-gov-west-1")
	for _, tt := range []struct{ name, document, domain, partition, given, url, arn string }{
		{"told", china, "amazonaws.com.cn", "aws-cn", "", "POST https://autoscaling.cn-north-1.amazonaws.com.cn/", "arn:aws-cn:autoscaling:cn-north-1:111122223333:autoScalingGroup:*:autoScalingGroupName/g"},
		{"not told, China", china, "", "", "", "POST https://autoscaling.cn-north-1.amazonaws.com.cn/", "arn:aws-cn:autoscaling:cn-north-1:"},
		{"not told, GovCloud", gov, "", "", "", "POST https://autoscaling.us-gov-west-1.amazonaws.com/", "arn:aws-us-gov:autoscaling:us-gov-west-1:"},
		{"a new partition", document("null"), "cloud.example", "aws-iso-x", "", "POST https://autoscaling.eu-west-1.cloud.example/", "arn:aws-iso-x:"},
		{"IPv6 alone", document("null"), "", "", "", "POST https://autoscaling.eu-west-1.api.aws/", "arn:aws:autoscaling:eu-west-1:"},
		{"IPv6 alone, China", strings.ReplaceAll(china, `"10.0.1.23"`, "null"), "", "", "", "POST https://autoscaling.cn-north-1.amazonaws.com.cn/", "arn:aws-cn:"},
		{"given", document("null"), "amazonaws.com", "aws", "http://127.0.0.1:9/", "POST http://127.0.0.1:9/", "arn:aws:autoscaling:eu-west-1:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			imds := instanceWithRole()
			imds.set("dynamic/instance-identity/document", tt.document)
			imds.set("services/domain", tt.domain)
			imds.set("services/partition", tt.partition)
			a, api, _ := openAPI(t, imds, aws.AutoScalingOptions{Endpoint: tt.given}, xmlDone("RecordLifecycleActionHeartbeat"))
			must.OK(t, a.Heartbeat(t.Context(), aws.Action{Group: "g", Hook: "h"}))
			if api.calls[0].url != tt.url {
				t.Error(api.calls[0].url)
			}
			if p := a.Policy("g"); !strings.Contains(p, tt.arn) || !json.Valid([]byte(p)) {
				t.Error(p)
			}
		})
	}
	p, err := aws.New(cloud.Options{})
	must.OK(t, err)
	if _, err := p.AutoScaling(aws.AutoScalingOptions{Endpoint: "http://user:secret@x/path"}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}

// Without IPv4 both names are tried in turn: a VPC endpoint may have the usual one alone.
func TestAutoScalingDualStack(t *testing.T) {
	t.Parallel()
	imds := instanceWithRole()
	imds.set("dynamic/instance-identity/document", document("null"))
	none := answer{err: &net.DNSError{Err: "no such host"}}
	a, api, _ := openAPI(t, imds, aws.AutoScalingOptions{}, none, xmlDone("RecordLifecycleActionHeartbeat"))
	for range 2 {
		must.OK(t, a.Heartbeat(t.Context(), aws.Action{Group: "g", Hook: "h"}))
	}
	var urls []string
	for _, c := range api.calls {
		urls = append(urls, c.url)
	}
	usual := "POST https://autoscaling.eu-west-1.amazonaws.com/"
	if diff := cmp.Diff([]string{"POST https://autoscaling.eu-west-1.api.aws/", usual, usual}, urls); diff != "" {
		t.Error(diff)
	}
}

func TestAutoScalingErrors(t *testing.T) {
	t.Parallel()
	refused := answer{err: errors.New("connection refused")}
	policy := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["autoscaling:CompleteLifecycleAction","autoscaling:RecordLifecycleActionHeartbeat"],` +
		`"Resource":"arn:aws:autoscaling:eu-west-1:111122223333:autoScalingGroup:*:autoScalingGroupName/g"},` +
		`{"Effect":"Allow","Action":["autoscaling:DescribeAutoScalingInstances","autoscaling:DescribeLifecycleHooks"],"Resource":"*"}]}`
	denied := func(reason string) error {
		return &aws.DeniedError{Action: "autoscaling:CompleteLifecycleAction", Policy: policy, Reason: reason}
	}
	for _, tt := range []struct {
		name    string
		answers []answer
		want    error // matched, or compared with a *DeniedError
		text    string
		calls   int
	}{
		{"no action", list(xmlError(400, "ValidationError", "No active Lifecycle Action found with instance ID i-0abc1234567890def")), aws.ErrNoAction, "", 1},
		{"no group", list(xmlError(400, "ValidationError", "AutoScalingGroup name not found - null")), aws.ErrNoGroup, "", 1},
		{"invalid", list(xmlError(400, "ValidationError", "1 validation error detected")), nil, "ValidationError: 1 validation error", 1},
		{"denied", list(xmlError(403, "AccessDenied", "User: x is not authorized")), denied("User: x is not authorized"), "", 1},
		{"throttled once", list(xmlError(400, "Throttling", "Rate exceeded"), xmlDone("CompleteLifecycleAction")), nil, "", 2},
		{"throttled", list(xmlError(400, "Throttling", "Rate exceeded")), nil, "Throttling: Rate exceeded", 3},
		{"contention", list(xmlError(500, "ResourceContention", "pending update"), xmlDone("CompleteLifecycleAction")), nil, "", 2},
		{"500", list(xmlError(500, "InternalFailure", "x"), xmlDone("CompleteLifecycleAction")), nil, "", 2},
		{"a new kind of 500", list(xmlError(503, "Tired", "x")), nil, "Tired: x (HTTP 503)", 3},
		{"a page", list(xmlAnswer(502, "<html>Bad Gateway</html>")), nil, "HTTP 502", 3},
		{"a page as a success", list(xmlAnswer(200, "<html><p>login"), xmlDone("CompleteLifecycleAction")), nil, "", 2},
		{"nothing as a success", list(xmlAnswer(200, "")), nil, "not one of the Auto Scaling API (HTTP 200, 0 bytes)", 3},
		{"another answer", list(xmlDone("DescribeLifecycleHooks"), xmlDone("CompleteLifecycleAction")), nil, "", 2},
		{"cut", list(xmlAnswer(200, "<CompleteLifecycleActionResponse><x>")), nil, "not one of the Auto Scaling API (HTTP 200, 36 bytes)", 3},
		{"two answers", list(xmlAnswer(200, "<CompleteLifecycleActionResponse/><CompleteLifecycleActionResponse/>")), nil, "not one of the Auto Scaling API", 3},
		{"an error as a success", list(xmlAnswer(200, xmlError(200, "AccessDenied", "x").body)), nil, "not one of the Auto Scaling API", 3},
		{"a page as a refusal", list(xmlAnswer(403, "<html><Error><Code>x</Code></Error></html>")), nil, "not one of the Auto Scaling API (HTTP 403", 3},
		{"a redirect", list(xmlAnswer(302, "")), nil, "not one of the Auto Scaling API (HTTP 302", 3},
		{"too much", list(xmlAnswer(200, "<aResponse>"+strings.Repeat("x", cloud.MaxBody))), nil, "not one of the Auto Scaling API", 3},
		{"unreachable", list(refused), nil, "cannot be reached: connection refused", 3},
		{"expired", list(xmlError(403, "ExpiredToken", "expired"), xmlDone("CompleteLifecycleAction")), nil, "", 2},
		{"expired for ever", list(xmlError(403, "ExpiredToken", "expired")), nil, "ExpiredToken", 2},
		{"clock", list(xmlError(403, "RequestExpired", "Request has expired"), xmlDone("CompleteLifecycleAction")), nil, "", 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a, api, log := openAPI(t, instanceWithRole(), aws.AutoScalingOptions{}, tt.answers...)
			err := a.Complete(t.Context(), aws.Action{Group: "g", Hook: "h"})
			want, isDenied := errors.AsType[*aws.DeniedError](tt.want)
			switch got, _ := errors.AsType[*aws.DeniedError](err); {
			case isDenied:
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
			case tt.want != nil:
				if !errors.Is(err, tt.want) {
					t.Error(err)
				}
			case tt.text == "":
				if err != nil {
					t.Error(err)
				}
			case err == nil || !strings.Contains(err.Error(), tt.text):
				t.Error(err)
			}
			if len(api.calls) != tt.calls {
				t.Errorf("%d calls, want %d:\n%s", len(api.calls), tt.calls, log)
			}
			if tt.name == "expired" && (api.calls[0].token == api.calls[1].token) {
				t.Error("the credentials were not fetched again")
			}
			lines := strings.Count(log.String(), "trying again") + strings.Count(log.String(), "have ended")
			if lines != tt.calls-1 {
				t.Errorf("%d retries and %d lines:\n%s", tt.calls-1, lines, log)
			}
		})
	}
}

func list[T any](v ...T) []T { return v }

// TestAutoScalingClock holds that a machine whose clock is wrong is heard: the API says what time it is.
func TestAutoScalingClock(t *testing.T) {
	t.Parallel()
	ahead := time.Now().Add(3 * time.Hour)
	var signed []time.Time
	clock := roundTripper(func(req *http.Request) (*http.Response, error) {
		at, err := time.Parse("20060102T150405Z", req.Header.Get("X-Amz-Date"))
		if err != nil {
			return nil, err
		}
		signed = append(signed, at)
		next := xmlDone("RecordLifecycleActionHeartbeat")
		if at.Before(ahead.Add(-5 * time.Minute)) {
			next = xmlError(http.StatusForbidden, "RequestExpired", "Request has expired")
		}
		resp := reply(req, next.status, next.body)
		resp.Header = http.Header{"Date": {ahead.UTC().Format(http.TimeFormat)}}
		return resp, nil
	})
	p, err := aws.New(cloud.Options{Transport: instanceWithRole(), RetryWait: time.Millisecond})
	must.OK(t, err)
	a, err := p.AutoScaling(aws.AutoScalingOptions{Transport: clock})
	must.OK(t, err)
	for range 2 {
		if err := a.Heartbeat(t.Context(), aws.Action{Group: "g", Hook: "h"}); err != nil {
			t.Error(err)
		}
	}
	// The second call is right at once.
	if len(signed) != 3 || signed[1].Sub(ahead).Abs() > time.Minute || signed[2].Sub(ahead).Abs() > time.Minute {
		t.Errorf("signed at %v, and it is %v", signed, ahead)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestReadXML(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		body, root string
		found      []map[string]string
		fails      bool
	}{
		{body: "", fails: true},
		{body: "<?xml version='1.0'?>", fails: true},
		{body: "<a/>", root: "a"},
		{body: "<a><member><x>1 &amp; 2</x><y/></member>\n<member></member></a>", root: "a", found: []map[string]string{{"x": "1 & 2"}, {}}},
		{body: "<a><b><member><x>1</x><z><x>2</x><member><x>3</x></member></z><y><![CDATA[<4>]]></y></member></b><x>5</x></a>", root: "a", found: []map[string]string{{"x": "1", "y": "<4>"}}},
		{body: "<n:a xmlns:n='u'><n:member><n:x>1</n:x></n:member></n:a>", root: "a", found: []map[string]string{{"x": "1"}}},
		{body: "<member><x>1</x></member>", root: "member", found: []map[string]string{{"x": "1"}}},
		{body: "<a></b>", fails: true},
		{body: "<a>", fails: true},
		{body: "<a/><a/>", fails: true},
		{body: "no document", fails: true},
	} {
		root, found, err := aws.ReadXML([]byte(tt.body), "member")
		if (err != nil) != tt.fails || root != tt.root || !cmp.Equal(found, tt.found) {
			t.Errorf("%s: %q, %v, %v", tt.body, root, found, err)
		}
	}
}

func FuzzReadXML(f *testing.F) {
	f.Add([]byte("<a><b><member><x>1</x><z><x>2</x><member><x>3</x></member></z></member></b></a>"))
	f.Add([]byte("<ErrorResponse><Error><Code>c</Code></Error></ErrorResponse>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if root, found, err := aws.ReadXML(b, "member"); err != nil && (root != "" || found != nil) || err == nil && root == "" {
			t.Errorf("%q, %v, %v", root, found, err)
		}
	})
}

// TestAutoScalingNoRole holds that a machine without a role is told what is missing as one without permissions is.
func TestAutoScalingNoRole(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*imdsInMemory){
		"no role": func(m *imdsInMemory) { m.set("iam/security-credentials/", "") },
		"role that cannot be taken on": func(m *imdsInMemory) {
			m.breakWith(func(path string) (int, string, bool) {
				return at(path == "iam/security-credentials/ams-node", 200), `{"Code":"AssumeRoleUnauthorizedAccess","Message":"EC2 cannot assume the role ams-node"}`, false
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			imds := instanceWithRole()
			change(imds)
			a, api, _ := openAPI(t, imds, aws.AutoScalingOptions{}, xmlDone("x"))
			_, err := a.Hooks(t.Context(), "g")
			d, ok := errors.AsType[*aws.DeniedError](err)
			if !ok || d.Action != "autoscaling:DescribeLifecycleHooks" || !strings.Contains(d.Reason, "role") || !strings.Contains(d.Policy, "autoScalingGroupName/g") {
				t.Error(err)
			}
			if len(api.calls) != 0 {
				t.Error("the API was called without credentials")
			}
		})
	}
}

// TestAutoScalingBound holds that a call ends in time whoever is silent, and at once when its caller goes.
func TestAutoScalingBound(t *testing.T) {
	t.Parallel()
	silent := answer{hang: true}
	hang := func(path string) (int, string, bool) { return 0, "", true }
	for name, imdsHangs := range map[string]bool{"the API": false, "the metadata": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			imds := instanceWithRole()
			if imdsHangs {
				imds.breakWith(hang)
			}
			a, _, _ := openAPI(t, imds, aws.AutoScalingOptions{Timeout: 200 * time.Millisecond}, silent)
			began := time.Now()
			err := a.Complete(t.Context(), aws.Action{Group: "g", Hook: "h"})
			if took := time.Since(began); err == nil || took > time.Minute {
				t.Errorf("%v after %v", err, took)
			}
			if !imdsHangs && !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			began = time.Now()
			a, _, _ = openAPI(t, imds, aws.AutoScalingOptions{Timeout: time.Hour}, silent)
			if err := a.Complete(ctx, aws.Action{Group: "g", Hook: "h"}); err == nil || time.Since(began) > time.Minute {
				t.Errorf("%v after %v", err, time.Since(began))
			}
		})
	}
}
