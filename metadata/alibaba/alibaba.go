// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package alibaba reads the instance metadata of Alibaba Cloud. Scale-ins and hooks come from the Auto Scaling API (ESS),
// tags from the ECS API.
//
// It signs its calls itself: the maintained generic client costs 1.8 MB of binary for seven calls.
package alibaba

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Name is this provider's name.
const Name = "alibaba"

// Keys of the APIs in [cloud.Options.Endpoints].
const (
	EndpointECS = "alibaba-ecs"
	EndpointESS = "alibaba-ess"
)

// tagGroup is set by the scaling group.
const tagGroup = "acs:autoscaling:scalingGroupId"

const (
	hintSilent = "the service takes the connection and never answers the token request: look for something between this process and " +
		"100.100.100.200 that swallows PUT requests; or use --provider generic"
	hintOff = "the metadata service is switched off for this instance or closed to this process: set HttpEndpoint=enabled in the " +
		"instance's metadata options (aliyun ecs ModifyInstanceMetadataOptions), or use --provider generic"
	hintNoToken    = "what answers gives no session token (hardened mode), so it is not the metadata service of Alibaba Cloud, or a stand-in for it"
	hintNoDocument = "every ECS instance has an identity document, and what answers here has none: use the --provider of the cloud this " +
		"machine is in, or generic"
	hintUnreachable = "no metadata service at 100.100.100.200, which answers in a VPC only: if this is no ECS instance use --provider " +
		"generic, else look for a firewall rule or a missing route"
	hintTags = "the metadata of Alibaba Cloud show no tags: give the instance a RAM role that may ecs:ListTagResources, write a line " +
		"such as amsagent-role=edge into the user data, or give MongoDB's address, role and group by flag, environment or configuration file"
)

// Provider reads the metadata of this ECS instance. It is safe for concurrent use.
type Provider struct {
	*cloud.Client
	ecs, ess *api
	mu       sync.Mutex
	self     identity // zero if unknown
	keysMu   sync.Mutex
	keys     credentials
	// skew is how far the API's clock is ahead, a time.Duration.
	skew atomic.Int64
}

var (
	_ cloud.Provider = (*Provider)(nil)
	_ cloud.Hooks    = (*Provider)(nil)
)

// New opens the provider. It makes no request.
func New(opts cloud.Options) (*Provider, error) {
	p := &Provider{}
	var err error
	p.Client, err = cloud.New(cloud.Client{
		// The address is not link-local, and answers only in a VPC.
		Provider: Name, Origin: "http://100.100.100.200", Path: "/latest/", Foreign: hintNoDocument, Silent: hintSilent, NoTokens: hintNoToken,
		Hints: map[int]string{0: hintUnreachable, http.StatusUnauthorized: cloud.HintToken, http.StatusForbidden: hintOff},
		// The service issues tokens even if hardened mode is off.
		Token: &cloud.Token{
			Path: "api/token", TTL: "X-Aliyun-Ecs-Metadata-Token-Ttl-Seconds", Header: "X-Aliyun-Ecs-Metadata-Token", Lifetime: 6 * time.Hour,
		},
	}, opts)
	if err != nil {
		return nil, err
	}
	if p.ecs, err = newAPI(p, "ecs", "2014-05-26", EndpointECS); err != nil {
		return nil, err
	}
	p.ess, err = newAPI(p, "ess", "2022-02-22", EndpointESS)
	return p, err
}

type identity struct {
	AccountID  string     `json:"owner-account-id"`
	InstanceID string     `json:"instance-id"`
	Region     string     `json:"region-id"`
	Zone       string     `json:"zone-id"`
	Type       string     `json:"instance-type"`
	MAC        string     `json:"mac"`
	PrivateIP  netip.Addr `json:"private-ipv4"`
}

func parseIdentity(body []byte) (identity, error) {
	var id identity
	if err := json.Unmarshal(body, &id); err != nil {
		return id, fmt.Errorf("the identity document is not the JSON expected: %w", err)
	}
	if !strings.HasPrefix(id.InstanceID, "i-") || !cloud.IsID(id.InstanceID) || !cloud.IsID(id.Region) {
		return id, fmt.Errorf("the identity document names instance %s in region %s", cloud.Quote(id.InstanceID), cloud.Quote(id.Region))
	}
	if !id.PrivateIP.IsGlobalUnicast() {
		id.PrivateIP = netip.Addr{}
	}
	return id, nil
}

var document = cloud.Item{Name: "identity document", Path: "dynamic/instance-identity/document", Required: true}

func meta(name, path string) cloud.Item { return cloud.Item{Name: name, Path: "meta-data/" + path} }

