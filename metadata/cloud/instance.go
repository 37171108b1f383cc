// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Instance is what a cloud, or the machine itself, says about this machine. An empty field means "not there" unless its
// name is in Missing: then it could not be read, which is not the same.
type Instance struct {
	// Provider is the name of the provider that filled this in.
	Provider string `json:"provider"`
	// ID names this machine in the cluster's registry. It stays the same for the life of the machine.
	ID string `json:"id"`
	// IDSource says in words where ID comes from.
	IDSource string `json:"id_source,omitempty"`
	// Name is the cloud's own name of this machine, where its signals call it by that instead of by ID.
	Name      string `json:"name,omitempty"`
	AccountID string `json:"account_id,omitempty"`
	Region    string `json:"region,omitempty"`
	Zone      string `json:"zone,omitempty"`
	Type      string `json:"type,omitempty"`
	// LifeCycle is the cloud's term: on-demand, spot, …
	LifeCycle string `json:"life_cycle,omitempty"`
	Hostname  string `json:"hostname,omitempty"`
	// Address is the one the other nodes should use: the private IPv4 address, or IPv6 on a machine that has nothing else.
	// It is the zero Addr where none is known.
	Address netip.Addr `json:"address,omitzero"`
	// AddressSource says in words where Address comes from: the wrong one of several addresses is the commonest
	// cluster fault there is, so the choice must be visible.
	AddressSource string     `json:"address_source,omitempty"`
	IPv6          netip.Addr `json:"ipv6,omitzero"`
	PublicAddress netip.Addr `json:"public_address,omitzero"`
	Tags          Tags       `json:"tags,omitempty"`
	// TagsKnown is false where the cloud does not show us the tags; an empty Tags then says nothing, and TagsHint what
	// to do about it.
	TagsKnown bool   `json:"tags_known"`
	TagsHint  string `json:"tags_hint,omitempty"`
	// Group is the scaling group this machine belongs to.
	Group string `json:"group,omitempty"`
	// StopWindow is how long the cloud lets a machine go down by itself before it switches it off; 0 is not known.
	StopWindow time.Duration `json:"stop_window_ns,omitempty"`
	// Missing names the fields (as in JSON) that exist but could not be read this time.
	Missing []string `json:"missing,omitempty"`
	// Notes are sentences for people about what was found and chosen.
	Notes []string `json:"notes,omitempty"`
}

// Miss notes that a field, by its name in JSON, could not be read this time. It says nothing to a caller that has gone.
func (i *Instance) Miss(log *slog.Logger, field string, err error) {
	if errors.Is(err, context.Canceled) {
		return // see Left
	}
	log.Warn("a part of the instance metadata could not be read", "provider", i.Provider, "error", err)
	i.Missing = append(i.Missing, field)
	slices.Sort(i.Missing)
	i.Notes = append(i.Notes, err.Error())
}

// Reached sets the addresses: the private one, with its source, or the first of IPv6 that others can reach, and the first
// public one.
func (i *Instance) Reached(private netip.Addr, source string, public, v6 []netip.Addr) {
	if len(public) > 0 {
		i.PublicAddress = public[0]
	}
	for _, a := range v6 {
		if a.Is6() && a.IsGlobalUnicast() {
			i.IPv6 = a
			break
		}
	}
	switch {
	case private.IsValid():
		i.Address, i.AddressSource = private, source
	case i.IPv6.IsValid():
		i.Address, i.AddressSource = i.IPv6, "first IPv6 address of the first interface, since the instance has no IPv4 address"
	default:
		i.Notes = append(i.Notes, "the metadata has no private address of this instance")
	}
}

// NIC is one network interface in the metadata: the addresses of it that others can reach, and the public one of the first of IPv4.
type NIC struct {
	Addresses []netip.Addr
	Public    netip.Addr
}

