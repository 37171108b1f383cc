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
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// EndpointAutoScaling is the key of the Auto Scaling API in [cloud.Options.Endpoints].
const EndpointAutoScaling = "aws-autoscaling"

const noRole = "the instance has no IAM role (instance profile)"

// credentialsWindow is the renewal margin that AWS advises.
const credentialsWindow = 5 * time.Minute

// roleMetadata reads the role's credentials with the agent's client.
type roleMetadata struct{ p *Provider }

// GetMetadata implements ec2rolecreds.GetMetadataAPIClient.
func (r roleMetadata) GetMetadata(ctx context.Context, in *imds.GetMetadataInput, _ ...func(*imds.Options)) (*imds.GetMetadataOutput, error) {
	const dir = "iam/security-credentials"
	path := strings.Trim(in.Path, "/")
	if path == dir {
		path += "/" // the service lists the folder only with the slash
	}
	body, err := cloud.Read(ctx, r.p.Client, meta("credentials of the role", path), func(b []byte) ([]byte, error) {
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

// open reads the identity, whose region is needed; both stay.
func (p *Provider) open(ctx context.Context) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.groups != nil {
		return nil
	}
	if p.self, err = cloud.Read(ctx, p.Client, cloud.Item{Name: document.Name, Path: document.Path}, parseIdentity); err != nil {
		return err
	}
	o := autoscaling.Options{
		Region: p.self.Region, Credentials: p.credentials, HTTPClient: answers{p.api.HTTP},
		Retryer: retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts, o.MaxBackoff, o.RateLimiter = cloud.CallAttempts, time.Second, ratelimit.None
			// The SDK corrects its clock after this error, but does not retry.
			o.Retryables = append(o.Retryables, retry.RetryableErrorCode{Codes: map[string]struct{}{"RequestExpired": {}}})
		}),
	}
	switch {
	case p.api.Endpoint != "":
		o.BaseEndpoint = &p.api.Endpoint
	case !p.self.PrivateIP.IsValid():
		// The default name is reachable over IPv6 only by NAT64 or a VPC endpoint.
		o.EndpointOptions.UseDualStackEndpoint = sdk.DualStackEndpointStateEnabled
	}
	p.groups = autoscaling.New(o)
	return nil
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
func (p *Provider) call(ctx context.Context, action, group string, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, cloud.CallTimeout)
	defer cancel()
	err := p.open(ctx)
	if err != nil {
		return cloud.Calling(action, err)
	}
	if err = fn(ctx); code(err) == "ExpiredToken" || code(err) == "InvalidClientTokenId" {
		p.credentials.Invalidate()
		err = fn(ctx)
	}
	if err == nil {
		return nil
	}
	return cloud.Calling(action, p.explain(err, action, group))
}

func code(err error) string {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return e.ErrorCode()
	}
	return ""
}

func (p *Provider) denied(action, group, reason string) error {
	return &cloud.DeniedError{
		Permission: "autoscaling:" + action, Policy: Policy(p.self.Region, p.self.AccountID, group), Reason: reason, NoRole: reason == noRole,
		Provider: Name, Group: group,
	}
}

func (p *Provider) explain(err error, action, group string) error {
	if e, ok := errors.AsType[*cloud.Error](err); ok { // the metadata service returned no credentials
		if errors.Is(e.Kind, cloud.ErrNotFound) {
			return p.denied(action, group, noRole)
		}
		return e
	}
	api, ok := errors.AsType[smithy.APIError](err)
	if _, sent := errors.AsType[*smithyhttp.RequestSendError](err); sent || !ok && errors.Is(err, context.DeadlineExceeded) {
		return cloud.Unreachable("Auto Scaling", err)
	}
	if !ok {
		return fmt.Errorf("the answer is not one of the Auto Scaling API: %w", cloud.WireCause(err))
	}
	message := cloud.Printable(api.ErrorMessage())
	switch api.ErrorCode() {
	case "AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "NotAuthorized", "OptInRequired":
		return p.denied(action, group, message)
	case "AssumeRoleUnauthorizedAccess":
		return p.denied(action, group, "EC2 cannot take on the role of the instance: "+message)
	case "RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch":
		message += " (is the clock of this machine right?)"
	case "ValidationError":
		return invalid(message)
	}
	return fmt.Errorf("%s: %s", cloud.Printable(api.ErrorCode()), message)
}

func invalid(message string) error {
	switch {
	case strings.Contains(message, "No active Lifecycle Action"):
		return fmt.Errorf("%w: %s", cloud.ErrNotWaiting, message)
	case strings.Contains(message, "not found"):
		return fmt.Errorf("%w: %s", cloud.ErrGone, message)
	}
	return errors.New("ValidationError: " + message)
}

// membership returns the group or "", and a lifecycle state such as InService or Terminating:Wait.
func (p *Provider) membership(ctx context.Context) (group, state string, err error) {
	err = p.call(ctx, "DescribeAutoScalingInstances", "", func(ctx context.Context) error {
		out, err := p.groups.DescribeAutoScalingInstances(ctx, &autoscaling.DescribeAutoScalingInstancesInput{InstanceIds: []string{p.self.InstanceID}})
		if err != nil {
			return err
		}
		for _, i := range out.AutoScalingInstances {
			if sdk.ToString(i.InstanceId) == p.self.InstanceID {
				group, state = sdk.ToString(i.AutoScalingGroupName), sdk.ToString(i.LifecycleState)
			}
		}
		return nil
	})
	return group, state, err
}

