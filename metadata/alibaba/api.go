// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/metadata/cloud"
)

var (
	// errLimit: the action cannot wait that long. errOften: it cannot be extended again at all.
	errLimit = errors.New("the lifecycle action cannot be made to wait longer")
	errOften = fmt.Errorf("%w: it was prolonged as often as it can be", errLimit)
	// errThrottled counts per account. It is retried.
	errThrottled = errors.New("the API takes no more calls for the moment")
)

type api struct {
	p                *Provider
	product, version string
	cloud.APIClient
	hosts cloud.Hosts
}

func newAPI(p *Provider, product, version, name string) (*api, error) {
	client, err := p.Options.API(name)
	return &api{p: p, product: product, version: version, APIClient: client}, err
}

func (p *Provider) where(ctx context.Context) (identity, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.self.InstanceID != "" {
		return p.self, nil
	}
	self, err := cloud.Read(ctx, p.Client, cloud.Item{Name: document.Name, Path: document.Path}, parseIdentity)
	if err == nil {
		p.self = self
	}
	return self, err
}

// origin's hosts: the region's, the one without an internet route, the global one for older regions.
func (a *api) origin(region string) (string, int32) {
	at := a.hosts.Current()
	if a.Endpoint != "" {
		return a.Endpoint, at
	}
	hosts := []string{a.product + "." + region, a.product + "-vpc." + region, a.product}
	return "https://" + hosts[int(at)%len(hosts)] + ".aliyuncs.com", at
}

// call adds the region to params and decodes the answer into out.
func (a *api) call(ctx context.Context, tries int, action string, params url.Values, out any) error {
	ctx, cancel := context.WithTimeout(ctx, cloud.CallTimeout)
	defer cancel()
	wait := 400 * time.Millisecond
	corrected := false
	for n := 1; ; n++ {
		next, err := a.try(ctx, action, params, out)
		switch {
		case err == nil:
			return nil
		case next == atOnce && !corrected:
			corrected = true // a second refusal has another reason
			continue
		case next != later || n >= tries || !sleep.For(ctx, wait/2+mathrand.N(wait/2)):
			return cloud.Calling(action, err)
		}
		wait *= 3
	}
}

// again is when another try may succeed.
type again int

const (
	never again = iota
	later
	// atOnce: with other credentials or another time.
	atOnce
)

func (a *api) try(ctx context.Context, action string, params url.Values, out any) (again, error) {
	keys, err := a.p.credentials(ctx)
	if errors.Is(err, errNoRole) {
		return never, &cloud.DeniedError{Permission: a.product + ":" + action, Policy: Policy, Reason: errNoRole.Error(), NoRole: true}
	}
	var self identity
	if err == nil {
		self, err = a.p.where(ctx)
	}
	if err != nil {
		return never, err
	}
	q := url.Values{"RegionId": {self.Region}}
	maps.Copy(q, params)
	origin, host := a.origin(self.Region)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, origin+"/?"+canonicalQuery(q), http.NoBody)
	if err != nil {
		return never, err
	}
	req.Header.Set("Accept", "application/json")
	sign(req, keys, action, a.version, rand.Text(), a.p.now())
	resp, err := a.HTTP.Do(req)
	a.hosts.Note(host, err == nil)
	if err != nil {
		return later, cloud.Unreachable(strings.ToUpper(a.product), err)
	}
	defer resp.Body.Close()
	return a.read(action, keys, resp, out)
}

// now is the API's time.
func (p *Provider) now() time.Time { return time.Now().Add(time.Duration(p.skew.Load())) }

// read decodes an answer into out.
func (a *api) read(action string, keys credentials, resp *http.Response, out any) (again, error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, cloud.MaxBody))
	if err != nil {
		return later, fmt.Errorf("the answer was cut short: %w", cloud.WireCause(err))
	}
	var answer struct {
		RequestID     string `json:"RequestId"`
		Code, Message string
	}
	// A proxy's page must not pass as success: the hook would keep waiting.
	if json.Unmarshal(body, &answer) != nil || answer.RequestID+answer.Code == "" {
		err = fmt.Errorf("the answer is not one of the API (HTTP %d, %d bytes)", resp.StatusCode, len(body))
		if s := resp.StatusCode; s >= 400 && s < 500 && s != http.StatusTooManyRequests {
			return never, err
		}
		return later, err
	}
	if resp.StatusCode == http.StatusOK && answer.Code == "" {
		if err := json.Unmarshal(body, out); err != nil {
			return never, fmt.Errorf("the answer is not the JSON expected: %w", err)
		}
		return never, nil
	}
	return a.judge(action, keys, resp, cloud.Printable(answer.Code), cloud.Printable(answer.Message))
}

