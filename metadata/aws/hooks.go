// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// EndpointAutoScaling is the key of the Auto Scaling API in [cloud.Options.Endpoints].
const EndpointAutoScaling = "aws-autoscaling"

const noRole = "the instance has no IAM role (instance profile)"

// hooks calls the Auto Scaling API with the role's credentials.
type hooks struct {
	p    *Provider
	http cloud.APIClient
	// credentials come only from the metadata service, never from a file or the environment.
	credentials *sdk.CredentialsCache

	mu   sync.Mutex
	api  *autoscaling.Client // nil until the identity is known
	self identity
}

var _ cloud.Hooks = (*hooks)(nil)

// credentialsWindow is the renewal margin that AWS advises.
const credentialsWindow = 5 * time.Minute

func newHooks(p *Provider) (*hooks, error) {
	client, err := p.opts.API(EndpointAutoScaling)
	if err != nil {
		return nil, err
	}
	return &hooks{
		p: p, http: client,
		credentials: sdk.NewCredentialsCache(
			ec2rolecreds.New(func(o *ec2rolecreds.Options) { o.Client = roleMetadata{p} }),
			func(o *sdk.CredentialsCacheOptions) { o.ExpiryWindow = credentialsWindow },
		),
	}, nil
}

// Hooks returns the hooks of the instance's group.
func (p *Provider) Hooks() cloud.Hooks { return p.hooks }

// roleMetadata reads the role's credentials with the agent's client.
type roleMetadata struct{ p *Provider }

// GetMetadata implements ec2rolecreds.GetMetadataAPIClient.
func (r roleMetadata) GetMetadata(ctx context.Context, in *imds.GetMetadataInput, _ ...func(*imds.Options)) (*imds.GetMetadataOutput, error) {
	const dir = "iam/security-credentials"
	path := strings.Trim(in.Path, "/")
	if path == dir {
		path += "/" // the service lists the folder only with the slash
	}
	body, err := cloud.Read(ctx, r.p.items, meta("credentials of the role", path), func(b []byte) ([]byte, error) {
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

func (h *hooks) open(ctx context.Context) (*autoscaling.Client, identity, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.api != nil {
		return h.api, h.self, nil
	}
	self, err := cloud.Read(ctx, h.p.items, cloud.Item{Name: document.Name, Path: document.Path}, parseIdentity)
	if err != nil {
		return nil, self, err
	}
	o := autoscaling.Options{
		Region: self.Region, Credentials: h.credentials, HTTPClient: answers{h.http.HTTP},
		Retryer: retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts, o.MaxBackoff, o.RateLimiter = cloud.CallAttempts, time.Second, ratelimit.None
			// The SDK corrects its clock after this error, but does not retry.
			o.Retryables = append(o.Retryables, retry.RetryableErrorCode{Codes: map[string]struct{}{"RequestExpired": {}}})
		}),
	}
	switch {
	case h.http.Endpoint != "":
		o.BaseEndpoint = &h.http.Endpoint
	case !self.PrivateIP.IsValid():
		// The default name is reachable over IPv6 only by NAT64 or a VPC endpoint.
		o.EndpointOptions.UseDualStackEndpoint = sdk.DualStackEndpointStateEnabled
	}
	h.api, h.self = autoscaling.New(o), self
	return h.api, self, nil
}

// answers rejects a 200 that is not from the API: the SDK accepts an empty body or a proxy's page, and the hook would keep
// waiting.
type answers struct{ c *http.Client }

// Do implements the SDK's HTTP client.
func (a answers) Do(req *http.Request) (*http.Response, error) {
	resp, err := a.c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, cloud.MaxBody))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK && !bytes.Contains(body, []byte("Response>")) {
		return nil, fmt.Errorf("the answer is not one of the Auto Scaling API (%d bytes)", len(body))
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// call retries once with new credentials.
func (h *hooks) call(ctx context.Context, action, group string, fn func(context.Context, *autoscaling.Client, identity) error) error {
	ctx, cancel := context.WithTimeout(ctx, cloud.CallTimeout)
	defer cancel()
	api, self, err := h.open(ctx)
	if err != nil {
		return fmt.Errorf("calling %s: %w", action, err)
	}
	if err = fn(ctx, api, self); code(err) == "ExpiredToken" || code(err) == "InvalidClientTokenId" {
		h.credentials.Invalidate()
		err = fn(ctx, api, self)
	}
	if err == nil {
		return nil
	}
	return explain(err, action, group, self)
}

func code(err error) string {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return e.ErrorCode()
	}
	return ""
}

