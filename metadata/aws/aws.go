// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Name of this provider.
const Name = "aws"

// The addresses of the service. The second exists on Nitro machines where it was switched on.
const (
	Endpoint     = "http://169.254.169.254"
	EndpointIPv6 = "http://[fd00:ec2::254]"
)

// tagGroup is put on each instance by its Auto Scaling group.
const tagGroup = "aws:autoscaling:groupName"

// parallel requests at most: the service throttles per instance and shares its packet budget with DNS and NTP.
const parallel = 4

// optionalAttempts bounds the tries for what a node can live without, so that one broken item does not use up the
// whole bound of a boot.
const optionalAttempts = 3

const (
	hintHopLimit = "the service takes the connection and never answers the token request: from inside a container the hop limit " +
		"of the metadata options must be 2 or more (aws ec2 modify-instance-metadata-options --http-put-response-hop-limit 2); " +
		"or run on the host, or use --provider generic"
	hintOff = "the metadata service is switched off for this instance or closed to this process: set HttpEndpoint=enabled in the " +
		"instance's metadata options, or use --provider generic"
	hintToken = "the service refuses session tokens that it has just given out: something between this process and the service " +
		"changes the requests"
	hintNoV2       = "what answers knows no session tokens (IMDSv2), so it is not the EC2 metadata service, or a very old stand-in for it"
	hintNoDocument = "every EC2 instance has an identity document, and what answers here has none: use the --provider of the cloud this " +
		"machine is in, or generic"
	hintTags = "EC2 shows no tags in the metadata: set InstanceMetadataTags=enabled in the metadata options of the launch template, " +
		"or give role and group by flag, environment or configuration file (this is also what an instance without any tag looks like)"
	hintUnreachable = "no metadata service at the address: if this is no EC2 instance use --provider generic, else look for a firewall " +
		"rule or a missing route to 169.254.169.254"
)

// Provider reads the metadata of this EC2 instance. It is safe for use by several goroutines.
type Provider struct {
	opts    cloud.Options
	clients []*imds.Client
	// current is the index of the client to try; it moves on until one has connected, which is reached.
	current atomic.Int32
	reached atomic.Pointer[imds.Client]
	items   *cloud.Items
}

var _ cloud.Provider = (*Provider)(nil)

// New opens the provider. It makes no request.
func New(opts cloud.Options) (*Provider, error) {
	opts = opts.WithDefaults()
	if opts.IsDisabled(Name) {
		return nil, &cloud.Error{
			Provider: Name, Item: "instance", Kind: cloud.ErrForbidden,
			Cause: errors.New("the EC2 metadata service is disabled by the settings of this process"),
			Hint:  "unset AWS_EC2_METADATA_DISABLED, or use --provider generic",
		}
	}
	given, err := opts.Endpoint(Name)
	if err != nil {
		return nil, err
	}
	endpoints := []string{Endpoint, EndpointIPv6}
	if given != "" {
		endpoints = []string{given}
	}
	p := &Provider{opts: opts}
	p.items = &cloud.Items{Provider: Name, Options: opts, Fetch: p.fetch, Judge: p.judge, Slots: make(chan struct{}, parallel)}
	client := opts.HTTPClient()
	for _, e := range endpoints {
		p.clients = append(p.clients, imds.New(imds.Options{
			HTTPClient: client,
			Endpoint:   e,
			// Said outright so that the SDK does not look into the environment.
			ClientEnableState: imds.ClientEnabled,
			// Without a token nothing is asked: what answers so can be read by whoever can be made to fetch a URL.
			EnableFallback:        sdk.FalseTernary,
			Retryer:               sdk.NopRetryer{},
			DisableDefaultTimeout: true,
		}))
	}
	return p, nil
}

// Name implements cloud.Provider.
func (p *Provider) Name() string { return Name }

// Identity reads the identity document alone. It is what proves that this is EC2.
func (p *Provider) Identity(ctx context.Context) (Identity, error) {
	// A service that has just come up may not have it yet, so its absence is not believed at once.
	id, err := cloud.ReadItem(ctx, p.items, cloud.Item{Name: "identity document", Path: "dynamic/instance-identity/document", NotFoundAttempts: 2}, ParseIdentity)
	if e, ok := errors.AsType[*cloud.Error](err); ok && errors.Is(err, cloud.ErrNotFound) {
		e.Kind, e.Hint = cloud.ErrNotThisCloud, hintNoDocument
	}
	return id, err
}

