// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Name of this provider.
const Name = "azure"

// Endpoint is the address of the service.
const Endpoint = "http://169.254.169.254"

// loadBalancerVersion is the one that the load balancer's part began with.
const loadBalancerVersion = "2020-10-01"

const (
	// optionalAttempts bounds the tries for what a node can live without.
	optionalAttempts = 3
	// notFoundAttempts: right after the boot of a machine the service may not know it yet.
	notFoundAttempts = 4
	// goneTime is for how long a 410 is believed to end by itself, where the caller has set no bound: Azure says 70 s at
	// most.
	goneTime = 75 * time.Second
)

const (
	hintUnreachable = "no metadata service at the address: it answers only the primary address of the primary network interface, over a " +
		"route to 169.254.169.254 that DHCP sets; if this is no Azure machine use --provider generic, else look for a firewall rule"
	hintRequest = "the service does not have the version that this agent asks for, or something between changes the requests: a proxy, " +
		"say, by the header X-Forwarded-For"
	hintForbidden = "something between this process and the metadata service refuses its requests: a firewall rule for this user, or a " +
		"metadata policy of the machine (its security profile's proxyAgentSettings); or use --provider generic"
	hintThrottled = "Azure answers five requests in a second, whoever on the machine asks: something else here asks often"
	hintGone      = "the service is not there for the moment, and says to ask again for 70 seconds at most"
	hintNotAzure  = "every Azure machine has this, and what answers here has it not: use the --provider of the cloud this machine is in, or generic"
	hintTags      = "none of the instance's tags is ours; a tag that is set or changed on the scale set reaches a machine when that is " +
		"rebooted, reimaged or gets another disk, not before"
)

// Provider reads the metadata of this virtual machine. It is safe for use by several goroutines.
type Provider struct {
	opts   cloud.Options
	origin string
	client *http.Client
	// events is for Scheduled Events, whose first answer may take minutes.
	events *http.Client

	reads, polls *pace
	// bounded tells that the caller has set a bound of its own.
	bounded bool
}

var _ cloud.Provider = (*Provider)(nil)

// New opens the provider. It makes no request.
func New(opts cloud.Options) (*Provider, error) {
	bounded := opts.Timeout > 0
	opts = opts.WithDefaults()
	if opts.IsDisabled(Name) {
		return nil, &cloud.Error{
			Provider: Name, Item: "instance", Kind: cloud.ErrForbidden,
			Cause: errors.New("the Azure metadata service is disabled by the settings of this process"), Hint: "use --provider generic",
		}
	}
	origin, err := opts.Endpoint(Name)
	if err != nil {
		return nil, err
	}
	p := &Provider{
		opts: opts, origin: cmp.Or(origin, Endpoint), bounded: bounded, reads: newPace(readsPerSecond), polls: newPace(pollsPerSecond),
	}
	p.client = opts.HTTPClient()
	patient := opts
	patient.AttemptTimeout = firstTimeout
	p.events = patient.HTTPClient()
	return p, nil
}

// pathInstance asks for a complete answer: without extended a machine that is still being made gets a part, unmarked.
const pathInstance = "/metadata/instance?api-version=2021-12-13&extended=true"

// Name implements cloud.Provider.
func (p *Provider) Name() string { return Name }

// Machine reads what the metadata say about this machine, in one request.
func (p *Provider) Machine(ctx context.Context) (Machine, error) {
	began := time.Now()
	for {
		bound, cancel := context.WithTimeout(ctx, p.opts.Timeout)
		m, err := p.machine(bound, p.reads, 0)
		cancel()
		e, ok := errors.AsType[*cloud.Error](err)
		switch {
		case !ok:
			return m, err
		case e.Status == http.StatusGone && !p.bounded && ctx.Err() == nil && time.Since(began) < goneTime:
			// It says itself that it comes back.
			continue
		case errors.Is(e.Kind, cloud.ErrNotFound):
			e.Kind, e.Hint = cloud.ErrNotThisCloud, hintNotAzure
		}
		return m, err
	}
}

// machine reads them with so many tries, 0: as many as there is time for.
func (p *Provider) machine(ctx context.Context, share *pace, attempts int) (Machine, error) {
	need := need{name: "instance", path: pathInstance, share: share, attempts: attempts, notFound: notFoundAttempts}
	return item(ctx, p, need, ParseInstance)
}

