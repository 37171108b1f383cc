// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package gcp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/generic"
)

// Name of this provider.
const Name = "gcp"

// Endpoint is the address of the service. Its name, metadata.google.internal, is not used: at boot DNS may come later.
const Endpoint = "http://169.254.169.254"

// How long a machine has from the soft power-off to the hard one, as the API's reference has it today
// (Scheduling.skipGuestOsShutdown: "120 seconds between GCE ACPI G2 Soft Off and ACPI G3 Mechanical Off for Standard VMs
// and 30 seconds for Spot VMs"). Older pages say 90 seconds for a standard VM.
const (
	StopWindowSpot     = 30 * time.Second
	StopWindowStandard = 120 * time.Second
)

// What LifeCycle says of a machine.
const (
	Spot     = "spot"
	Standard = "standard"
)

const (
	base         = "/computeMetadata/v1/"
	pathInstance = base + "instance/"
	pathProject  = base + "project/"
	recursive    = "?recursive=true&alt=json"

	// Every request carries this header, so that no web page can make a browser ask, and every answer too: by that the
	// service is known.
	flavorHeader = "Metadata-Flavor"
	flavor       = "Google"
)

const (
	// optionalAttempts bounds the tries for what a node can live without.
	optionalAttempts = 3
	// lostAttempts are those made when nobody takes the connection any more after the service has answered already:
	// a network interface that is set up once more at the first boot takes the service away for some 300 ms. With the
	// usual waits these last for a second at least.
	lostAttempts = 5
)

const (
	hintForeign = "what answers is not Google's metadata server: use the --provider of the cloud this machine is in, or generic"
	hintRefused = "the metadata server refuses this process: look for a proxy or a metadata concealment between it and 169.254.169.254, " +
		"or use --provider generic"
	hintUnreachable = "no metadata server at the address: if this is no machine of Google Cloud use --provider generic, else look for a " +
		"firewall rule or a missing route to 169.254.169.254"
)

// Provider reads the metadata of this machine. It is safe for use by several goroutines.
type Provider struct {
	opts   cloud.Options
	origin string
	client *http.Client
}

var _ cloud.Provider = (*Provider)(nil)

// New opens the provider. It makes no request.
func New(opts cloud.Options) (*Provider, error) {
	opts = opts.WithDefaults()
	origin, err := opts.Endpoint(Name)
	if err != nil {
		return nil, err
	}
	return &Provider{opts: opts, origin: cmp.Or(origin, Endpoint), client: opts.HTTPClient()}, nil
}

// Name implements cloud.Provider.
func (p *Provider) Name() string { return Name }

// Instance implements cloud.Provider.
func (p *Provider) Instance(ctx context.Context) (cloud.Instance, error) {
	ctx, cancel := context.WithTimeout(ctx, p.opts.Timeout)
	defer cancel()

	m, err := item(ctx, p, need{name: "instance", path: pathInstance + recursive, notFound: 2},
		func(b []byte) (Machine, error) { return ParseMachine(b, p.ours) })
	if e, ok := errors.AsType[*cloud.Error](err); ok && errors.Is(err, cloud.ErrNotFound) {
		e.Kind, e.Hint = cloud.ErrNotThisCloud, hintForeign
	}
	if err != nil {
		return cloud.Instance{}, err
	}
	inst := cloud.Instance{
		Provider: Name, ID: m.ID, IDSource: "id of the instance metadata", Name: m.Name,
		Region: m.Region, Zone: m.Zone, Type: m.Type, Hostname: m.Hostname,
		LifeCycle: m.LifeCycle, StopWindow: stopWindow(m.LifeCycle), Group: m.Group,
		Missing: m.Missing, Notes: m.Notes,
	}
	if m.LifeCycle == "" {
		inst.Notes = append(inst.Notes, fmt.Sprintf("the metadata does not tell whether this is a Spot VM: %s are planned with", StopWindowSpot))
	}
	p.addresses(&inst, m.Interfaces)

	project, err := p.project(ctx)
	if cerr := context.Cause(ctx); cerr != nil && !errors.Is(cerr, context.DeadlineExceeded) {
		// The caller has gone; half an instance is of no use to it.
		return cloud.Instance{}, fmt.Errorf("reading the %s metadata: %w", Name, cerr)
	}
	inst.AccountID = project.ID
	set := tags(m, project, err)
	inst.Tags, inst.TagsKnown, inst.TagsHint = set.Tags, set.Known, set.Hint
	if err != nil && !errors.Is(err, cloud.ErrNotFound) {
		p.opts.Log.Warn("a part of the instance metadata could not be read", "provider", Name, "err", err)
		inst.Missing = append(inst.Missing, "account_id")
		inst.Notes = append(inst.Notes, err.Error())
	}
	if len(m.Unknown) > 0 {
		p.opts.Log.Debug("the metadata has fields that this version does not know", "provider", Name, "fields", strings.Join(m.Unknown, ","))
	}
	return inst, nil
}

// stopWindow is how long a machine has to go down. Where nobody says which kind it is, the shorter time does no harm.
func stopWindow(lifeCycle string) time.Duration {
	if lifeCycle == Spot || lifeCycle == "" {
		return StopWindowSpot
	}
	return StopWindowStandard
}

