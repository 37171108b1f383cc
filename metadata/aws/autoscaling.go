// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/smithy-go"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// What a caller of AutoScaling may branch on, besides *DeniedError.
var (
	// ErrNoAction: no hook waits for this instance, which may mean not yet: the metadata tells of a termination before
	// the group has come to its wait.
	ErrNoAction = errors.New("no active lifecycle action")
	// ErrNoGroup: the group is not there, or not any more.
	ErrNoGroup = errors.New("no such Auto Scaling group")
)

// DeniedError says that the role of the instance may not make a call, or that the instance has no role.
type DeniedError struct {
	// Action is the permission that is missing, as policies spell it: autoscaling:CompleteLifecycleAction.
	Action string
	// Policy is the smallest policy with which everything works, as JSON for the role.
	Policy string
	// Reason is what AWS says.
	Reason string
}

// Error implements error.
func (e *DeniedError) Error() string {
	return fmt.Sprintf("the role of this instance lacks the permission %s: %s", e.Action, e.Reason)
}

const (
	// dialTimeout bounds the making of a connection to the API.
	dialTimeout = 3 * time.Second
	// credentialsWindow: credentials are renewed so long before they end, as AWS advises.
	credentialsWindow = 5 * time.Minute
)

const (
	hintAPIUnreachable = "the Auto Scaling API has to be reachable from this subnet: by a NAT gateway, by an interface VPC endpoint for autoscaling, " +
		"by IPv6 (AMSAGENT_AWS_AUTOSCALING_ENDPOINT=https://autoscaling.REGION.api.aws), or by a proxy (HTTPS_PROXY in the environment of the daemon)"
	noRole = "the instance has no IAM role (instance profile)"
)

// AutoScalingOptions are the settings of AutoScaling; the zero value works.
type AutoScalingOptions = cloud.APIOptions

// AutoScaling speaks to the Auto Scaling API for this one instance, with the credentials of its role. It is safe for use
// by several goroutines, and nothing is asked before the first call.
type AutoScaling struct {
	p    *Provider
	opts AutoScalingOptions
	// credentials are kept and renewed here; the metadata service is asked for them, never a file or the environment.
	credentials *sdk.CredentialsCache
	http        *http.Client

	mu       sync.Mutex
	endpoint string // "" until it is known
	other    string // is tried in turn with it
	place    place
	// skew is how far the API's clock is ahead of ours, where it refused us for that: it knows the time, and a machine that
	// has just booted may not.
	skew time.Duration
}

// place is where this instance is, which says where the API is.
type place struct{ partition, region, account, instance, domain string }

// AutoScaling opens the API. It makes no request.
func (p *Provider) AutoScaling(o AutoScalingOptions) (*AutoScaling, error) {
	o, client, err := o.Open("the Auto Scaling API", dialTimeout)
	if err != nil {
		return nil, err
	}
	return &AutoScaling{
		p: p, opts: o,
		credentials: sdk.NewCredentialsCache(
			ec2rolecreds.New(func(o *ec2rolecreds.Options) { o.Client = roleMetadata{p} }),
			func(o *sdk.CredentialsCacheOptions) { o.ExpiryWindow = credentialsWindow },
		),
		http: client,
	}, nil
}

// roleMetadata lets the SDK read the role's credentials through our way to the metadata, with its bounds and its choice
// between the two addresses.
type roleMetadata struct{ p *Provider }

// GetMetadata implements ec2rolecreds.GetMetadataAPIClient.
func (r roleMetadata) GetMetadata(ctx context.Context, in *imds.GetMetadataInput, _ ...func(*imds.Options)) (*imds.GetMetadataOutput, error) {
	const dir = "iam/security-credentials"
	path := strings.Trim(in.Path, "/")
	name := "credentials of the role"
	if path == dir {
		// The list is at the folder's own name.
		path, name = dir+"/", "name of the role"
	}
	body, err := cloud.ReadItem(ctx, r.p.items, optional(name, "meta-data/"+path), func(b []byte) ([]byte, error) {
		if len(bytes.TrimSpace(b)) == 0 {
			return nil, errors.New("the answer is empty")
		}
		return b, nil
	})
	if err != nil {
		return nil, err
	}
	return &imds.GetMetadataOutput{Content: io.NopCloser(bytes.NewReader(body))}, nil
}