func (a *api) judge(action string, keys credentials, resp *http.Response, code, message string) (again, error) {
	plain := fmt.Errorf("%s: %s (HTTP %d)", code, message, resp.StatusCode)
	has := func(prefixes ...string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(code, p) })
	}
	switch {
	case has("Throttling"), resp.StatusCode == http.StatusTooManyRequests:
		return later, fmt.Errorf("%w: %s: %s", errThrottled, code, message)
	case has("InvalidTimeStamp", "InvalidTimestamp", "RequestTimeTooSkewed"):
		return a.p.correct(resp.Header.Get("Date")), fmt.Errorf("%w (is the clock of this machine right?)", plain)
	case has("InvalidSecurityToken", "InvalidAccessKeyId", "MissingSecurityToken", "SecurityTokenExpired"):
		a.p.drop(keys)
		return atOnce, plain
	case has("LifecycleHookIdAndLifecycleActionToken"):
		return never, fmt.Errorf("%w: the lifecycle action is completed, or its time was over: %s", cloud.ErrGone, message)
	case has("LifecycleAction.TimeExceeded"):
		return never, fmt.Errorf("%w: %s", errLimit, code)
	case has("LifecycleAction.RecordTimesExceeded"):
		return never, fmt.Errorf("%w: %s", errOften, code)
	case has("Forbidden", "NoPermission", "AccessDenied", "NotAuthorized", "Unauthorized"):
		return never, &cloud.DeniedError{Permission: a.product + ":" + action, Policy: Policy, Reason: code + ": " + message}
	case resp.StatusCode >= 500, has("SignatureNonceUsed", "ServiceUnavailable", "InternalError", "SystemBusy"):
		return later, plain
	}
	return never, plain
}

// correct takes the API's time over.
func (p *Provider) correct(date string) again {
	at, err := http.ParseTime(date)
	if err != nil {
		return never
	}
	ahead := time.Until(at).Round(time.Second)
	// A concurrent call may have corrected the skew.
	if (time.Duration(p.skew.Swap(int64(ahead))) - ahead).Abs() > time.Second {
		p.Options.Log.Warn("clock of this machine differs from the API's, signing by the API's", "ahead", -ahead)
	}
	return atOnce
}

// list decodes both forms of a list: [...] and {"InstanceId":[...]}.
type list[T any] []T

// UnmarshalJSON implements json.Unmarshaler.
func (l *list[T]) UnmarshalJSON(b []byte) error {
	*l = nil
	if b = bytes.TrimSpace(b); len(b) == 0 || b[0] != '{' {
		return json.Unmarshal(b, (*[]T)(l))
	}
	var wrapped map[string][]T
	if err := json.Unmarshal(b, &wrapped); err != nil {
		return err
	}
	for _, inner := range wrapped {
		*l = append(*l, inner...)
	}
	return nil
}

// Policy is the smallest sufficient policy. It has one statement: ESS supports resources for only some of these actions, and
// all denials look alike.
const Policy = `{"Version":"1","Statement":[{"Effect":"Allow","Action":["ess:DescribeScalingInstances","ess:DescribeScalingActivities",` +
	`"ess:DescribeLifecycleActions","ess:DescribeLifecycleHooks","ess:RecordLifecycleActionHeartbeat","ess:CompleteLifecycleAction","ecs:ListTagResources"],"Resource":"*"}]}`

type credentials struct {
	id, secret, token string
	until             time.Time
}