func explain(err error, action, group string, self identity) error {
	doing := "calling " + action
	denied := func(reason string) error {
		return &cloud.DeniedError{
			Permission: "autoscaling:" + action, Policy: Policy(self.Region, self.AccountID, group), Reason: reason, NoRole: reason == noRole, Provider: Name, Group: group,
		}
	}
	// The metadata service returned no credentials.
	if e, ok := errors.AsType[*cloud.Error](err); ok {
		if errors.Is(e.Kind, cloud.ErrNotFound) {
			return denied(noRole)
		}
		return fmt.Errorf("%s: %w", doing, e)
	}
	api, ok := errors.AsType[smithy.APIError](err)
	if _, sent := errors.AsType[*smithyhttp.RequestSendError](err); sent || !ok && errors.Is(err, context.DeadlineExceeded) {
		return &cloud.UnreachableError{Action: action, API: "the Auto Scaling API", Cause: cloud.WireCause(err)}
	}
	if !ok {
		return fmt.Errorf("%s: the answer is not one of the Auto Scaling API: %w", doing, cloud.WireCause(err))
	}
	message := cloud.Printable(api.ErrorMessage())
	switch api.ErrorCode() {
	case "AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "NotAuthorized", "OptInRequired":
		return denied(message)
	case "AssumeRoleUnauthorizedAccess":
		return denied("EC2 cannot take on the role of the instance: " + message)
	case "ValidationError":
		switch {
		case strings.Contains(message, "No active Lifecycle Action"):
			return fmt.Errorf("%s: %w: %s", doing, cloud.ErrNotWaiting, message)
		case strings.Contains(message, "not found"):
			return fmt.Errorf("%s: %w: %s", doing, cloud.ErrGone, message)
		}
	case "RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch":
		message += " (is the clock of this machine right?)"
	}
	return fmt.Errorf("%s: %s: %s", doing, cloud.Printable(api.ErrorCode()), message)
}

// membership returns the group or "", and a lifecycle state such as InService or Terminating:Wait.
func (h *hooks) membership(ctx context.Context) (group, state string, err error) {
	err = h.call(ctx, "DescribeAutoScalingInstances", "", func(ctx context.Context, api *autoscaling.Client, self identity) error {
		out, err := api.DescribeAutoScalingInstances(ctx, &autoscaling.DescribeAutoScalingInstancesInput{InstanceIds: []string{self.InstanceID}})
		if err != nil {
			return err
		}
		for _, i := range out.AutoScalingInstances {
			if sdk.ToString(i.InstanceId) == self.InstanceID {
				group, state = sdk.ToString(i.AutoScalingGroupName), sdk.ToString(i.LifecycleState)
			}
		}
		return nil
	})
	return group, state, err
}

// Pending implements cloud.Hooks: all hooks of the group wait at their transition.
func (h *hooks) Pending(ctx context.Context, launching bool) ([]cloud.Hook, error) {
	group, _, err := h.membership(ctx)
	if _, denied := errors.AsType[*cloud.DeniedError](err); denied {
		// The tag also names the group.
		group, _ = cloud.Read(ctx, h.p.items, meta("tag "+tagGroup, "tags/instance/"+tagGroup), cloud.ParseValue)
	}
	if err != nil && group == "" {
		return nil, err
	}
	if group == "" {
		return nil, nil
	}
	return h.list(ctx, group, launching)
}

func (h *hooks) list(ctx context.Context, group string, launching bool) ([]cloud.Hook, error) {
	var found []cloud.Hook
	err := h.call(ctx, "DescribeLifecycleHooks", group, func(ctx context.Context, api *autoscaling.Client, _ identity) error {
		out, err := api.DescribeLifecycleHooks(ctx, &autoscaling.DescribeLifecycleHooksInput{AutoScalingGroupName: &group})
		if err != nil {
			return err
		}
		transition := "autoscaling:EC2_INSTANCE_TERMINATING"
		if launching {
			transition = "autoscaling:EC2_INSTANCE_LAUNCHING"
		}
		found = nil
		for _, l := range out.LifecycleHooks {
			if sdk.ToString(l.LifecycleTransition) != transition {
				continue
			}
			hook := cloud.Hook{Provider: Name, Group: group, Name: sdk.ToString(l.LifecycleHookName), Launching: launching, Timeout: seconds(l.HeartbeatTimeout)}
			hook.Abandons = sdk.ToString(l.DefaultResult) == "ABANDON"
			if limit := seconds(l.GlobalTimeout); limit > 0 {
				// An upper bound: the wait has not begun, or has just begun.
				hook.Limit = time.Now().Add(limit)
			}
			found = append(found, hook)
		}
		return nil
	})
	slices.SortFunc(found, func(a, b cloud.Hook) int { return cmp.Compare(a.Name, b.Name) })
	return found, err
}

func seconds(n *int32) time.Duration { return time.Duration(max(0, sdk.ToInt32(n))) * time.Second }

