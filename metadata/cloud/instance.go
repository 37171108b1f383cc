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
	"regexp"
	"slices"
	"strings"

	"github.com/amsagent/amsagent/internal/seconds"
)

// Bounds of values, in bytes, for the registry, logs and memory. Only GCP's attributes, which may be whole scripts, can
// exceed them.
const (
	// MaxText bounds ids and names.
	MaxText = 256
	// maxTag bounds a tag's value.
	maxTag  = 1024
	MaxTags = 256
)

// Instance describes this machine. Empty fields are absent, unless Missing lists them.
type Instance struct {
	Provider string `json:"provider"` // its name
	// ID names this machine in the registry. It never changes.
	ID       string `json:"id"`
	IDSource string `json:"id_source,omitempty"` // for people
	// Name is the cloud's own name of this machine, if notices use it instead of ID.
	Name      string `json:"name,omitempty"`
	AccountID string `json:"account_id,omitempty"`
	Region    string `json:"region,omitempty"`
	Zone      string `json:"zone,omitempty"`
	Type      string `json:"type,omitempty"`
	// LifeCycle is the cloud's term: on-demand, spot, …
	LifeCycle string `json:"life_cycle,omitempty"`
	Hostname  string `json:"hostname,omitempty"`
	// Address is for other nodes: the private IPv4 address, or else IPv6.
	Address netip.Addr `json:"address,omitzero"`
	// AddressSource is shown because a wrong address is the most common cluster fault.
	AddressSource string     `json:"address_source,omitempty"`
	IPv6          netip.Addr `json:"ipv6,omitzero"`
	PublicAddress netip.Addr `json:"public_address,omitzero"`
	Tags          Tags       `json:"tags,omitempty"`
	// TagsKnown is false if the cloud hides the tags; TagsHint is the remedy.
	TagsKnown bool   `json:"tags_known"`
	TagsHint  string `json:"tags_hint,omitempty"`
	// Group is the scaling group.
	Group string `json:"group,omitempty"`
	// StopWindow is the time from shutdown to power-off; 0 if unknown.
	StopWindow seconds.Duration `json:"stop_window_seconds,omitempty"`
	// Missing lists unreadable fields by JSON name.
	Missing []string `json:"missing,omitempty"`
	Notes   []string `json:"notes,omitempty"` // for people: what was found and chosen
}

// Miss records an unreadable field, unless the caller has canceled.
func (i *Instance) Miss(log *slog.Logger, field string, err error) {
	if errors.Is(err, context.Canceled) {
		return // see Left
	}
	log.Warn("a part of the instance metadata could not be read", "provider", i.Provider, "error", err)
	i.Missing = append(i.Missing, field)
	slices.Sort(i.Missing)
	i.Notes = append(i.Notes, err.Error())
}

// Reached sets the addresses: private, the first public one and the first global IPv6 one.
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

// Bound drops long values with a note: a truncated name or connection string is wrong. It returns
// [ErrBadAnswer] for an overlong id.
func (i *Instance) Bound() error {
	if len(i.ID) > MaxText {
		return &Error{Provider: i.Provider, Item: "id", Kind: ErrBadAnswer, Cause: fmt.Errorf("it has %d bytes, more than %d", len(i.ID), MaxText)}
	}
	for _, name := range []*string{&i.Name, &i.AccountID, &i.Region, &i.Zone, &i.Type, &i.LifeCycle, &i.Hostname, &i.Group} {
		if n := len(*name); n > MaxText {
			*name = ""
			i.Notes = append(i.Notes, fmt.Sprintf("a name of %d bytes is left out: it has at most %d", n, MaxText))
		}
	}
	kept := Tags{}
	for _, k := range slices.Sorted(maps.Keys(i.Tags)) {
		if len(k) <= MaxText && len(i.Tags[k]) <= maxTag && len(kept) < MaxTags {
			kept[k] = i.Tags[k]
		}
	}
	if left := len(i.Tags) - len(kept); left > 0 {
		i.Tags = kept
		i.Notes = append(i.Notes, fmt.Sprintf("%d tags are left out: there are at most %d, a key has at most %d bytes, a value %d", left, MaxTags, MaxText, maxTag))
	}
	return nil
}

// NIC is a network interface with its reachable addresses. Public belongs to the first IPv4 address.
type NIC struct {
	Addresses []netip.Addr
	Public    netip.Addr
}

// Choose takes the interface that this machine sends from: the metadata's order means nothing.
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

// Left fails after a cancellation: half an instance is of no use.
func Left(ctx context.Context, provider string) error {
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("reading the %s metadata: %w", provider, err)
	}
	return nil
}

// Provider reads one cloud's metadata. That of a cloud with hooks is also [Hooks].
type Provider interface {
	Name() string
	// Instance caches only the session token between calls.
	Instance(ctx context.Context) (Instance, error)
	Watcher
	// Check tests permissions for termination hooks without changes.
	Check(ctx context.Context, f Filter) (Check, error)
}

// Silent is the part of a Provider without hooks and notices.
type Silent struct {
	Without string
}

// Watch implements Watcher.
func (Silent) Watch(ctx context.Context, _ Report) { <-ctx.Done() }

// Check implements Provider.
func (s Silent) Check(context.Context, Filter) (Check, error) { return Check{Without: s.Without}, nil }

// Tags are an instance's tags. They may hold a connection string, so every print of the map redacts it.
type Tags map[string]string

// Redacted hides all before an @, and a URI's query.
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

// valueParts are scheme, login, the rest and a query. An unescaped password may contain an @, a query a token.
var valueParts = regexp.MustCompile(`(?s)^(.*?://)?(.*@)?([^?]*)(\?.*)?$`)

func redactValue(v string) string {
	part := valueParts.FindStringSubmatch(v)
	if part[1]+part[2] == "" {
		return v
	}
	if part[2] != "" {
		part[2] = "***@"
	}
	if part[4] != "" {
		part[4] = "?***"
	}
	return strings.Join(part[1:], "")
}

// String implements fmt.Stringer, redacted.
func (t Tags) String() string { return fmt.Sprint(t.Redacted()) }

// GoString implements fmt.GoStringer, redacted.
func (t Tags) GoString() string { return "cloud.Tags" + t.String() }

// MarshalJSON implements json.Marshaler, redacted.
func (t Tags) MarshalJSON() ([]byte, error) { return json.Marshal(t.Redacted()) }
