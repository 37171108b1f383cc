// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

// apiInMemory is the Auto Scaling API without a network.
type apiInMemory struct {
	mu      sync.Mutex
	calls   []apiCall
	answers []answer // in this order; the last one repeats
}

// answer is the answer of the API to one call.
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

// named is an error for a request without the User-Agent of the agent.
func named(req *http.Request) error {
	if !strings.HasPrefix(req.UserAgent(), cloud.UserAgent) {
		return fmt.Errorf("the User-Agent of the request is %q", req.UserAgent())
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
	return metadatatest.Answer(req, next.status, next.body), nil
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

// instanceWithRole is the metadata of an instance whose role returns other credentials at each reading.
func instanceWithRole() *imdsInMemory {
	m := newIMDS()
	m.set("dynamic/instance-identity/document", document(`"10.0.1.23"`))
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

func openAPI(t *testing.T, imds *imdsInMemory, endpoint string, answers ...answer) (*aws.Provider, *apiInMemory, *locked.Buffer) {
	t.Helper()
	log := &locked.Buffer{}
	api := &apiInMemory{answers: answers}
	p, err := aws.New(cloud.Options{
		Transport: imds, APITransport: api, RetryWait: time.Millisecond, Endpoints: map[string]string{aws.EndpointAutoScaling: endpoint},
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	must.OK(t, err)
	return p, api, log
}

// member is the answer about this instance in a group.
func member(group, state string) answer {
	return xmlAnswer(200, `<DescribeAutoScalingInstancesResponse xmlns="http://autoscaling.amazonaws.com/doc/2011-01-01/"><DescribeAutoScalingInstancesResult>
		<AutoScalingInstances><member><AutoScalingGroupName>`+group+`</AutoScalingGroupName><InstanceId>i-0abc1234567890def</InstanceId>
		<LifecycleState>`+state+`</LifecycleState></member></AutoScalingInstances></DescribeAutoScalingInstancesResult></DescribeAutoScalingInstancesResponse>`)
}

func noMember() answer {
	return xmlAnswer(200, `<DescribeAutoScalingInstancesResponse><DescribeAutoScalingInstancesResult><AutoScalingInstances/></DescribeAutoScalingInstancesResult></DescribeAutoScalingInstancesResponse>`)
}

// twoHooks are the hooks of a group: one for each known transition, and one for another.
func twoHooks() answer {
	return xmlAnswer(200, `<?xml version="1.0"?><DescribeLifecycleHooksResponse xmlns="http://autoscaling.amazonaws.com/doc/2011-01-01/"><DescribeLifecycleHooksResult><LifecycleHooks>
		<member><LifecycleHookName>z</LifecycleHookName><LifecycleTransition>autoscaling:EC2_INSTANCE_TERMINATING</LifecycleTransition><DefaultResult>ABANDON</DefaultResult><HeartbeatTimeout>300</HeartbeatTimeout><GlobalTimeout>30000</GlobalTimeout></member>
		<member><LifecycleHookName>up</LifecycleHookName><LifecycleTransition>autoscaling:EC2_INSTANCE_LAUNCHING</LifecycleTransition></member>
		<member><LifecycleHookName>other</LifecycleHookName><LifecycleTransition>autoscaling:EC2_INSTANCE_DREAMING</LifecycleTransition></member>
		</LifecycleHooks></DescribeLifecycleHooksResult></DescribeLifecycleHooksResponse>`)
}

func notWaiting() answer {
	return xmlError(400, "ValidationError", "No active Lifecycle Action found with instance ID i-0abc1234567890def")
}

func hook(name string, launching bool) cloud.Hook {
	return cloud.Hook{Provider: "aws", Group: "edge-asg", Name: name, Launching: launching}
}

func TestHooksWire(t *testing.T) {
	t.Parallel()
	p, api, log := openAPI(
		t, instanceWithRole(), "",
		member("edge-asg", "Terminating:Wait"), twoHooks(), member("edge-asg", "Pending:Wait"), twoHooks(),
		xmlDone("RecordLifecycleActionHeartbeat"), xmlDone("CompleteLifecycleAction"),
	)
	ctx, hooks := t.Context(), p.Hooks()
	got, err := hooks.Pending(ctx, false)
	must.OK(t, err)
	if len(got) != 1 || time.Until(got[0].Limit).Round(time.Minute) != 500*time.Minute {
		t.Errorf("%+v", got)
	}
	ending := hook("z", false)
	ending.Timeout, ending.Abandons = 5*time.Minute, true
	got[0].Limit = time.Time{}
	if diff := cmp.Diff([]cloud.Hook{ending}, got); diff != "" {
		t.Error(diff)
	}
	got, err = hooks.Pending(ctx, true)
	if diff := cmp.Diff([]cloud.Hook{hook("up", true)}, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if waits, err := hooks.Extend(ctx, ending); err != nil || waits != 5*time.Minute {
		t.Error(waits, err)
	}
	ending.Token = "of another action, which came late"
	must.OK(t, hooks.Complete(ctx, ending))
	var forms []string
	for _, c := range api.calls {
		forms = append(forms, c.form.Encode())
		if c.url != "POST https://autoscaling.eu-west-1.amazonaws.com/" || c.token != "t1" ||
			!strings.HasPrefix(c.auth, "AWS4-HMAC-SHA256 Credential=ASIAEXAMPLE1/") || !strings.Contains(c.auth, "/eu-west-1/autoscaling/aws4_request") {
			t.Errorf("%+v", c)
		}
	}
	membership := "Action=DescribeAutoScalingInstances&InstanceIds.member.1=i-0abc1234567890def&Version=2011-01-01"
	list := "Action=DescribeLifecycleHooks&AutoScalingGroupName=edge-asg&Version=2011-01-01"
	want := []string{
		membership, list, membership, list,
		"Action=RecordLifecycleActionHeartbeat&AutoScalingGroupName=edge-asg&InstanceId=i-0abc1234567890def&LifecycleHookName=z&Version=2011-01-01",
		"Action=CompleteLifecycleAction&AutoScalingGroupName=edge-asg&InstanceId=i-0abc1234567890def&LifecycleActionResult=CONTINUE&LifecycleHookName=z&Version=2011-01-01",
	}
	if diff := cmp.Diff(want, forms); diff != "" {
		t.Error(diff)
	}
	if strings.Contains(log.String(), "again") {
		t.Errorf("log:\n%s", log)
	}
}

// TestHooksPlace checks the address of the API.
func TestHooksPlace(t *testing.T) {
	t.Parallel()
	in := func(region, ip string) string { return strings.ReplaceAll(document(ip), "eu-west-1", region) }
	for _, tt := range []struct{ name, document, given, url, arn string }{
		{"Europe", document(`"10.0.1.23"`), "", "POST https://autoscaling.eu-west-1.amazonaws.com/", "arn:aws:autoscaling:eu-west-1:111122223333:autoScalingGroup:*:autoScalingGroupName/edge-asg"},
		{"China", in("cn-north-1", `"10.0.1.23"`), "", "POST https://autoscaling.cn-north-1.amazonaws.com.cn/", "arn:aws-cn:autoscaling:cn-north-1:"},
		{"GovCloud", in("us-gov-west-1", `"10.0.1.23"`), "", "POST https://autoscaling.us-gov-west-1.amazonaws.com/", "arn:aws-us-gov:autoscaling:us-gov-west-1:"},
		{"IPv6 alone", document("null"), "", "POST https://autoscaling.eu-west-1.api.aws/", "arn:aws:autoscaling:eu-west-1:"},
		{"given", document("null"), "http://127.0.0.1:9/", "POST http://127.0.0.1:9/", "arn:aws:autoscaling:eu-west-1:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			imds := instanceWithRole()
			imds.set("dynamic/instance-identity/document", tt.document)
			p, api, _ := openAPI(t, imds, tt.given, xmlError(403, "AccessDenied", "no"))
			denied, ok := errors.AsType[*cloud.DeniedError](p.Hooks().Complete(t.Context(), hook("h", false)))
			if !ok || !strings.Contains(denied.Policy, tt.arn) {
				t.Errorf("%+v", denied)
			}
			if api.calls[0].url != tt.url {
				t.Error(api.calls[0].url)
			}
		})
	}
	if _, err := aws.New(cloud.Options{Endpoints: map[string]string{aws.EndpointAutoScaling: "http://user:secret@x/path"}}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}

func TestHooksErrors(t *testing.T) {
	t.Parallel()
	done := xmlDone("CompleteLifecycleAction")
	policy := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["autoscaling:CompleteLifecycleAction","autoscaling:RecordLifecycleActionHeartbeat"],` +
		`"Resource":"arn:aws:autoscaling:eu-west-1:111122223333:autoScalingGroup:*:autoScalingGroupName/edge-asg"},` +
		`{"Effect":"Allow","Action":["autoscaling:DescribeAutoScalingInstances","autoscaling:DescribeLifecycleHooks"],"Resource":"*"}]}`
	denied := &cloud.DeniedError{Permission: "autoscaling:CompleteLifecycleAction", Policy: policy, Reason: "User: x is not authorized", Provider: "aws", Group: "edge-asg"}
	for _, tt := range []struct {
		name    string
		answers []answer
		want    error // matched, or compared with a *DeniedError
		text    string
		calls   int
	}{
		{"not waiting yet", list(notWaiting(), member("edge-asg", "Terminating:Wait")), cloud.ErrNotWaiting, "the instance is Terminating:Wait", 2},
		{"the API lags behind", list(notWaiting(), member("edge-asg", "InService")), cloud.ErrNotWaiting, "", 2},
		{"completed by another program", list(notWaiting(), member("edge-asg", "Terminating:Proceed")), cloud.ErrGone, "", 2},
		{"retained", list(notWaiting(), member("edge-asg", "Terminating:Retained")), cloud.ErrGone, "", 2},
		{"detached", list(notWaiting(), member("edge-asg", "Detached")), cloud.ErrGone, "", 2},
		{"in no group any more", list(notWaiting(), noMember()), cloud.ErrGone, "in no group", 2},
		{"in another group", list(notWaiting(), member("new-asg", "Terminating:Wait")), cloud.ErrMoved, "in group new-asg now", 2},
		{"not waiting, and the state is denied", list(notWaiting(), xmlError(403, "AccessDenied", "no")), cloud.ErrNotWaiting, "", 2},
		{"no group", list(xmlError(400, "ValidationError", "AutoScalingGroup name not found - null")), cloud.ErrGone, "", 1},
		{"invalid", list(xmlError(400, "ValidationError", "1 validation error detected")), nil, "ValidationError: 1 validation error", 1},
		{"denied", list(xmlError(403, "AccessDenied", "User: x is not authorized")), denied, "", 1},
		{"throttled once", list(xmlError(400, "Throttling", "Rate exceeded"), done), nil, "", 2},
		{"throttled", list(xmlError(400, "Throttling", "Rate exceeded")), nil, "Throttling: Rate exceeded", 3},
		{"contention", list(xmlError(500, "ResourceContention", "pending update"), done), nil, "", 2},
		{"500", list(xmlError(500, "InternalFailure", "x"), done), nil, "", 2},
		{"a page", list(xmlAnswer(502, "<html>Bad Gateway</html>")), nil, "calling CompleteLifecycleAction", 3},
		{"nothing as a success", list(xmlAnswer(200, ""), done), nil, "", 2},
		{"a page as a success", list(xmlAnswer(200, "<html><p>login"), done), nil, "", 2},
		{"unreachable", list(answer{err: errors.New("connection refused")}), nil, "the Auto Scaling API cannot be reached: connection refused", 3},
		{"expired", list(xmlError(403, "ExpiredToken", "expired"), done), nil, "", 2},
		{"expired for ever", list(xmlError(403, "ExpiredToken", "expired")), nil, "ExpiredToken", 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, api, log := openAPI(t, instanceWithRole(), "", tt.answers...)
			err := p.Hooks().Complete(t.Context(), hook("z", false))
			if want, ok := errors.AsType[*cloud.DeniedError](tt.want); ok {
				got, _ := errors.AsType[*cloud.DeniedError](err)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
			} else if tt.want != nil && !errors.Is(err, tt.want) || tt.want == nil && tt.text == "" && err != nil ||
				tt.text != "" && (err == nil || !strings.Contains(err.Error(), tt.text)) {
				t.Error(err)
			}
			if len(api.calls) != tt.calls {
				t.Errorf("%d calls, want %d:\n%s", len(api.calls), tt.calls, log)
			}
			if tt.name == "expired" && api.calls[0].token == api.calls[1].token {
				t.Error("the credentials were not fetched again")
			}
		})
	}
}

func list[T any](v ...T) []T { return v }

// A parked machine waits for no completion, and the launch hook of a machine in service is over.
func TestHooksOver(t *testing.T) {
	t.Parallel()
	parking := hook("z", false)
	parking.Parking = true
	for _, tt := range []struct {
		state string
		hook  cloud.Hook
		want  error
	}{
		{"Standby", parking, cloud.ErrGone},
		{"Warmed:Stopped", parking, cloud.ErrGone},
		{"Warmed:Stopped", hook("z", false), cloud.ErrNotWaiting},
		{"Warmed:Terminating:Wait", hook("z", false), cloud.ErrNotWaiting},
		{"Warmed:Terminating:Proceed", hook("z", false), cloud.ErrGone},
		{"InService", hook("up", true), cloud.ErrGone},
		{"Pending:Wait", hook("up", true), cloud.ErrNotWaiting},
		{"Pending:Proceed", hook("up", true), cloud.ErrGone},
		{"Terminating:Wait", hook("up", true), cloud.ErrGone},
	} {
		p, _, _ := openAPI(t, instanceWithRole(), "", notWaiting(), member("edge-asg", tt.state))
		if _, err := p.Hooks().Extend(t.Context(), tt.hook); !errors.Is(err, tt.want) {
			t.Errorf("%s, %+v: %v, want %v", tt.state, tt.hook, err, tt.want)
		}
	}
}

// If the permission for the state is missing, the tag of the group names the group; if the permission for the hooks is missing,
// the error names it.
func TestHooksDenied(t *testing.T) {
	t.Parallel()
	no := xmlError(403, "AccessDenied", "no")
	tagged := instanceWithRole()
	tagged.set("tags/instance/aws:autoscaling:groupName", "edge-asg")
	p, _, _ := openAPI(t, tagged, "", no, twoHooks())
	if got, err := p.Hooks().Pending(t.Context(), true); err != nil || len(got) != 1 || got[0].Group != "edge-asg" {
		t.Errorf("%+v, %v", got, err)
	}
	p, _, _ = openAPI(t, tagged, "", no)
	_, err := p.Hooks().Pending(t.Context(), true)
	if denied, ok := errors.AsType[*cloud.DeniedError](err); !ok || denied.Group != "edge-asg" || denied.Permission != "autoscaling:DescribeLifecycleHooks" {
		t.Errorf("%+v", err)
	}
	p, _, _ = openAPI(t, instanceWithRole(), "", no)
	_, err = p.Hooks().Pending(t.Context(), true)
	if denied, ok := errors.AsType[*cloud.DeniedError](err); !ok || denied.Permission != "autoscaling:DescribeAutoScalingInstances" {
		t.Errorf("%+v", err)
	}
	p, api, _ := openAPI(t, instanceWithRole(), "", noMember())
	if got, err := p.Hooks().Pending(t.Context(), false); got != nil || err != nil || len(api.calls) != 1 {
		t.Errorf("in no group: %+v, %v, %d calls", got, err, len(api.calls))
	}
}

// TestHooksClock checks that calls of a machine whose clock is wrong succeed: the API returns its time.
func TestHooksClock(t *testing.T) {
	t.Parallel()
	ahead := time.Now().Add(3 * time.Hour)
	var signed []time.Time
	clock := metadatatest.RoundTrip(func(req *http.Request) (*http.Response, error) {
		at, err := time.Parse("20060102T150405Z", req.Header.Get("X-Amz-Date"))
		if err != nil {
			return nil, err
		}
		signed = append(signed, at)
		next := xmlDone("CompleteLifecycleAction")
		if at.Before(ahead.Add(-5 * time.Minute)) {
			next = xmlError(http.StatusForbidden, "RequestExpired", "Request has expired")
		}
		resp := metadatatest.Answer(req, next.status, next.body)
		resp.Header = http.Header{"Date": {ahead.UTC().Format(http.TimeFormat)}}
		return resp, nil
	})
	p, err := aws.New(cloud.Options{Transport: instanceWithRole(), APITransport: clock, RetryWait: time.Millisecond})
	must.OK(t, err)
	must.OK(t, p.Hooks().Complete(t.Context(), hook("h", false)))
	if len(signed) != 2 || signed[1].Sub(ahead).Abs() > time.Minute {
		t.Errorf("signed at %v, and it is %v", signed, ahead)
	}
}

// TestHooksNoRole checks that a machine without a role gets the same error about permissions as one whose role lacks them.
func TestHooksNoRole(t *testing.T) {
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
			p, api, _ := openAPI(t, imds, "", xmlDone("x"))
			d, ok := errors.AsType[*cloud.DeniedError](p.Hooks().Complete(t.Context(), hook("h", false)))
			if !ok || d.Permission != "autoscaling:CompleteLifecycleAction" || !strings.Contains(d.Reason, "role") || !strings.Contains(d.Policy, "autoScalingGroupName/edge-asg") {
				t.Errorf("%+v", d)
			}
			if len(api.calls) != 0 {
				t.Error("the API was called without credentials")
			}
		})
	}
}

// TestHooksBound checks that a call ends with its context, even if a service does not answer.
func TestHooksBound(t *testing.T) {
	t.Parallel()
	for name, imdsHangs := range map[string]bool{"the API": false, "the metadata": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			imds := instanceWithRole()
			if imdsHangs {
				imds.breakWith(func(string) (int, string, bool) { return 0, "", true })
			}
			p, _, _ := openAPI(t, imds, "", answer{hang: true})
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			began := time.Now()
			if err := p.Hooks().Complete(ctx, hook("h", false)); err == nil || time.Since(began) > time.Minute {
				t.Errorf("%v after %v", err, time.Since(began))
			}
		})
	}
}

// TestCheck: the doctor's check of the hooks changes nothing.
func TestCheck(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		filter   cloud.Filter
		answers  []answer
		ours     int
		others   []string
		unproved string
		denied   string
	}{
		{"in no group", nil, list(noMember()), 0, nil, "", ""},
		{"in service", nil, list(member("edge-asg", "InService"), twoHooks(), notWaiting()), 1, nil, cloud.UnprovedComplete, ""},
		{"on its way out", nil, list(member("edge-asg", "Terminating:Wait"), twoHooks()), 1, nil, cloud.UnprovedBoth, ""},
		{"no heartbeat is allowed", nil, list(member("edge-asg", "InService"), twoHooks(), xmlError(403, "AccessDenied", "no")), 1, nil, cloud.UnprovedBoth, "autoscaling:RecordLifecycleActionHeartbeat"},
		{"another name is ours", cloud.Filter{"drain"}, list(member("edge-asg", "InService"), twoHooks()), 0, []string{"z"}, cloud.UnprovedBoth, ""},
		{"denied", nil, list(xmlError(403, "AccessDenied", "no")), 0, nil, "", "autoscaling:DescribeAutoScalingInstances"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, api, _ := openAPI(t, instanceWithRole(), "", tt.answers...)
			c, err := p.Check(t.Context(), tt.filter)
			denied, _ := errors.AsType[*cloud.DeniedError](err)
			if (denied != nil) != (tt.denied != "") || denied != nil && denied.Permission != tt.denied || denied == nil && err != nil {
				t.Errorf("%v", err)
			}
			if len(c.Ours) != tt.ours || !slices.Equal(c.Others, tt.others) || c.Unproved != tt.unproved {
				t.Errorf("%+v", c)
			}
			for _, call := range api.calls {
				if call.form.Get("Action") == "CompleteLifecycleAction" || call.form.Get("Action") == "RecordLifecycleActionHeartbeat" && call.form.Get("LifecycleActionToken") == "" {
					t.Errorf("%s", call.form.Encode())
				}
			}
		})
	}
}
