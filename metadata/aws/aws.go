// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package aws reads the EC2 instance metadata service (IMDSv2) and calls the Auto Scaling API for this instance.
//
// The SDK's retries are off: a slow service exhausts their budget for a long time. Package cloud retries instead.
package aws

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Name is this provider's name.
const Name = "aws"

// tagGroup is set by the Auto Scaling group.
const tagGroup = "aws:autoscaling:groupName"

const (
	hintHopLimit = "the service takes the connection and never answers the token request: from inside a container the hop limit " +
		"of the metadata options must be 2 or more (aws ec2 modify-instance-metadata-options --http-put-response-hop-limit 2); " +
		"or run on the host, or use --provider generic"
	hintOff = "the metadata service is switched off for this instance or closed to this process: set HttpEndpoint=enabled in the " +
		"instance's metadata options, or use --provider generic"
	hintNoV2       = "what answers knows no session tokens (IMDSv2), so it is not the EC2 metadata service, or a very old stand-in for it"
	hintNoDocument = "every EC2 instance has an identity document, and what answers here has none: use the --provider of the cloud this " +
		"machine is in, or generic"
	hintTags = "EC2 shows no tags in the metadata: set InstanceMetadataTags=enabled in the metadata options of the launch template, " +
		"or give MongoDB's address, role and group by flag, environment or configuration file (this is also what an instance without any tag looks like)"
	hintUnreachable = "no metadata service at the address: if this is no EC2 instance use --provider generic, else look for a firewall " +
		"rule or a missing route to 169.254.169.254"
)

// Provider reads the metadata of this EC2 instance. It is safe for concurrent use.
type Provider struct {
	*cloud.Client
	imds  *imds.Client
	hosts cloud.Hosts // the index of the address in use

	api cloud.APIClient // of Auto Scaling
	// credentials come only from the metadata service, never from a file or the environment.
	credentials *sdk.CredentialsCache

	mu     sync.Mutex
	groups *autoscaling.Client // nil until the identity is known
	self   identity
}

var (
	_ cloud.Provider = (*Provider)(nil)
	_ cloud.Hooks    = (*Provider)(nil)
)

// New opens the provider. It makes no request, and returns [cloud.ErrForbidden] if opts disables the provider.
func New(opts cloud.Options) (*Provider, error) {
	if slices.Contains(opts.Disabled, Name) {
		return nil, &cloud.Error{
			Provider: Name, Item: "instance", Kind: cloud.ErrForbidden,
			Cause: errors.New("the EC2 metadata service is disabled by the settings of this process"),
			Hint:  "unset AWS_EC2_METADATA_DISABLED, or use --provider generic",
		}
	}
	p := &Provider{}
	var err error
	p.Client, err = cloud.New(cloud.Client{
		Provider: Name, Ask: p.ask, Foreign: hintNoDocument, Silent: hintHopLimit, NoTokens: hintNoV2,
		Hints: map[int]string{0: hintUnreachable, http.StatusUnauthorized: cloud.HintToken, http.StatusForbidden: hintOff},
	}, opts)
	if err != nil {
		return nil, err
	}
	p.imds = imds.New(imds.Options{
		HTTPClient: wire{p}, Endpoint: cmp.Or(p.Origin, "http://169.254.169.254"),
		// Explicit, so that the SDK ignores the environment.
		ClientEnableState: imds.ClientEnabled,
		// IMDSv1 is readable through any program that fetches URLs.
		EnableFallback:        sdk.FalseTernary,
		Retryer:               sdk.NopRetryer{},
		DisableDefaultTimeout: true,
	})
	p.credentials = sdk.NewCredentialsCache(
		ec2rolecreds.New(func(o *ec2rolecreds.Options) { o.Client = roleMetadata{p} }),
		func(o *sdk.CredentialsCacheOptions) { o.ExpiryWindow = credentialsWindow },
	)
	p.api, err = opts.API(EndpointAutoScaling)
	return p, err
}

// wire sends the SDK's requests with the agent's client.
type wire struct{ p *Provider }

// exchangeKey holds the *exchange of one call.
type exchangeKey struct{}

// exchange is the last answer: the SDK's error lacks the cause.
type exchange struct {
	head   http.Header
	body   []byte
	failed *cloud.Error
}

// Do implements the SDK's HTTP client.
func (w wire) Do(req *http.Request) (*http.Response, error) {
	used := w.p.hosts.Current()
	if w.p.Origin == "" && used%2 == 1 {
		// An IPv6-only machine may have no route to the IPv4 address. Nitro machines have this one if it is enabled.
		req.URL.Host = "[fd00:ec2::254]"
	}
	head, body, e := w.p.Do(req)
	w.p.hosts.Note(used, e == nil || e.Connected)
	if last, ok := req.Context().Value(exchangeKey{}).(*exchange); ok {
		*last = exchange{head, body, e}
	}
	status := http.StatusOK
	if e != nil {
		if status = e.Status; status != http.StatusUnauthorized { // the SDK renews its session token on this answer
			return nil, e
		}
	}
	return &http.Response{StatusCode: status, Header: head, Body: io.NopCloser(bytes.NewReader(body)), Request: req}, nil
}

