// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package alibaba

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Name of this provider.
const Name = "alibaba"

// Endpoint is the address of the service. It is not link-local, and answers in a VPC only.
const Endpoint = "http://100.100.100.200"

// EndpointECS is the key of [cloud.Options.Endpoints] under which another address of the ECS API is given.
const EndpointECS = "alibaba-ecs"

// tagGroup is put on each instance by its scaling group.
const tagGroup = "acs:autoscaling:scalingGroupId"

// parallel requests at most: how many the service bears is not published.
const parallel = 4

// optionalAttempts bounds the tries for what a node can live without, so that one broken item does not use up the
// whole bound of a boot.
const optionalAttempts = 3

const (
	tokenPath   = "/latest/api/token"
	ttlHeader   = "X-Aliyun-Ecs-Metadata-Token-Ttl-Seconds"
	tokenHeader = "X-Aliyun-Ecs-Metadata-Token"
	// tokenTTL is the longest that the service gives.
	tokenTTL = 6 * time.Hour
	// tokenEarly: a token is renewed so long before its end, which is counted by the service's clock and not by ours.
	tokenEarly = 10 * time.Minute
)

const (
	hintSilent = "the service takes the connection and never answers the token request: look for something between this process and " +
		"100.100.100.200 that swallows PUT requests; or use --provider generic"
	hintOff = "the metadata service is switched off for this instance or closed to this process: set HttpEndpoint=enabled in the " +
		"instance's metadata options (aliyun ecs ModifyInstanceMetadataOptions), or use --provider generic"
	hintToken = "the service refuses session tokens that it has just given out: something between this process and the service " +
		"changes the requests"
	hintNoToken    = "what answers gives no session token (hardened mode), so it is not the metadata service of Alibaba Cloud, or a stand-in for it"
	hintNoDocument = "every ECS instance has an identity document, and what answers here has none: use the --provider of the cloud this " +
		"machine is in, or generic"
	hintUnreachable = "no metadata service at 100.100.100.200, which answers in a VPC only: if this is no ECS instance use --provider " +
		"generic, else look for a firewall rule or a missing route"
)

// Provider reads the metadata of this ECS instance. It is safe for use by several goroutines.
type Provider struct {
	opts   cloud.Options
	origin string
	client *http.Client
	ecs    *api
	items  *cloud.Items

	session session
	keys    roleKeys

	mu sync.Mutex
	// deaf is until when the ECS API is not asked again, since it refused or did not answer; why says it.
	deaf time.Time
	why  string
}

var _ cloud.Provider = (*Provider)(nil)

// New opens the provider. It makes no request.
func New(opts cloud.Options) (*Provider, error) {
	opts = opts.WithDefaults()
	if opts.IsDisabled(Name) {
		return nil, &cloud.Error{
			Provider: Name, Item: "instance", Kind: cloud.ErrForbidden,
			Cause: errors.New("the metadata service of Alibaba Cloud is disabled by the settings of this process"),
			Hint:  "use --provider generic",
		}
	}
	origin, err := opts.Endpoint(Name)
	if err != nil {
		return nil, err
	}
	p := &Provider{opts: opts, origin: cmp.Or(origin, Endpoint), client: opts.HTTPClient()}
	p.items = &cloud.Items{Provider: Name, Options: opts, Fetch: p.fetch, Judge: p.judge, Slots: make(chan struct{}, parallel)}
	ecsAt, err := opts.Endpoint(EndpointECS)
	if err != nil {
		return nil, err
	}
	// One that has to be asked for what is a convenience gets little time.
	p.ecs, err = newAPI(p, ecsProduct, APIOptions{Endpoint: ecsAt, Proxy: opts.APIProxy, Timeout: ecsTimeout, Transport: opts.Transport})
	return p, err
}

// Name implements cloud.Provider.
func (p *Provider) Name() string { return Name }