// CloseIdleConnections ends the connections that wait for the next call.
func (a *AutoScaling) CloseIdleConnections() { a.http.CloseIdleConnections() }

// Membership is how the group sees this instance.
type Membership struct {
	Group string
	// State is the lifecycle state, such as InService or Terminating:Wait.
	State string
}

// Membership asks how the group sees this instance. It is nil for an instance that is in no group, or in none any more.
func (a *AutoScaling) Membership(ctx context.Context) (*Membership, error) {
	found, where, err := a.call(ctx, "DescribeAutoScalingInstances", "", func(where place) url.Values {
		return url.Values{"InstanceIds.member.1": {where.instance}}
	})
	if err != nil {
		return nil, err
	}
	for _, i := range found {
		if i["InstanceId"] == where.instance && i["AutoScalingGroupName"] != "" {
			return &Membership{Group: i["AutoScalingGroupName"], State: i["LifecycleState"]}, nil
		}
	}
	return nil, nil //nolint:nilnil // in no group
}

// LifecycleHook is one hook of a group.
type LifecycleHook struct {
	Name string
	// Launching tells the hook of a start from that of an end.
	Launching bool
	// Timeout is how long the group waits from one heartbeat to the next, Limit how long in all; 0 is not told.
	Timeout, Limit time.Duration
}

// Hooks lists the hooks of a group, in the order of their names.
func (a *AutoScaling) Hooks(ctx context.Context, group string) ([]LifecycleHook, error) {
	found, _, err := a.call(ctx, "DescribeLifecycleHooks", group, func(place) url.Values {
		return url.Values{"AutoScalingGroupName": {group}}
	})
	if err != nil {
		return nil, err
	}
	named := map[string]LifecycleHook{}
	for _, h := range found {
		hook := LifecycleHook{Name: h["LifecycleHookName"], Timeout: seconds(h["HeartbeatTimeout"]), Limit: seconds(h["GlobalTimeout"])}
		switch h["LifecycleTransition"] {
		case "autoscaling:EC2_INSTANCE_TERMINATING":
		case "autoscaling:EC2_INSTANCE_LAUNCHING":
			hook.Launching = true
		default:
			continue
		}
		named[hook.Name] = hook
	}
	delete(named, "")
	var hooks []LifecycleHook
	for _, name := range slices.Sorted(maps.Keys(named)) {
		hooks = append(hooks, named[name])
	}
	return hooks, nil
}

// seconds reads a number of seconds; 0 where there is none.
func seconds(s string) time.Duration {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return 0
	}
	return time.Duration(max(0, n)) * time.Second
}

// Action names one action of one hook.
type Action struct {
	Group, Hook string
	// Token is the action's, where it is known. The instance's id does as well.
	Token string
}

// Heartbeat makes the hook wait for its whole timeout again. ErrNoAction means that it does not wait.
func (a *AutoScaling) Heartbeat(ctx context.Context, action Action) error {
	_, _, err := a.call(ctx, "RecordLifecycleActionHeartbeat", action.Group, action.params)
	return err
}

// Complete ends the wait of the hook: the transition goes on. ErrNoAction means that it does not wait.
func (a *AutoScaling) Complete(ctx context.Context, action Action) error {
	_, _, err := a.call(ctx, "CompleteLifecycleAction", action.Group, func(where place) url.Values {
		params := action.params(where)
		params.Set("LifecycleActionResult", "CONTINUE")
		return params
	})
	return err
}

// params are what both calls for an action say of it.
func (a Action) params(where place) url.Values {
	params := url.Values{"AutoScalingGroupName": {a.Group}, "LifecycleHookName": {a.Hook}, "InstanceId": {where.instance}}
	if a.Token != "" {
		params.Set("LifecycleActionToken", a.Token)
	}
	return params
}