// Instance implements cloud.Provider.
func (p *Provider) Instance(ctx context.Context) (cloud.Instance, error) {
	ctx, cancel := context.WithTimeout(ctx, p.opts.Timeout)
	defer cancel()

	id, err := p.Identity(ctx)
	if err != nil {
		return cloud.Instance{}, err
	}
	inst := cloud.Instance{
		Provider: Name, ID: id.InstanceID, IDSource: "instance id of the identity document",
		AccountID: id.AccountID, Region: id.Region, Zone: id.Zone, Type: id.Type,
	}

	var (
		g          cloud.Gatherer
		public, v6 []netip.Addr
		tags       cloud.TagSet
	)
	g.Do("life_cycle", func() (err error) {
		inst.LifeCycle, err = cloud.ReadItem(ctx, p.items, optional("instance life cycle", "meta-data/instance-life-cycle"), ParseWord)
		return err
	})
	g.Do("hostname", func() (err error) {
		inst.Hostname, err = cloud.ReadItem(ctx, p.items, optional("host name", "meta-data/local-hostname"), ParseHostname)
		return err
	})
	g.Do("public_address", func() (err error) {
		public, err = cloud.ReadItem(ctx, p.items, optional("public address", "meta-data/public-ipv4"), ParseAddresses)
		return err
	})
	g.Do("ipv6", func() (err error) {
		// Of the first interface by the cloud's count, whatever order the list of interfaces has.
		mac, err := cloud.ReadItem(ctx, p.items, optional("MAC address", "meta-data/mac"), cloud.ParseMAC)
		if err != nil {
			return err
		}
		v6, err = cloud.ReadItem(ctx, p.items, optional("IPv6 addresses", "meta-data/network/interfaces/macs/"+mac+"/ipv6s"), ParseAddresses)
		return err
	})
	g.Do("tags", func() (err error) {
		tags, err = p.readTags(ctx)
		return err
	})
	if err := g.Finish(ctx, Name); err != nil {
		return cloud.Instance{}, err
	}

	inst.Reached(id.PrivateIP, "private address of the identity document", public, v6)
	inst.Tags, inst.TagsKnown, inst.TagsHint, inst.Group = tags.Tags, tags.Known, tags.Hint, tags.Group
	g.Tell(p.opts.Log, &inst)
	return inst, nil
}

// readTags reads the tags. Tags that are not shown are no error: see the hint. With an error the set holds what could be
// read, and says that it is not all.
func (p *Provider) readTags(ctx context.Context) (cloud.TagSet, error) {
	keys, err := cloud.ReadItem(ctx, p.items, optional("list of tags", "meta-data/tags/instance"), ParseTagKeys)
	switch {
	case errors.Is(err, cloud.ErrNotFound):
		return cloud.TagSet{Hint: hintTags}, nil
	case err != nil:
		return cloud.TagSet{Hint: cloud.Unread("tags", err)}, err
	}
	var (
		g  cloud.Gatherer
		mu sync.Mutex
	)
	set := cloud.TagSet{Tags: cloud.Tags{}, Known: true}
	if !slices.Contains(keys, tagGroup) {
		// Whether AWS's own tags are in the list is not written anywhere; asking for it costs one request.
		keys = append(keys, tagGroup)
	}
	for _, key := range keys {
		g.Do(key, func() error {
			v, err := cloud.ReadItem(ctx, p.items, optional("tag "+key, "meta-data/tags/instance/"+key), ParseTagValue)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				set.Tags[key] = v
			}
			return err
		})
	}
	g.Wait()
	set.Group = set.Tags[tagGroup]
	if len(g.Errors()) > 0 {
		err := g.Errors()[0]
		if more := len(g.Errors()) - 1; more > 0 {
			err = fmt.Errorf("%w; and %d more tags", err, more)
		}
		// A tag that is there and unread could be the role: the caller must not think that it is not there.
		set.Known, set.Hint = false, cloud.Unread("tags", err)
		return set, err
	}
	return set, nil
}

func optional(name, path string) cloud.Item {
	return cloud.Item{Name: name, Path: path, Attempts: optionalAttempts}
}

// fetch reads one path below /latest/.
func (p *Provider) fetch(ctx context.Context, path string) ([]byte, error) {
	// An IPv6-only machine may have no route to the IPv4 address, and the other way round. Several tries run at a time,
	// so each speaks only for the client that it used.
	used := p.current.Load()
	client := p.reached.Load()
	if client == nil {
		client = p.clients[int(used)%len(p.clients)]
	}
	defer func() {
		if cloud.AttemptOf(ctx).Connected() {
			p.reached.Store(client)
		} else {
			p.current.CompareAndSwap(used, used+1)
		}
	}()
	var body io.ReadCloser
	if rest, ok := strings.CutPrefix(path, "dynamic/"); ok {
		out, err := client.GetDynamicData(ctx, &imds.GetDynamicDataInput{Path: rest})
		if err != nil {
			return nil, err
		}
		body = out.Content
	} else {
		out, err := client.GetMetadata(ctx, &imds.GetMetadataInput{Path: strings.TrimPrefix(path, "meta-data/")})
		if err != nil {
			return nil, err
		}
		body = out.Content
	}
	defer body.Close()
	return io.ReadAll(body)
}

// judge adds what is known of EC2 to the verdict on one failed try.
func (p *Provider) judge(e *cloud.Error, a *cloud.Attempt) {
	token := a.Method() == http.MethodPut
	switch {
	case cloud.Unconnected(e, a):
		e.Hint = hintUnreachable
	case token && cloud.Unanswered(e):
		e.Hint = hintHopLimit
	case e.Status == http.StatusForbidden:
		e.Hint = hintOff
	case e.Status == http.StatusUnauthorized:
		e.Hint = hintToken
	case token && (e.Status == http.StatusNotFound || e.Status == http.StatusMethodNotAllowed || e.Status == http.StatusNotImplemented):
		e.Kind, e.Hint = cloud.ErrNotThisCloud, hintNoV2
	}
}