// parseCredentials returns errors without any part of body.
func parseCredentials(body []byte) (credentials, error) {
	var doc struct {
		Code            string `json:"Code"`
		AccessKeyID     string `json:"AccessKeyId"`
		AccessKeySecret string `json:"AccessKeySecret"`
		SecurityToken   string `json:"SecurityToken"`
		Expiration      string `json:"Expiration"`
	}
	if json.Unmarshal(body, &doc) != nil {
		return credentials{}, errors.New("the credentials of the role are not the JSON expected")
	}
	until := parseTime(doc.Expiration)
	if doc.Code != "Success" && doc.Code != "" || doc.AccessKeyID == "" || doc.AccessKeySecret == "" || doc.SecurityToken == "" || until.IsZero() {
		return credentials{}, fmt.Errorf("the credentials of the role are not complete (code %s)", cloud.Quote(doc.Code))
	}
	return credentials{doc.AccessKeyID, doc.AccessKeySecret, doc.SecurityToken, until}, nil
}

var errNoRole = errors.New("the instance has no RAM role")

// In this margin the service already returns the next credentials.
const credentialsEarly = 5 * time.Minute

func (p *Provider) credentials(ctx context.Context) (credentials, error) {
	p.keysMu.Lock()
	defer p.keysMu.Unlock()
	left := p.keys.until.Sub(p.now())
	if left > credentialsEarly {
		return p.keys, nil
	}
	fresh, err := p.roleCredentials(ctx)
	if err != nil && left > 0 && !errors.Is(err, errNoRole) {
		return p.keys, nil
	}
	if err == nil {
		p.keys = fresh
	}
	return fresh, err
}

func (p *Provider) drop(c credentials) {
	p.keysMu.Lock()
	defer p.keysMu.Unlock()
	if p.keys.token == c.token {
		p.keys = credentials{}
	}
}

func (p *Provider) roleCredentials(ctx context.Context) (credentials, error) {
	dir := meta("name of the RAM role", "ram/security-credentials/")
	// An instance has at most one role.
	roles, err := cloud.Read(ctx, p.Client, dir, func(b []byte) ([]string, error) { return strings.Fields(string(b)), nil })
	if errors.Is(err, cloud.ErrNotFound) || err == nil && len(roles) == 0 {
		return credentials{}, errNoRole
	}
	if err != nil {
		return credentials{}, err
	}
	role := cloud.Item{Name: "credentials of the RAM role", Path: dir.Path + url.PathEscape(strings.Trim(roles[0], "/"))}
	c, err := cloud.Read(ctx, p.Client, role, parseCredentials)
	if errors.Is(err, cloud.ErrNotFound) {
		return credentials{}, errNoRole
	}
	return c, err
}

// algorithm is signature V3 (help/en/sdk/product-overview/v3-request-structure-and-signature).
const algorithm = "ACS3-HMAC-SHA256"

// emptyHash is the SHA-256 of an empty body.
const emptyHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// sign adds signature V3 over host and all x-acs headers to a request of / without a body. The nonce is valid for one request.
func sign(req *http.Request, k credentials, action, version, nonce string, at time.Time) {
	signed := map[string]string{
		"host": req.URL.Host, "x-acs-action": action, "x-acs-version": version, "x-acs-date": at.UTC().Format("2006-01-02T15:04:05Z"),
		"x-acs-signature-nonce": nonce, "x-acs-content-sha256": emptyHash,
	}
	if k.token != "" {
		signed["x-acs-security-token"] = k.token
	}
	names := slices.Sorted(maps.Keys(signed))
	canonical := req.Method + "\n/\n" + canonicalQuery(req.URL.Query()) + "\n"
	for _, name := range names {
		canonical += name + ":" + signed[name] + "\n"
		req.Header.Set(name, signed[name]) // net/http ignores the host
	}
	list := strings.Join(names, ";")
	sum := sha256.Sum256([]byte(canonical + "\n" + list + "\n" + emptyHash))
	mac := hmac.New(sha256.New, []byte(k.secret))
	mac.Write([]byte(algorithm + "\n" + hex.EncodeToString(sum[:])))
	req.Header.Set("Authorization", algorithm+" Credential="+k.id+",SignedHeaders="+list+",Signature="+hex.EncodeToString(mac.Sum(nil)))
}

// canonicalQuery escapes by RFC 3986: a space is %20, a tilde stays.
func canonicalQuery(q url.Values) string { return strings.ReplaceAll(q.Encode(), "+", "%20") }