// addresses chooses the interface that others reach this machine by.
func (p *Provider) addresses(inst *cloud.Instance, nics []Interface) {
	if len(nics) == 0 {
		inst.Notes = append(inst.Notes, "the metadata tells no network interface of this instance")
		return
	}
	nic, which := nics[0], "the first network interface"
	if len(nics) > 1 {
		// The metadata names interfaces by their hardware address alone.
		name, mac, err := generic.DefaultRoute(p.opts)
		i := slices.IndexFunc(nics, func(n Interface) bool { return n.MAC != "" && strings.EqualFold(n.MAC, mac) })
		switch {
		case err != nil:
			inst.Notes = append(inst.Notes, fmt.Sprintf("of %d network interfaces the first is taken, since it is not known which one has the default route: %v", len(nics), err))
		case i < 0:
			inst.Notes = append(inst.Notes, fmt.Sprintf("of %d network interfaces the first is taken, since none has the hardware address of %s, which has the default route", len(nics), name))
		default:
			nic, which = nics[i], "the network interface with the default route"
		}
	}
	inst.IPv6 = nic.IPv6
	inst.PublicAddress = nic.Public
	switch {
	case nic.Address.IsValid():
		inst.Address, inst.AddressSource = nic.Address, "private address of "+which
	case nic.IPv6.IsValid():
		inst.Address, inst.AddressSource = nic.IPv6, "IPv6 address of "+which+", since it has no IPv4 address"
	default:
		inst.Notes = append(inst.Notes, "the metadata tells no address of "+which)
	}
}

func (p *Provider) project(ctx context.Context) (Project, error) {
	return item(ctx, p, need{name: "project", path: pathProject + recursive, attempts: optionalAttempts},
		func(b []byte) (Project, error) { return ParseProject(b, p.ours) })
}

// tags puts the attributes of the project below those of the machine.
func tags(m Machine, project Project, err error) cloud.TagSet {
	set := cloud.TagSet{Tags: cloud.Tags{}, Known: !m.missing("tags"), Group: m.Group}
	if !set.Known {
		set.Hint = "the attributes of this instance are of no form that is known here"
	}
	maps.Copy(set.Tags, project.Attributes)
	maps.Copy(set.Tags, m.Attributes)
	if err != nil && !errors.Is(err, cloud.ErrNotFound) {
		// One that is there and unread could say where MongoDB is: the caller must not think that it is not there.
		set.Known, set.Hint = false, cloud.Unread("attributes", err)
	}
	return set
}

// ours tells whether an attribute is one of those that are kept. All others are somebody else's, and may be secret.
func (p *Provider) ours(key string) bool {
	return strings.HasPrefix(key, "amsagent") || key == attributeCreatedBy || key == attributeTemplate
}

// need is one item: where it is and how hard to try.
type need struct {
	name, path         string
	attempts, notFound int
}

// item fetches and parses one item through the retry loop.
func item[T any](ctx context.Context, p *Provider, n need, parse func([]byte) (T, error)) (T, error) {
	try := func(attempts int) (T, error) {
		call := cloud.Call{Provider: Name, Item: n.name, Attempts: attempts, NotFoundAttempts: n.notFound, Judge: judge}
		return cloud.Do(ctx, p.opts, call, func(ctx context.Context) (T, error) {
			var zero T
			_, body, err := p.get(ctx, p.client, n.path)
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
	v, err := try(n.attempts)
	if e, ok := errors.AsType[*cloud.Error](err); ok && n.attempts > 0 && lost(e) && ctx.Err() == nil {
		return try(lostAttempts)
	}
	return v, err
}

// lost tells that the service could not be reached: unlike one that says something wrong it is likely to come back.
func lost(e *cloud.Error) bool {
	return errors.Is(e.Kind, cloud.ErrNotReady) && e.Status == 0 && !cloud.Unanswered(e)
}

// get makes one request. What does not say that it is Google's service is not believed.
func (p *Provider) get(ctx context.Context, client *http.Client, path string) (http.Header, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.origin+path, http.NoBody)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set(flavorHeader, flavor)
	h, body, err := cloud.Fetch(client, req)
	if err != nil {
		return h, nil, err
	}
	if got := h.Get(flavorHeader); got != flavor {
		return h, nil, &cloud.Error{
			Kind: cloud.ErrNotThisCloud, Hint: hintForeign,
			Cause: fmt.Errorf("the answer carries no header %s: %s", flavorHeader, flavor),
		}
	}
	return h, body, nil
}

// judge adds what is known of Google's service to the verdict on one failed try.
func judge(e *cloud.Error, a *cloud.Attempt) {
	switch {
	case e.Hint != "":
	case cloud.Unconnected(e, a):
		e.Hint = hintUnreachable
	case errors.Is(e.Kind, cloud.ErrForbidden):
		e.Hint = hintRefused
	}
}

// valid leaves out what names no machine.
func valid(a netip.Addr) bool { return a.IsValid() && a.IsGlobalUnicast() }