// Instance implements cloud.Provider.
func (p *Provider) Instance(ctx context.Context) (cloud.Instance, error) {
	m, err := p.Machine(ctx)
	if err != nil {
		return cloud.Instance{}, err
	}
	inst := cloud.Instance{
		Provider: Name, ID: m.VMID, IDSource: "vmId of the instance metadata", Name: m.Name, AccountID: m.Subscription,
		Region: m.Location, Zone: m.Zone, Type: m.Size, LifeCycle: m.Priority, Hostname: m.Hostname, Group: m.ScaleSet,
		Tags: m.Tags, TagsKnown: m.Tags != nil,
	}
	if !hasOwn(m.Tags) {
		inst.TagsHint = hintTags
	}
	note := func(format string, args ...any) { inst.Notes = append(inst.Notes, fmt.Sprintf(format, args...)) }
	if m.OddTags > 0 {
		note("%d tags were left out that Azure does not allow", m.OddTags)
	}
	if m.Name == "" {
		note("the metadata tell no name of this machine, so scheduled events cannot be known to be about it")
	}
	nic, why := p.pick(m.NICs)
	if why.note != "" {
		note("%s", why.note)
	}
	var public bool
	if len(nic.IPv6) > 0 {
		inst.IPv6 = nic.IPv6[0]
	}
	switch {
	case len(nic.IPv4) > 0:
		inst.Address, inst.PublicAddress = nic.IPv4[0].Private, nic.IPv4[0].Public
		inst.AddressSource = "private address of " + why.source
		public = inst.PublicAddress.IsValid()
	case inst.IPv6.IsValid():
		inst.Address, inst.AddressSource = inst.IPv6, "IPv6 address of "+why.source+", since it has no IPv4 address"
	default:
		note("the metadata tell no private address of this machine")
	}
	if public || !inst.Address.IsValid() {
		return inst, nil
	}
	// Public addresses of the Standard kind show at the load balancer only.
	var g cloud.Gatherer
	g.Do("public_address", func() (err error) {
		inst.PublicAddress, err = p.frontend(ctx, inst.Address)
		return err
	})
	if err := g.Finish(ctx, Name); err != nil {
		return cloud.Instance{}, err
	}
	g.Tell(p.opts.Log, &inst)
	return inst, nil
}

// hasOwn tells that a tag is meant for this agent.
func hasOwn(tags cloud.Tags) bool {
	for name := range tags {
		if strings.HasPrefix(strings.ToLower(name), "amsagent") {
			return true
		}
	}
	return false
}

// frontend finds the public address by which a load balancer leads to a private one; none is no error.
func (p *Provider) frontend(ctx context.Context, private netip.Addr) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, p.opts.Timeout)
	defer cancel()
	list, err := item(ctx, p, need{
		name: "load balancer", share: p.reads, path: "/metadata/loadbalancer?api-version=" + loadBalancerVersion, attempts: optionalAttempts,
	}, ParseLoadBalancer)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, f := range list {
		if f.Private == private {
			return f.Public, nil
		}
	}
	return netip.Addr{}, nil
}

// need is one item: where it is and how hard to try.
type need struct {
	name, path         string
	share              *pace // of the requests in a second
	attempts, notFound int
}

// item fetches and parses one item through the retry loop.
func item[T any](ctx context.Context, p *Provider, n need, parse func([]byte) (T, error)) (T, error) {
	var last *cloud.Error
	call := cloud.Call{
		Provider: Name, Item: n.name, Attempts: n.attempts, NotFoundAttempts: n.notFound,
		Judge: func(e *cloud.Error, a *cloud.Attempt) {
			if errors.Is(e.Cause, errPaced) && last != nil {
				// The time was up before it could be asked again: what counts is why it had to be.
				*e = *last
				return
			}
			p.judge(e, a)
			was := *e
			last = &was
		},
	}
	return cloud.Do(ctx, p.opts, call, func(try context.Context) (T, error) {
		var zero T
		try, cancel, err := p.paced(ctx, try, n.share)
		if err != nil {
			return zero, err
		}
		defer cancel()
		body, err := p.get(try, p.client, n.path)
		if err != nil {
			return zero, err
		}
		v, err := parse(body)
		if err != nil {
			return v, cloud.BadAnswer(err)
		}
		return v, nil
	})
}

var errPaced = errors.New("the time was up before the next request was due")

// paced waits for the turn of a request. The time of a try begins then, and not while it waits.
func (p *Provider) paced(ctx, try context.Context, share *pace) (context.Context, context.CancelFunc, error) {
	if err := share.wait(ctx); err != nil {
		return nil, nil, &cloud.Error{Kind: cloud.ErrNotReady, Cause: fmt.Errorf("%w: %w", errPaced, err)}
	}
	try, cancel := context.WithTimeout(context.WithoutCancel(try), p.opts.AttemptTimeout)
	stop := context.AfterFunc(ctx, cancel)
	return try, func() { stop(); cancel() }, nil
}

// get makes one request.
func (p *Provider) get(ctx context.Context, client *http.Client, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.origin+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Metadata", "true")
	_, body, err := cloud.Fetch(client, req)
	return body, err
}

// judge adds what is known of Azure to the verdict on one failed try.
func (p *Provider) judge(e *cloud.Error, a *cloud.Attempt) {
	switch {
	case cloud.Unconnected(e, a):
		e.Hint = hintUnreachable
	case e.Status == http.StatusBadRequest, e.Status == http.StatusMethodNotAllowed:
		e.Hint = hintRequest
	case e.Status == http.StatusUnauthorized, e.Status == http.StatusForbidden:
		e.Hint = hintForbidden
	case e.Status == http.StatusGone:
		e.Hint = hintGone
	case e.Status == http.StatusTooManyRequests:
		e.Hint = hintThrottled
	}
}
