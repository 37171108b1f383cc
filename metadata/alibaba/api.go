// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// What a caller of the APIs may branch on, besides *DeniedError.
var (
	// ErrOver: no lifecycle action waits with this hook and this token, any more.
	ErrOver = errors.New("no lifecycle action waits with this token")
	// ErrLimit: the action waits, and cannot be made to wait longer than it does.
	ErrLimit = errors.New("the lifecycle action cannot be made to wait longer")
	// ErrOften: it was prolonged as often as it can be. It is an ErrLimit, which no shorter time mends.
	ErrOften = fmt.Errorf("%w, as often as it was", ErrLimit)
	// ErrThrottled: too many calls of this account. It is among what is tried again.
	ErrThrottled = errors.New("the API takes no more calls for the moment")
)

// DeniedError says that the RAM role of the instance may not make a call, or that the instance has no role.
type DeniedError struct {
	// Action is the permission that is missing, as policies spell it: ess:CompleteLifecycleAction.
	Action string
	// Policy is the smallest policy with which everything works, as JSON for the role.
	Policy string
	// Reason is what Alibaba Cloud says.
	Reason string
	// NoRole tells that there is no role at all.
	NoRole bool
}

// Error implements error.
func (e *DeniedError) Error() string {
	if e.NoRole {
		return e.Reason
	}
	return fmt.Sprintf("the RAM role of this instance lacks the permission %s: %s", e.Action, e.Reason)
}

// UnreachableError says that an API could not be spoken to.
type UnreachableError struct {
	Action string
	Cause  error
	hint   string
}

// Error implements error.
func (e *UnreachableError) Error() string {
	return fmt.Sprintf("calling %s: the API cannot be reached: %v", e.Action, e.Cause)
}

// Unwrap gives errors.Is and errors.As the cause.
func (e *UnreachableError) Unwrap() error { return e.Cause }

// Hint says what an operator can do.
func (e *UnreachableError) Hint() string { return e.hint }

// product is one of the services.
type product struct {
	name, version, variable string
	// troubles is the level of lines about single tries. Who asks now and then, and tells the outcome, is quiet.
	troubles slog.Level
	// hosts are tried one after the other until one takes a connection: the region's own, the one that needs no way
	// into the internet, and the one that knows all the older regions.
	hosts []string
}

var (
	essProduct = product{
		name: "ess", version: "2022-02-22", variable: "AMSAGENT_ALIBABA_ESS_ENDPOINT", troubles: slog.LevelWarn,
		hosts: []string{"ess.REGION.aliyuncs.com", "ess-vpc.REGION.aliyuncs.com", "ess.aliyuncs.com"},
	}
	ecsProduct = product{
		name: "ecs", version: "2014-05-26", variable: "AMSAGENT_ALIBABA_ECS_ENDPOINT", troubles: slog.LevelDebug,
		hosts: []string{"ecs.REGION.aliyuncs.com", "ecs-vpc.REGION.aliyuncs.com", "ecs.aliyuncs.com"},
	}
)

// dialTimeout bounds the making of a connection to an API: there is another host to try.
const dialTimeout = 2 * time.Second

// APIOptions are the settings of an API; the zero value works.
type APIOptions = cloud.APIOptions

// api speaks to one product for this one instance, with the credentials of its role. Nothing is asked before the first
// call.
type api struct {
	p       *Provider
	product product
	opts    APIOptions
	http    *http.Client

	mu sync.Mutex
	// self is who and where this instance is; the zero value is not known yet.
	self Identity
	// host is the index of the one in use; it moves on only until one has connected.
	host      int
	connected bool
	// skew is how far the clock of the API is ahead of ours, where it said that we are wrong.
	skew time.Duration
}

func newAPI(p *Provider, what product, o APIOptions) (*api, error) {
	o, client, err := o.Open(what.name, dialTimeout)
	if err != nil {
		return nil, err
	}
	return &api{p: p, product: what, opts: o, http: client}, nil
}

// where finds out who and where this instance is, once.
func (a *api) where(ctx context.Context) (Identity, error) {
	a.mu.Lock()
	self := a.self
	a.mu.Unlock()
	if self.InstanceID != "" {
		return self, nil
	}
	self, err := cloud.ReadItem(ctx, a.p.items, optional("identity document", "dynamic/instance-identity/document"), ParseIdentity)
	if err != nil {
		return Identity{}, err
	}
	a.know(self)
	return self, nil
}

func (a *api) know(self Identity) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.self = self
}

