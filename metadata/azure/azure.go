// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package azure reads Azure's instance metadata service, and reports and acknowledges Scheduled Events of this machine.
//
// The service answers five requests a second for the whole machine. Watch sends one a second.
package azure

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Name is this provider's name.
const Name = "azure"

// goneTime bounds a temporary 410 if the caller sets no bound: Azure documents at most 70 s.
const goneTime = 75 * time.Second

const (
	hintUnreachable = "no metadata service at the address: it answers only the primary address of the primary network interface, over a " +
		"route to 169.254.169.254 that DHCP sets; if this is no Azure machine use --provider generic, else look for a firewall rule"
	hintRequest = "the service does not have the version that this agent asks for, or something between changes the requests: a proxy, " +
		"say, by the header X-Forwarded-For"
	hintForbidden = "something between this process and the metadata service refuses its requests: a firewall rule for this user, or a " +
		"metadata policy of the machine (its security profile's proxyAgentSettings); or use --provider generic"
	hintThrottled = "Azure answers five requests in a second, of all programs on the machine together: something else here asks often"
	hintGone      = "the service is not there for the moment, and says to ask again for 70 seconds at most"
	hintNotAzure  = "every Azure machine has this, and what answers here has it not: use the --provider of the cloud this machine is in, or generic"
	hintTags      = "none of the instance's tags is ours; a tag that is set or changed on the scale set reaches a machine when that is " +
		"rebooted, reimaged or gets another disk, not before"
)

// Provider reads the metadata of this virtual machine. It is safe for concurrent use.
type Provider struct{ *cloud.Client }

var (
	_ cloud.Provider = (*Provider)(nil)
	_ cloud.Hooks    = (*Provider)(nil)
)

// New opens the provider. It makes no request.
func New(opts cloud.Options) (*Provider, error) {
	c, err := cloud.New(cloud.Client{
		Provider: Name, Origin: "http://169.254.169.254", Header: map[string]string{"Metadata": "true"}, Foreign: hintNotAzure,
		Hints: map[int]string{
			0: hintUnreachable, http.StatusBadRequest: hintRequest, http.StatusMethodNotAllowed: hintRequest,
			http.StatusUnauthorized: hintForbidden, http.StatusForbidden: hintForbidden,
			http.StatusGone: hintGone, http.StatusTooManyRequests: hintThrottled,
		},
	}, opts)
	return &Provider{c}, err
}

type machine struct {
	Compute struct {
		// VMID never changes.
		VMID string `json:"vmId"`
		// Name identifies the machine in Scheduled Events: the VM's name, or SET_NUMBER in a uniform scale set.
		Name                   string `json:"name"`
		VMScaleSetName         string `json:"vmScaleSetName"`
		VirtualMachineScaleSet struct {
			ID string `json:"id"`
		} `json:"virtualMachineScaleSet"`
		SubscriptionID string `json:"subscriptionId"`
		Location       string `json:"location"`
		Zone           string `json:"zone"`
		VMSize         string `json:"vmSize"`
		Priority       string `json:"priority"`
		OSProfile      struct {
			ComputerName string `json:"computerName"`
		} `json:"osProfile"`
		TagsList []struct {
			Name  string `json:"name"`
			Value string `json:"value"`
		} `json:"tagsList"`
	} `json:"compute"`
	Network struct {
		Interface []nic `json:"interface"`
	} `json:"network"`

	odd *json.UnmarshalTypeError // a field of the wrong type
}

type nic struct {
	IPv4, IPv6 struct {
		IPAddress []struct {
			Private string `json:"privateIpAddress"`
			Public  string `json:"publicIpAddress"` // if the metadata shows it
		} `json:"ipAddress"`
	}
}

func (n nic) reached() cloud.NIC {
	var out cloud.NIC
	for i, a := range slices.Concat(n.IPv4.IPAddress, n.IPv6.IPAddress) {
		private := cloud.ReachableAddresses(a.Private)
		if len(out.Addresses) == 0 && len(private) > 0 && i < len(n.IPv4.IPAddress) {
			if public := cloud.ReachableAddresses(a.Public); len(public) > 0 {
				out.Public = public[0]
			}
		}
		out.Addresses = append(out.Addresses, private...)
	}
	return out
}

var uuid = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// parseMachine requires a valid vmId.
func parseMachine(body []byte) (machine, error) {
	m, odd, err := cloud.Decode[machine](body)
	if err != nil {
		return m, fmt.Errorf("the instance metadata is not the JSON expected: %w", err)
	}
	m.odd = odd
	if m.Compute.VMID = strings.ToLower(m.Compute.VMID); !uuid.MatchString(m.Compute.VMID) {
		return m, fmt.Errorf("the instance metadata's vmId is %s", cloud.Quote(m.Compute.VMID))
	}
	return m, nil
}

// scaleSet returns the name of the uniform or flexible scale set, or "".
func (m *machine) scaleSet() string {
	if m.Compute.VMScaleSetName != "" || m.Compute.VirtualMachineScaleSet.ID == "" {
		return m.Compute.VMScaleSetName
	}
	// A Resource Manager path; its last element is the name.
	return path.Base(m.Compute.VirtualMachineScaleSet.ID)
}

// Without extended=true a machine under creation gets an unmarked partial answer.
var instance = cloud.Item{Name: "instance", Path: "/metadata/instance?api-version=2021-12-13&extended=true", Required: true}

func (p *Provider) read(ctx context.Context) (machine, error) {
	began := time.Now()
	for {
		bound, cancel := context.WithTimeout(ctx, cloud.Timeout)
		m, err := cloud.Read(bound, p.Client, instance, parseMachine)
		cancel()
		e, ok := errors.AsType[*cloud.Error](err)
		if !ok || e.Status != http.StatusGone || ctx.Err() != nil || time.Since(began) >= goneTime {
			return m, err
		}
		// The 410 is temporary, as Azure documents.
	}
}

// Instance implements cloud.Provider.
func (p *Provider) Instance(ctx context.Context) (cloud.Instance, error) {
	m, err := p.read(ctx)
	if err != nil {
		return cloud.Instance{}, err
	}
	c := m.Compute
	inst := cloud.Instance{
		Provider: Name, ID: c.VMID, IDSource: "vmId of the instance metadata", Name: c.Name, AccountID: c.SubscriptionID,
		Region: c.Location, Zone: c.Zone, Type: c.VMSize, LifeCycle: c.Priority, Hostname: c.OSProfile.ComputerName, Group: m.scaleSet(),
		Tags: cloud.Tags{}, TagsKnown: c.TagsList != nil, TagsHint: hintTags,
	}
	note := func(format string, args ...any) { inst.Notes = append(inst.Notes, fmt.Sprintf(format, args...)) }
	for _, t := range c.TagsList {
		value, err := cloud.ParseValue([]byte(t.Value))
		if err != nil || t.Name == "" {
			note("tag %s is left out: its value is not text of one line, or it has no name", cloud.Quote(t.Name))
			continue
		}
		inst.Tags[t.Name] = value
		if strings.HasPrefix(strings.ToLower(t.Name), "amsagent") {
			inst.TagsHint = ""
		}
	}
	if m.odd != nil {
		note("the metadata's %s is of no form that is known here", m.odd.Field)
	}
	if c.Name == "" {
		note("the metadata has no name of this machine, so no scheduled event can be matched to it")
	}
	var nics []cloud.NIC
	for _, n := range m.Network.Interface {
		nics = append(nics, n.reached())
	}
	inst.Choose(nics, p.Options.Local)
	return inst, nil
}