// Extend implements cloud.Hooks.
func (h *hooks) Extend(ctx context.Context, hook cloud.Hook) (time.Duration, error) {
	return hook.Timeout, h.why(ctx, hook, h.extend(ctx, hook, nil))
}

// extend omits a real hook's token: the instance's id selects the waiting action, and a late event's token may be stale.
func (h *hooks) extend(ctx context.Context, hook cloud.Hook, token *string) error {
	return h.call(ctx, "RecordLifecycleActionHeartbeat", hook.Group, func(ctx context.Context, api *autoscaling.Client, self identity) error {
		_, err := api.RecordLifecycleActionHeartbeat(ctx, &autoscaling.RecordLifecycleActionHeartbeatInput{
			AutoScalingGroupName: &hook.Group, LifecycleHookName: &hook.Name, InstanceId: &self.InstanceID, LifecycleActionToken: token,
		})
		return err
	})
}

// Complete implements cloud.Hooks.
func (h *hooks) Complete(ctx context.Context, hook cloud.Hook) error {
	return h.why(ctx, hook, h.call(ctx, "CompleteLifecycleAction", hook.Group, func(ctx context.Context, api *autoscaling.Client, self identity) error {
		_, err := api.CompleteLifecycleAction(ctx, &autoscaling.CompleteLifecycleActionInput{
			AutoScalingGroupName: &hook.Group, LifecycleHookName: &hook.Name, InstanceId: &self.InstanceID,
			LifecycleActionResult: sdk.String("CONTINUE"),
		})
		return err
	}))
}

func (h *hooks) why(ctx context.Context, hook cloud.Hook, err error) error {
	if !errors.Is(err, cloud.ErrNotWaiting) {
		return err
	}
	group, state, merr := h.membership(ctx)
	switch {
	case merr != nil:
		return err
	case group == "":
		return fmt.Errorf("%w: the instance is in no group any more", cloud.ErrGone)
	case group != hook.Group:
		return fmt.Errorf("%w: the instance is in group %s now, not in %s", cloud.ErrMoved, group, hook.Group)
	case isOver(state, hook.Launching), hook.Parking && isParked(state):
		return fmt.Errorf("%w: the instance is %s", cloud.ErrGone, state)
	}
	return fmt.Errorf("%w (the instance is %s)", err, state)
}

func isParked(state string) bool {
	switch state {
	case "Standby", "Warmed:Running", "Warmed:Stopped", "Warmed:Hibernated":
		return true
	}
	return false
}

// isOver reports whether no hook will wait. The API may lag behind the metadata, so states before the transition do not
// count.
func isOver(state string, launching bool) bool {
	main, step, _ := strings.Cut(strings.TrimPrefix(state, "Warmed:"), ":")
	switch main {
	case "Terminated", "Detached", "Detaching":
		return true
	case "Terminating":
		return launching || step == "Proceed" || step == "Retained"
	case "Pending":
		return launching && state == "Pending:Proceed"
	case "InService":
		return launching
	}
	return false
}

// Check implements cloud.Provider. While the group has the machine in service, no hook waits for it.
func (p *Provider) Check(ctx context.Context, f cloud.Filter) (cloud.Check, error) {
	h := p.hooks
	group, state, err := h.membership(ctx)
	if err != nil || group == "" {
		return cloud.Check{Group: group}, err
	}
	all, err := h.list(ctx, group, false)
	if err != nil {
		return cloud.Check{Group: group, Unproved: cloud.UnprovedBoth}, err
	}
	return f.Check(group, all, func(hook cloud.Hook) error {
		if state != "InService" {
			return nil
		}
		return h.extend(ctx, hook, sdk.String("00000000-0000-0000-0000-000000000000")) // matches no action
	})
}

// Policy returns the smallest sufficient policy for a group as JSON; "" means all groups.
func Policy(region, account, group string) string {
	partition := "aws"
	for prefix, name := range map[string]string{"cn-": "aws-cn", "us-gov-": "aws-us-gov", "eusc-": "aws-eusc"} {
		if strings.HasPrefix(region, prefix) {
			partition = name
		}
	}
	// AWS supports no narrower resource for the Describe calls.
	return fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["autoscaling:CompleteLifecycleAction","autoscaling:RecordLifecycleActionHeartbeat"],`+
		`"Resource":"arn:%s:autoscaling:%s:%s:autoScalingGroup:*:autoScalingGroupName/%s"},`+
		`{"Effect":"Allow","Action":["autoscaling:DescribeAutoScalingInstances","autoscaling:DescribeLifecycleHooks"],"Resource":"*"}]}`,
		partition, cmp.Or(region, "*"), cmp.Or(account, "*"), quoted.Replace(cmp.Or(group, "*")))
}

var quoted = strings.NewReplacer(`\`, `\\`, `"`, `\"`)