// Pending implements cloud.Hooks: all hooks of the group wait at their transition.
func (p *Provider) Pending(ctx context.Context, launching bool) ([]cloud.Hook, error) {
	group, _, err := p.membership(ctx)
	if _, denied := errors.AsType[*cloud.DeniedError](err); denied {
		// The tag also names the group.
		group, _ = cloud.Read(ctx, p.Client, meta("tag "+tagGroup, "tags/instance/"+tagGroup), cloud.ParseValue)
	}
	if err != nil && group == "" {
		return nil, err
	}
	if group == "" {
		return nil, nil
	}
	return p.list(ctx, group, launching)
}

func (p *Provider) list(ctx context.Context, group string, launching bool) ([]cloud.Hook, error) {
	var found []cloud.Hook
	err := p.call(ctx, "DescribeLifecycleHooks", group, func(ctx context.Context) error {
		out, err := p.groups.DescribeLifecycleHooks(ctx, &autoscaling.DescribeLifecycleHooksInput{AutoScalingGroupName: &group})
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
			hook := cloud.Hook{Provider: Name, Group: group, Name: sdk.ToString(l.LifecycleHookName), Launching: launching, Timeout: seconds.Duration(ofSeconds(l.HeartbeatTimeout))}
			hook.Abandons = sdk.ToString(l.DefaultResult) == "ABANDON"
			if limit := ofSeconds(l.GlobalTimeout); limit > 0 {
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

func ofSeconds(n *int32) time.Duration { return time.Duration(max(0, sdk.ToInt32(n))) * time.Second }

// Extend implements cloud.Hooks.
func (p *Provider) Extend(ctx context.Context, hook cloud.Hook) (time.Duration, error) {
	return time.Duration(hook.Timeout), p.why(ctx, hook, p.extend(ctx, hook, nil))
}

// extend omits a real hook's token: the instance's id selects the waiting action, and a late event's token may be stale.
func (p *Provider) extend(ctx context.Context, hook cloud.Hook, token *string) error {
	return p.call(ctx, "RecordLifecycleActionHeartbeat", hook.Group, func(ctx context.Context) error {
		_, err := p.groups.RecordLifecycleActionHeartbeat(ctx, &autoscaling.RecordLifecycleActionHeartbeatInput{
			AutoScalingGroupName: &hook.Group, LifecycleHookName: &hook.Name, InstanceId: &p.self.InstanceID, LifecycleActionToken: token,
		})
		return err
	})
}

// Complete implements cloud.Hooks.
func (p *Provider) Complete(ctx context.Context, hook cloud.Hook) error {
	return p.why(ctx, hook, p.call(ctx, "CompleteLifecycleAction", hook.Group, func(ctx context.Context) error {
		_, err := p.groups.CompleteLifecycleAction(ctx, &autoscaling.CompleteLifecycleActionInput{
			AutoScalingGroupName: &hook.Group, LifecycleHookName: &hook.Name, InstanceId: &p.self.InstanceID,
			LifecycleActionResult: sdk.String("CONTINUE"),
		})
		return err
	}))
}

func (p *Provider) why(ctx context.Context, hook cloud.Hook, err error) error {
	if !errors.Is(err, cloud.ErrNotWaiting) {
		return err
	}
	group, state, merr := p.membership(ctx)
	switch {
	case merr != nil:
		return err
	case group == "":
		return fmt.Errorf("%w: the instance is in no group any more", cloud.ErrGone)
	case group != hook.Group:
		return fmt.Errorf("%w: the instance is in group %s now, not in %s", cloud.ErrMoved, group, hook.Group)
	case isOver(state, hook):
		return fmt.Errorf("%w: the instance is %s", cloud.ErrGone, state)
	}
	return fmt.Errorf("%w (the instance is %s)", err, state)
}

// isOver reports whether the hook will not wait any more. The API may lag behind the metadata, so states before the
// transition do not count.
func isOver(state string, hook cloud.Hook) bool {
	main, step, _ := strings.Cut(strings.TrimPrefix(state, "Warmed:"), ":")
	switch main {
	case "Terminated", "Detached", "Detaching":
		return true
	case replacingRoot:
		return !hook.Launching && step == "Proceed"
	case "Terminating":
		return hook.Launching || step == "Proceed" || step == "Retained"
	case "Pending":
		return hook.Launching && state == "Pending:Proceed"
	case "InService":
		return hook.Launching
	case "Standby", "Running", "Stopped", "Hibernated":
		return hook.Parking
	}
	return false
}

// Check implements cloud.Provider. While the group has the machine in service, no hook waits for it.
func (p *Provider) Check(ctx context.Context, f cloud.Filter) (cloud.Check, error) {
	group, state, err := p.membership(ctx)
	if err != nil || group == "" {
		return cloud.Check{Group: group}, err
	}
	all, err := p.list(ctx, group, false)
	if err != nil {
		return cloud.Check{Group: group, Unproved: cloud.UnprovedBoth}, err
	}
	return f.Check(group, all, func(hook cloud.Hook) error {
		if state != "InService" {
			return nil
		}
		return p.extend(ctx, hook, sdk.String("00000000-0000-0000-0000-000000000000")) // matches no action
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