// Choose sets the addresses to those of the interface that this machine sends from: the order in the metadata means nothing.
func (i *Instance) Choose(nics []NIC, local func() (v4, v6 netip.Addr)) {
	chosen, which := NIC{}, "the only network interface"
	if len(nics) > 0 {
		chosen = nics[0]
	}
	if len(nics) > 1 {
		v4, v6 := local()
		at := slices.IndexFunc(nics, func(n NIC) bool { return slices.Contains(n.Addresses, v4) || slices.Contains(n.Addresses, v6) })
		if at >= 0 {
			chosen, which = nics[at], "the network interface with the default route"
		} else {
			which = fmt.Sprintf("the first of %d network interfaces", len(nics))
			i.Notes = append(i.Notes, fmt.Sprintf("of the %d network interfaces in the metadata the first was taken, since none has the address that this machine sends from; "+
				"say --address if that is the wrong one", len(nics)))
		}
	}
	var private netip.Addr
	if at := slices.IndexFunc(chosen.Addresses, netip.Addr.Is4); at >= 0 {
		private = chosen.Addresses[at]
	}
	i.Reached(private, "private address of "+which, []netip.Addr{chosen.Public}, chosen.Addresses)
	if !private.IsValid() && i.Address.IsValid() {
		i.AddressSource = "IPv6 address of " + which + ", since it has no IPv4 address"
	}
}

// Left returns an error for a caller that has gone, to whom half an instance is of no use.
func Left(ctx context.Context, provider string) error {
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("reading the %s metadata: %w", provider, err)
	}
	return nil
}

// Provider reads one cloud's metadata. Opening one makes no request.
type Provider interface {
	// Name is the word that opened this provider.
	Name() string
	// Instance reads everything. It is called at join, and again whenever the daemon wants to know whether something
	// changed; nothing is cached between calls except the session token.
	Instance(ctx context.Context) (Instance, error)
	Watcher
	// Hooks are nil for a cloud without.
	Hooks() Hooks
	// Check finds out what this machine may do with the hooks of its termination, and changes nothing.
	Check(ctx context.Context, f Filter) (Check, error)
}

// Silent is the part of a Provider of a cloud that has no hooks, and announces nothing if it does not say how.
type Silent struct {
	// Without says why there are no hooks.
	Without string
}

// Watch implements Watcher.
func (Silent) Watch(ctx context.Context, _ Report) { <-ctx.Done() }

// Hooks implements Provider.
func (Silent) Hooks() Hooks { return nil }

// Check implements Provider.
func (s Silent) Check(context.Context, Filter) (Check, error) { return Check{Without: s.Without}, nil }

// TagSet is the part of Instance that may come later than the rest.
type TagSet struct {
	Tags  Tags
	Known bool
	Hint  string
	Group string
}

// TagSet is the tags of an instance with what belongs to them.
func (i Instance) TagSet() TagSet {
	return TagSet{Tags: i.Tags, Known: i.TagsKnown, Hint: i.TagsHint, Group: i.Group}
}

// Tags are the tags of an instance. A tag may hold a connection string, so all ways of printing the whole map hide what
// could be a password; a single value is read as from any map.
type Tags map[string]string

// Redacted returns a copy that may be shown: in a value with an @ all before it is hidden, and in a URI the query too.
func (t Tags) Redacted() map[string]string {
	if t == nil {
		return nil
	}
	out := make(map[string]string, len(t))
	for k, v := range t {
		out[k] = redactValue(v)
	}
	return out
}

func redactValue(v string) string {
	const hidden = "***"
	scheme, rest, isURI := strings.Cut(v, "://")
	if isURI {
		scheme += "://"
	} else {
		scheme, rest = "", v
	}
	// The last @, since a password may hold one that is not escaped: better to hide too much than too little.
	at := strings.LastIndexByte(rest, '@')
	if !isURI && at < 0 {
		return v
	}
	shown, _, options := strings.Cut(rest[at+1:], "?")
	if at >= 0 {
		shown = hidden + "@" + shown
	}
	if options { // they can hold tokens and key passwords
		shown += "?" + hidden
	}
	return scheme + shown
}

// String implements fmt.Stringer with the redacted values in a fixed order.
func (t Tags) String() string {
	red := t.Redacted()
	var b strings.Builder
	b.WriteString("{")
	for i, k := range slices.Sorted(maps.Keys(red)) {
		if i > 0 {
			b.WriteString(" ")
		}
		fmt.Fprintf(&b, "%s=%q", k, red[k])
	}
	b.WriteString("}")
	return b.String()
}

// GoString implements fmt.GoStringer, so that %#v hides what %v hides.
func (t Tags) GoString() string { return "cloud.Tags" + t.String() }

// LogValue implements slog.LogValuer.
func (t Tags) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalJSON implements json.Marshaler with the redacted values.
func (t Tags) MarshalJSON() ([]byte, error) { return json.Marshal(t.Redacted()) }