// origin is where the next request goes, and the index of that host.
func (a *api) origin(region string) (string, int) {
	if a.opts.Endpoint != "" {
		return a.opts.Endpoint, 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return "https://" + strings.ReplaceAll(a.product.hosts[a.host%len(a.product.hosts)], "REGION", region), a.host
}

// reached notes whether the host took a connection. Another call may have moved on meanwhile.
func (a *api) reached(host int, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ok {
		a.connected, a.host = true, host
	} else if !a.connected && a.host == host {
		a.host++
	}
}

// call makes one call with its retries. params are those of the call; the region is added. The answer is read into out.
func (a *api) call(ctx context.Context, action string, params url.Values, out any) error {
	return a.callAtMost(ctx, cloud.CallAttempts, action, params, out)
}

// callAtMost is call with so many tries. Credentials and clock are put right in any case.
func (a *api) callAtMost(ctx context.Context, tries int, action string, params url.Values, out any) error {
	bound, cancel := context.WithTimeout(ctx, a.opts.Timeout)
	defer cancel()
	wait := cloud.CallWait
	var renewed, clocked bool
	for n := 1; ; n++ {
		v := a.try(bound, action, params, out)
		if v.err == nil {
			return nil
		}
		switch {
		case v.expired && !renewed:
			// Once: credentials that are new and refused are refused for another reason.
			renewed = true
			a.p.keys.drop(v.used)
			a.p.opts.Log.Log(ctx, min(a.product.troubles, slog.LevelInfo), "the credentials of the RAM role are refused, fetching new ones", "action", action, "err", v.err)
			continue
		case v.clock != 0 && !clocked:
			clocked = true
			a.mu.Lock()
			a.skew = v.clock
			a.mu.Unlock()
			a.p.opts.Log.Log(ctx, a.product.troubles, "the clock of this machine is wrong by the clock of the API, which is gone by from now on",
				"ahead", (-v.clock).Round(time.Second), "action", action)
			continue
		}
		pause := wait/2 + mathrand.N(wait/2+1)
		deadline, _ := bound.Deadline()
		if !v.retry || n >= tries || ctx.Err() != nil || time.Until(deadline) <= pause {
			return v.err
		}
		a.p.opts.Log.Log(ctx, a.product.troubles, "the API gave no usable answer, trying again",
			"action", action, "attempt", n, "wait", pause.Round(time.Millisecond), "err", v.err)
		wait *= 3
		timer := time.NewTimer(pause)
		select {
		case <-bound.Done():
			timer.Stop()
			return v.err
		case <-timer.C:
		}
	}
}

// verdict is what one try came to.
type verdict struct {
	err            error
	retry, expired bool
	// clock is how far the API's clock is ahead of ours, where it refused because of that.
	clock time.Duration
	used  Credentials
}

var errNotAPI = errors.New("the answer is not one of the API")

// try makes one request and reads the answer.
func (a *api) try(ctx context.Context, action string, params url.Values, out any) verdict {
	self, err := a.where(ctx)
	if err != nil {
		return verdict{err: fmt.Errorf("calling %s: %w", action, err)}
	}
	keys, err := a.p.keys.get(ctx, a.p)
	if errors.Is(err, errNoRole) {
		return verdict{err: &DeniedError{Action: a.product.name + ":" + action, Policy: policyJSON(), Reason: errNoRole.Error(), NoRole: true}}
	}
	if err != nil {
		return verdict{err: fmt.Errorf("calling %s: %w", action, err)}
	}
	ctx, cancel := context.WithTimeout(ctx, cloud.CallAttemptTimeout)
	defer cancel()
	q := url.Values{"RegionId": {self.Region}}
	for k, v := range params {
		q[k] = v
	}
	origin, host := a.origin(self.Region)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, origin+"/?"+canonicalQuery(q), http.NoBody)
	if err != nil {
		return verdict{err: fmt.Errorf("calling %s: %w", action, err)}
	}
	req.Header.Set("Accept", "application/json")
	a.mu.Lock()
	now := time.Now().Add(a.skew)
	a.mu.Unlock()
	sign(req, keys, call{action: action, version: a.product.version, nonce: rand.Text(), at: now})
	resp, err := a.http.Do(req)
	a.reached(host, err == nil)
	if err != nil {
		return verdict{retry: true, err: &UnreachableError{Action: action, Cause: cloud.WireCause(err), hint: a.unreachable()}}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, cloud.MaxBody+1))
	switch {
	case err != nil:
		return verdict{retry: true, err: fmt.Errorf("calling %s: the answer was cut short: %w", action, cloud.WireCause(err))}
	case resp.StatusCode == http.StatusOK && isAnswer(body):
		if err := json.Unmarshal(body, out); err != nil {
			return verdict{err: fmt.Errorf("calling %s: the answer is not the JSON expected: %w", action, err)}
		}
		return verdict{}
	}
	v := a.judge(action, resp, body)
	v.used = keys
	return v
}