// open finds out where the API is, once.
func (a *AutoScaling) open(ctx context.Context) (place, error) {
	a.mu.Lock()
	endpoint, where := a.endpoint, a.place
	a.mu.Unlock()
	if endpoint != "" {
		return where, nil
	}
	id, err := cloud.ReadItem(ctx, a.p.items, optional("identity document", "dynamic/instance-identity/document"), ParseIdentity)
	if err != nil {
		return place{}, err
	}
	where = place{region: id.Region, account: id.AccountID, instance: id.InstanceID}
	for _, part := range []struct {
		name, usual string
		to          *string
	}{
		{"partition", usualPartition(id.Region), &where.partition},
		{"domain", usualDomain(id.Region), &where.domain},
	} {
		*part.to, err = cloud.ReadItem(ctx, a.p.items, optional("services "+part.name, "meta-data/services/"+part.name), ParseWord)
		if errors.Is(err, cloud.ErrNotFound) {
			*part.to, err = part.usual, nil
		}
		if err != nil {
			return place{}, err
		}
	}
	endpoint = a.opts.Endpoint
	if endpoint == "" {
		endpoint = "https://autoscaling." + where.region + "." + where.domain
	}
	other := endpoint
	if !id.PrivateIP.IsValid() && a.opts.Endpoint == "" && where.domain == "amazonaws.com" {
		// The usual name has an IPv6 address by NAT64 or a VPC endpoint alone. China's dual-stack name is not in
		// docs.aws.amazon.com/general/latest/gr/as.html.
		endpoint = "https://autoscaling." + where.region + ".api.aws"
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.endpoint, a.other, a.place = endpoint, other, where
	return where, nil
}

func usualPartition(region string) string {
	switch {
	case strings.HasPrefix(region, "cn-"):
		return "aws-cn"
	case strings.HasPrefix(region, "us-gov-"):
		return "aws-us-gov"
	default:
		return "aws"
	}
}

func usualDomain(region string) string {
	if strings.HasPrefix(region, "cn-") {
		return "amazonaws.com.cn"
	}
	return "amazonaws.com"
}

// call makes one call with its retries, and returns the list in its answer.
func (a *AutoScaling) call(ctx context.Context, action, group string, params func(place) url.Values) ([]map[string]string, place, error) {
	bound, cancel := context.WithTimeout(ctx, a.opts.Timeout)
	defer cancel()
	wait := cloud.CallWait
	renewed := false
	for n := 1; ; n++ {
		where, err := a.open(bound)
		if err != nil {
			return nil, where, fmt.Errorf("calling %s: %w", action, err)
		}
		try, cancel := context.WithTimeout(bound, cloud.CallAttemptTimeout)
		found, err := a.post(try, action, params(where))
		cancel()
		if err == nil {
			return found, where, nil
		}
		v := a.judge(action, group, where, err)
		if v.expired && !renewed {
			// Once: credentials that are new and refused are refused for another reason.
			renewed = true
			a.credentials.Invalidate()
			a.p.opts.Log.Info("the credentials of the role have ended, fetching new ones", "action", action, "err", v.err)
			continue
		}
		pause := wait/2 + rand.N(wait/2+1)
		deadline, _ := bound.Deadline()
		if !v.retry || n >= cloud.CallAttempts || ctx.Err() != nil || time.Until(deadline) <= pause {
			return nil, where, v.err
		}
		// Who asks tells what came of it, and asks again.
		a.p.opts.Log.Debug("the Auto Scaling API gave no usable answer, trying again",
			"action", action, "attempt", n, "wait", pause.Round(time.Millisecond), "err", v.err)
		wait *= 3
		timer := time.NewTimer(pause)
		select {
		case <-bound.Done():
			timer.Stop()
			return nil, where, v.err
		case <-timer.C:
		}
	}
}

// verdict is what one failed try means.
type verdict struct {
	err            error
	retry, expired bool
}

func (a *AutoScaling) judge(action, group string, where place, err error) verdict {
	doing := "calling " + action
	denied := func(reason string) verdict {
		return verdict{err: &DeniedError{Action: "autoscaling:" + action, Policy: policyFor(where, group), Reason: reason}}
	}
	// Of the metadata: the credentials could not be had.
	if e, ok := errors.AsType[*cloud.Error](err); ok {
		if errors.Is(e.Kind, cloud.ErrNotFound) {
			return denied(noRole)
		}
		return verdict{err: fmt.Errorf("%s: %w", doing, e)}
	}
	api, ok := errors.AsType[smithy.APIError](err)
	if !ok {
		if errors.Is(err, errNotAPI) {
			return verdict{retry: true, err: fmt.Errorf("%s: %w", doing, cloud.WireCause(err))}
		}
		if !errors.Is(err, context.Canceled) { // else nobody waits for it any more
			a.mu.Lock()
			a.endpoint, a.other = a.other, a.endpoint
			a.mu.Unlock()
		}
		return verdict{retry: true, err: &UnreachableError{Action: action, Cause: cloud.WireCause(err)}}
	}
	code, message := api.ErrorCode(), cloud.Printable(api.ErrorMessage())
	plain := fmt.Errorf("%s: %s: %s", doing, code, message)
	switch code {
	case "AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "UnauthorizedAccess", "NotAuthorized", "OptInRequired":
		return denied(message)
	case "AssumeRoleUnauthorizedAccess":
		return denied("EC2 cannot take on the role of the instance: " + message)
	case "ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException", "InvalidToken", "InvalidAccessKeyId":
		return verdict{expired: true, err: plain}
	case "RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "InvalidSignatureException":
		// The next try is signed by the API's clock.
		if e, ok := errors.AsType[*apiError](err); ok && e.skew != nil {
			a.mu.Lock()
			a.skew = *e.skew
			a.mu.Unlock()
		}
		return verdict{retry: true, err: fmt.Errorf("%w (is the clock of this machine right?)", plain)}
	case "ValidationError":
		switch {
		case strings.Contains(message, "No active Lifecycle Action"):
			return verdict{err: fmt.Errorf("%s: %w: %s", doing, ErrNoAction, message)}
		case strings.Contains(message, "not found"):
			return verdict{err: fmt.Errorf("%s: %w: %s", doing, ErrNoGroup, message)}
		}
		return verdict{err: plain}
	case "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException", "ResourceContention",
		"ServiceUnavailable", "InternalFailure", "InternalError", "RequestTimeout":
		return verdict{retry: true, err: plain}
	}
	e, ok := errors.AsType[*apiError](err)
	if !ok {
		return verdict{err: plain} // of the credentials
	}
	return verdict{
		retry: e.status >= 500 || e.status == http.StatusTooManyRequests,
		err:   fmt.Errorf("%w (HTTP %d)", plain, e.status),
	}
}

// UnreachableError says that the API could not be spoken to.
type UnreachableError struct {
	Action string
	Cause  error
}

// Error implements error.
func (e *UnreachableError) Error() string {
	return fmt.Sprintf("calling %s: the Auto Scaling API cannot be reached: %v", e.Action, e.Cause)
}

// Unwrap gives errors.Is and errors.As the cause.
func (e *UnreachableError) Unwrap() error { return e.Cause }

// Hint says what an operator can do.
func (e *UnreachableError) Hint() string { return hintAPIUnreachable }

// Policy is the smallest policy with which everything works for a group, as JSON for the role. What is not known is a
// star; nothing is asked.
func (a *AutoScaling) Policy(group string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return policyFor(a.place, group)
}

func policyFor(where place, group string) string {
	orStar := func(s string) string {
		if s == "" {
			return "*"
		}
		return s
	}
	type statement struct {
		Effect   string
		Action   []string
		Resource string
	}
	partition := where.partition
	if partition == "" {
		partition = "aws"
	}
	b, err := json.Marshal(struct {
		Version   string
		Statement []statement
	}{"2012-10-17", []statement{
		{
			"Allow",
			[]string{"autoscaling:CompleteLifecycleAction", "autoscaling:RecordLifecycleActionHeartbeat"},
			fmt.Sprintf("arn:%s:autoscaling:%s:%s:autoScalingGroup:*:autoScalingGroupName/%s",
				partition, orStar(where.region), orStar(where.account), orStar(group)),
		},
		// AWS knows no narrower resource for these.
		{"Allow", []string{"autoscaling:DescribeAutoScalingInstances", "autoscaling:DescribeLifecycleHooks"}, "*"},
	}})
	if err != nil {
		return ""
	}
	return string(b)
}