func (p *Provider) ask(ctx context.Context, i cloud.Item) (http.Header, []byte, *cloud.Error) {
	var last exchange
	ctx = context.WithValue(ctx, exchangeKey{}, &last)
	var err error
	if rest, ok := strings.CutPrefix(i.Path, "dynamic/"); ok {
		_, err = p.imds.GetDynamicData(ctx, &imds.GetDynamicDataInput{Path: rest})
	} else {
		_, err = p.imds.GetMetadata(ctx, &imds.GetMetadataInput{Path: strings.TrimPrefix(i.Path, "meta-data/")})
	}
	switch {
	case err == nil:
		return last.head, last.body, nil
	case last.failed == nil && (ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded)):
		// Nothing was asked.
		return nil, nil, &cloud.Error{Kind: cloud.ErrNotReady, Cause: cloud.WireCause(err)}
	case last.failed == nil:
		// The SDK rejected the token or the missing lifetime.
		return nil, nil, &cloud.Error{Kind: cloud.ErrBadAnswer, Status: http.StatusOK, Connected: true, Token: true, Cause: cloud.WireCause(err)}
	}
	return last.head, nil, last.failed
}

type identity struct {
	AccountID        string `json:"accountId"`
	InstanceID       string `json:"instanceId"`
	Region           string `json:"region"`
	AvailabilityZone string `json:"availabilityZone"`
	InstanceType     string `json:"instanceType"`
	// PrivateIP is null without IPv4.
	PrivateIP netip.Addr `json:"privateIp"`
}

func parseIdentity(body []byte) (identity, error) {
	var id identity
	if err := json.Unmarshal(body, &id); err != nil {
		return id, fmt.Errorf("the identity document is not the JSON expected: %w", err)
	}
	if !strings.HasPrefix(id.InstanceID, "i-") || !cloud.IsID(id.InstanceID) || id.Region == "" {
		return id, fmt.Errorf("the identity document names instance %s in region %s", cloud.Quote(id.InstanceID), cloud.Quote(id.Region))
	}
	if !id.PrivateIP.IsGlobalUnicast() {
		// Without IPv4 a link-local address serves the metadata only.
		id.PrivateIP = netip.Addr{}
	}
	return id, nil
}

var document = cloud.Item{Name: "identity document", Path: "dynamic/instance-identity/document", Required: true}

// Instance implements cloud.Provider.
func (p *Provider) Instance(ctx context.Context) (cloud.Instance, error) {
	ctx, cancel := context.WithTimeout(ctx, cloud.Timeout)
	defer cancel()
	id, err := cloud.Read(ctx, p.Client, document, parseIdentity)
	if err != nil {
		return cloud.Instance{}, err
	}
	inst := cloud.Instance{
		Provider: Name, ID: id.InstanceID, IDSource: "instance id of the identity document",
		AccountID: id.AccountID, Region: id.Region, Zone: id.AvailabilityZone, Type: id.InstanceType,
	}
	inst.LifeCycle = cloud.Optional(ctx, p.Client, &inst, "life_cycle", meta("instance life cycle", "instance-life-cycle"), cloud.ParseLine)
	hostname := cloud.Optional(ctx, p.Client, &inst, "hostname", meta("host name", "local-hostname"), cloud.ParseLine)
	// Several DHCP domains follow the name.
	inst.Hostname, _, _ = strings.Cut(hostname, " ")
	public := cloud.Optional(ctx, p.Client, &inst, "public_address", meta("public address", "public-ipv4"), cloud.ParseAddresses)
	var v6 []netip.Addr
	// The first interface: the list of interfaces is unordered.
	if mac := cloud.Optional(ctx, p.Client, &inst, "ipv6", meta("MAC address", "mac"), cloud.ParseLine); mac != "" {
		v6 = cloud.Optional(ctx, p.Client, &inst, "ipv6", meta("IPv6 addresses", "network/interfaces/macs/"+url.PathEscape(mac)+"/ipv6s"), cloud.ParseAddresses)
	}
	inst.Reached(id.PrivateIP, "private address of the identity document", public, v6)
	p.readTags(ctx, &inst)
	return inst, cloud.Left(ctx, Name)
}

func meta(name, path string) cloud.Item { return cloud.Item{Name: name, Path: "meta-data/" + path} }

func (p *Provider) readTags(ctx context.Context, inst *cloud.Instance) {
	keys, err := cloud.Read(ctx, p.Client, meta("list of tags", "tags/instance"), parseTagKeys)
	switch {
	case errors.Is(err, cloud.ErrNotFound):
		inst.TagsHint = hintTags
		return
	case err != nil:
		inst.Miss(p.Options.Log, "tags", err)
		inst.TagsHint = cloud.Unread("tags", err)
		return
	}
	if !slices.Contains(keys, tagGroup) {
		// AWS does not document whether the list contains its own tags.
		keys = append(keys, tagGroup)
	}
	inst.Tags, inst.TagsKnown = cloud.Tags{}, true
	for _, key := range keys {
		v, err := cloud.Read(ctx, p.Client, meta("tag "+key, "tags/instance/"+key), cloud.ParseValue)
		switch {
		case err == nil:
			inst.Tags[key] = v
		case !errors.Is(err, cloud.ErrNotFound):
			// The unreadable tag may be the role: not absent.
			inst.Miss(p.Options.Log, "tags", err)
			inst.TagsKnown, inst.TagsHint = false, cloud.Unread("tags", err)
		}
	}
	inst.Group = inst.Tags[tagGroup]
}

func parseTagKeys(body []byte) ([]string, error) {
	var keys []string
	for line := range strings.Lines(string(body)) {
		key := strings.TrimRight(line, "\r\n")
		// EC2 hides tags whose key contains a path separator or is a path.
		if strings.ContainsAny(key, "/<> \t\r") || len(key) > cloud.MaxText || len(keys) == cloud.MaxTags {
			return nil, fmt.Errorf("the list of tags holds %s, which is no tag key", cloud.Quote(key))
		}
		if key != "" && key != "." && key != ".." && key != "_index" && !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys, nil
}