// isAnswer tells the answer of the API from the page of some proxy: a success that nobody gave would leave a hook waiting
// that we believe to be completed.
func isAnswer(body []byte) bool {
	var doc struct {
		RequestID string          `json:"RequestId"`
		Code      json.RawMessage `json:"Code"`
	}
	return len(body) <= cloud.MaxBody && bytes.HasPrefix(bytes.TrimSpace(body), []byte("{")) &&
		json.Unmarshal(body, &doc) == nil && doc.RequestID != "" && len(doc.Code) == 0
}

func (a *api) judge(action string, resp *http.Response, body []byte) verdict {
	doing := "calling " + action
	var doc struct {
		Code    string `json:"Code"`
		Message string `json:"Message"`
	}
	if json.Unmarshal(body, &doc) != nil || doc.Code == "" {
		return verdict{
			retry: resp.StatusCode < 400 || resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests,
			err:   fmt.Errorf("%s: %w (HTTP %d, %d bytes)", doing, errNotAPI, resp.StatusCode, len(body)),
		}
	}
	code, message := cloud.Printable(doc.Code), cloud.Printable(doc.Message)
	plain := fmt.Errorf("%s: %s: %s (HTTP %d)", doing, code, message, resp.StatusCode)
	has := func(prefixes ...string) bool {
		for _, p := range prefixes {
			if strings.HasPrefix(code, p) {
				return true
			}
		}
		return false
	}
	switch {
	case has("Throttling"), resp.StatusCode == http.StatusTooManyRequests:
		return verdict{retry: true, err: fmt.Errorf("%s: %w: %s: %s", doing, ErrThrottled, code, message)}
	case has("InvalidTimeStamp", "InvalidTimestamp", "RequestTimeTooSkewed"):
		v := verdict{err: fmt.Errorf("%w (is the clock of this machine right?)", plain)}
		if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
			v.clock = time.Until(at).Round(time.Second)
		}
		return v
	case has("InvalidSecurityToken", "InvalidAccessKeyId", "MissingSecurityToken", "SecurityTokenExpired"):
		return verdict{expired: true, err: plain}
	case has("LifecycleHookIdAndLifecycleActionToken"):
		return verdict{err: fmt.Errorf("%s: %w: %s", doing, ErrOver, message)}
	case has("LifecycleAction.TimeExceeded"):
		return verdict{err: fmt.Errorf("%s: %w: %s", doing, ErrLimit, code)}
	case has("LifecycleAction.RecordTimesExceeded"):
		return verdict{err: fmt.Errorf("%s: %w: %s", doing, ErrOften, code)}
	case has("Forbidden", "NoPermission", "AccessDenied", "NotAuthorized", "Unauthorized"):
		return verdict{err: &DeniedError{Action: a.product.name + ":" + action, Policy: policyJSON(), Reason: code + ": " + message}}
	case has("SignatureNonceUsed", "ServiceUnavailable", "InternalError", "InternalFailure", "SystemBusy"):
		return verdict{retry: true, err: plain}
	}
	return verdict{retry: resp.StatusCode >= 500, err: plain}
}

func (a *api) unreachable() string {
	name := strings.ToUpper(a.product.name)
	return "the " + name + " API has to be reachable from this subnet: by a NAT gateway, by its address in the VPC (" +
		a.product.variable + "=https://" + a.product.name + "-vpc.REGION.aliyuncs.com), or by a proxy (HTTPS_PROXY in the environment of the daemon)"
}

// list reads a list in both shapes that the APIs have: [...], and {"InstanceId":[...]} around it.
type list[T any] []T

// UnmarshalJSON implements json.Unmarshaler.
func (l *list[T]) UnmarshalJSON(b []byte) error {
	*l = nil
	b = bytes.TrimSpace(b)
	if len(b) == 0 || b[0] != '{' {
		return json.Unmarshal(b, (*[]T)(l))
	}
	var wrapped map[string]json.RawMessage
	if err := json.Unmarshal(b, &wrapped); err != nil {
		return err
	}
	for _, raw := range wrapped {
		if len(raw) > 0 && raw[0] == '[' {
			if len(wrapped) > 1 {
				return errors.New("a wrapped list has more than one member")
			}
			return json.Unmarshal(raw, (*[]T)(l))
		}
	}
	return nil
}

// policyJSON is the smallest policy with which everything works. ESS knows resources for some of these actions only, and a
// denial would be told apart by none, so that they stand together.
func policyJSON() string {
	return `{"Version":"1","Statement":[{"Effect":"Allow","Action":["ess:DescribeScalingInstances","ess:DescribeScalingActivities",` +
		`"ess:DescribeLifecycleActions","ess:DescribeLifecycleHooks","ess:RecordLifecycleActionHeartbeat","ess:CompleteLifecycleAction","ecs:ListTagResources"],"Resource":"*"}]}`
}