// Identity reads the identity document alone. It is what proves that this is an ECS instance.
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
		private    = id.PrivateIP
		tags       cloud.TagSet
	)
	source := "private address of the identity document"
	g.Do("name", func() (err error) {
		inst.Name, err = cloud.ReadItem(ctx, p.items, optional("instance name", "meta-data/instance/instance-name"), ParseName)
		return err
	})
	g.Do("hostname", func() (err error) {
		inst.Hostname, err = cloud.ReadItem(ctx, p.items, optional("host name", "meta-data/hostname"), ParseHostname)
		return err
	})
	g.Do("public_address", func() (err error) {
		public, err = cloud.ReadItem(ctx, p.items, optional("public address", "meta-data/eipv4"), ParseAddresses)
		return err
	})
	g.Do("life_cycle", func() error {
		// The metadata name no life cycle; only what is about to be taken back is known to be a spot instance.
		_, err := cloud.ReadItem(ctx, p.items, optional("spot termination time", spotPath), ParseTerminationTime)
		if err == nil {
			inst.LifeCycle = "spot"
		}
		return err
	})
	if !private.IsValid() {
		g.Do("address", func() error {
			list, err := cloud.ReadItem(ctx, p.items, optional("private address", "meta-data/private-ipv4"), ParseAddresses)
			if err == nil && len(list) > 0 && list[0].Is4() {
				private, source = list[0], "private address of the first interface"
			}
			return err
		})
	}
	g.Do("ipv6", func() (err error) {
		// Of the first interface by the cloud's count, whatever order the list of interfaces has.
		mac := id.MAC
		if mac == "" {
			if mac, err = cloud.ReadItem(ctx, p.items, optional("MAC address", "meta-data/mac"), cloud.ParseMAC); err != nil {
				return err
			}
		}
		v6, err = cloud.ReadItem(ctx, p.items, optional("IPv6 addresses", "meta-data/network/interfaces/macs/"+mac+"/ipv6s"), ParseAddresses)
		return err
	})
	g.Do("tags", func() (err error) {
		tags, err = p.readTags(ctx, id)
		return err
	})
	if err := g.Finish(ctx, Name); err != nil {
		return cloud.Instance{}, err
	}

	inst.Reached(private, source, public, v6)
	inst.Tags, inst.TagsKnown, inst.TagsHint, inst.Group = tags.Tags, tags.Known, tags.Hint, tags.Group
	g.Tell(p.opts.Log, &inst)
	return inst, nil
}

func optional(name, path string) cloud.Item {
	return cloud.Item{Name: name, Path: path, Attempts: optionalAttempts}
}

// fetch reads one path below /latest/.
func (p *Provider) fetch(ctx context.Context, path string) ([]byte, error) {
	token, err := p.session.token(ctx, p)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.origin+"/latest/"+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set(tokenHeader, token)
	_, body, err := cloud.Fetch(p.client, req)
	if se, ok := errors.AsType[*cloud.StatusError](err); ok && se.Status == http.StatusUnauthorized {
		// It ended early or was lost; the retry gets a new one.
		p.session.drop(token)
	}
	return body, err
}

// session is the token of hardened mode. The service answers the request for one whether or not the mode is enforced, so
// that it is always asked for first.
type session struct {
	mu    sync.Mutex
	value string
	until time.Time
}

func (s *session) drop(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.value == token {
		s.value = ""
	}
}

// token gives the token in force, or a new one. Who comes while one is being fetched waits for that one.
func (s *session) token(ctx context.Context, p *Provider) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.value != "" && now.Before(s.until) {
		return s.value, nil
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, p.origin+tokenPath, http.NoBody)
	if err != nil {
		return "", err
	}
	req.Header.Set(ttlHeader, strconv.Itoa(int(tokenTTL/time.Second)))
	_, body, err := cloud.Fetch(p.client, req)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(body))
	if token == "" || len(token) > 1024 || strings.ContainsFunc(token, notInToken) {
		return "", cloud.BadAnswer(errors.New("the answer to the token request is no session token"))
	}
	s.value, s.until = token, now.Add(tokenTTL-tokenEarly)
	return token, nil
}

// notInToken is what would break out of a header, or is a page of something else.
func notInToken(r rune) bool { return r <= ' ' || r > '~' || r == '<' || r == '>' }

// unknownToService is the answer of a service that knows no session tokens. 403 is none of them: it says that the service
// is switched off.
func unknownToService(status int) bool {
	return status == http.StatusNotFound || status == http.StatusMethodNotAllowed || status == http.StatusNotImplemented
}

// judge adds what is known of this service to the verdict on one failed try.
func (p *Provider) judge(e *cloud.Error, a *cloud.Attempt) {
	token := a.Method() == http.MethodPut
	switch {
	case cloud.Unconnected(e, a):
		e.Hint = hintUnreachable
	case token && cloud.Unanswered(e):
		e.Hint = hintSilent
	case e.Status == http.StatusForbidden:
		e.Hint = hintOff
	case e.Status == http.StatusUnauthorized:
		e.Hint = hintToken
	case token && unknownToService(e.Status):
		e.Kind, e.Hint = cloud.ErrNotThisCloud, hintNoToken
	}
}