// Instance implements cloud.Provider.
func (p *Provider) Instance(ctx context.Context) (cloud.Instance, error) {
	ctx, cancel := context.WithTimeout(ctx, cloud.Timeout)
	defer cancel()
	id, err := cloud.Read(ctx, p.Client, document, parseIdentity)
	if err != nil {
		return cloud.Instance{}, err
	}
	p.mu.Lock()
	p.self = id
	p.mu.Unlock()
	inst := cloud.Instance{
		Provider: Name, ID: id.InstanceID, IDSource: "instance id of the identity document",
		AccountID: id.AccountID, Region: id.Region, Zone: id.Zone, Type: id.Type,
	}
	inst.Name = cloud.Optional(ctx, p.Client, &inst, "name", meta("instance name", "instance/instance-name"), cloud.ParseLine)
	inst.Hostname = cloud.Optional(ctx, p.Client, &inst, "hostname", meta("host name", "hostname"), cloud.ParseLine)
	public := cloud.Optional(ctx, p.Client, &inst, "public_address", meta("public address", "eipv4"), cloud.ParseAddresses)
	private, source := id.PrivateIP, "private address of the identity document"
	if !private.IsValid() {
		list := cloud.Optional(ctx, p.Client, &inst, "address", meta("private address", "private-ipv4"), cloud.ParseAddresses)
		if len(list) > 0 && list[0].Is4() {
			private, source = list[0], "private address of the first interface"
		}
	}
	var v6 []netip.Addr
	// The first interface: the list of interfaces is unordered.
	mac := id.MAC
	if mac == "" {
		mac = cloud.Optional(ctx, p.Client, &inst, "ipv6", meta("MAC address", "mac"), cloud.ParseLine)
	}
	if mac != "" {
		v6 = cloud.Optional(ctx, p.Client, &inst, "ipv6", meta("IPv6 addresses", "network/interfaces/macs/"+url.PathEscape(mac)+"/ipv6s"), cloud.ParseAddresses)
	}
	inst.Reached(private, source, public, v6)
	p.readTags(ctx, id, &inst)
	return inst, cloud.Left(ctx, Name)
}

// parseTime parses Alibaba's times; some interfaces omit the seconds. It returns zero if invalid.
func parseTime(text string) time.Time { return cloud.ParseTime(text, "2006-01-02T15:04Z") }

// readTags merges user data and tags; tags take precedence.
func (p *Provider) readTags(ctx context.Context, self identity, inst *cloud.Instance) {
	user, err := cloud.Read(ctx, p.Client, cloud.Item{Name: "user data", Path: "user-data"}, func(body []byte) (cloud.Tags, error) { return ParseUserData(body), nil })
	if err != nil && !errors.Is(err, cloud.ErrNotFound) {
		inst.Miss(p.Options.Log, "tags", err)
		inst.TagsHint = cloud.Unread("tags", err)
		return
	}
	inst.Tags = user
	tags, err := p.instanceTags(ctx, self)
	denied, isDenied := errors.AsType[*cloud.DeniedError](err)
	switch {
	case err == nil:
		if inst.Tags == nil {
			inst.Tags = cloud.Tags{}
		}
		maps.Copy(inst.Tags, tags)
		inst.TagsKnown, inst.Group = true, inst.Tags[tagGroup]
	case isDenied && denied.NoRole:
		// With settings in the user data no role is needed.
		if inst.TagsKnown = len(user) > 0; !inst.TagsKnown {
			inst.TagsHint = hintTags
		}
	case isDenied, errors.Is(err, cloud.ErrUnreachable):
		inst.TagsHint = fmt.Sprintf("%s (asking the ECS API: %v)", hintTags, err)
	default:
		// The unreadable tag may be the role: not absent.
		inst.Miss(p.Options.Log, "tags", err)
		inst.TagsHint = cloud.Unread("tags", err)
	}
}

// An instance has at most 20 tags, which fit one page.
func (p *Provider) instanceTags(ctx context.Context, self identity) (cloud.Tags, error) {
	var out struct {
		Tags list[struct {
			Key   string `json:"TagKey"`
			Value string `json:"TagValue"`
		}] `json:"TagResources"`
	}
	err := p.ecs.call(ctx, 1, "ListTagResources", url.Values{"ResourceType": {"instance"}, "ResourceId.1": {self.InstanceID}}, &out)
	tags := cloud.Tags{}
	for _, t := range out.Tags {
		tags[t.Key] = t.Value
	}
	return tags, err
}

const maxUserTags = 16

var (
	userTag = regexp.MustCompile(`(?m)^[ \t]*[#;/*-]{0,3}[ \t]*(amsagent[-:][a-z_-]{1,31})[ \t]*[=:][ \t]*(\S+)`)
	quotes  = regexp.MustCompile(`^(?:"(.*)"|'(.*)')$`)
)

// ParseUserData finds the agent's tags in any text. A tag is one line, possibly indented or a comment (#, ; or //):
//
//	amsagent-role=edge
//	# amsagent:role: edge
//
// The value has no spaces and may be quoted. The first line for a name wins.
func ParseUserData(body []byte) cloud.Tags {
	if !utf8.Valid(body) {
		return nil
	}
	tags := cloud.Tags{}
	for _, found := range userTag.FindAllStringSubmatch(string(body), -1) {
		name, value := found[1], quotes.ReplaceAllString(found[2], "$1$2")
		if _, twice := tags[name]; twice || value == "" || len(tags) == maxUserTags || strings.ContainsFunc(value, unicode.IsControl) {
			continue
		}
		tags[name] = value
	}
	return tags
}
