// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// Machine is the part of the instance metadata that we use.
type Machine struct {
	// VMID is the machine's own, for its whole life.
	VMID string
	// Name is what Scheduled Events call it: the VM's, of an instance of a uniform scale set SET_NUMBER.
	Name string
	// ScaleSet is the name of its set, uniform or flexible; "" is that it is in none.
	ScaleSet                                               string
	Subscription, Location, Zone, Size, Priority, Hostname string
	// Tags are nil if the answer holds no list of tags.
	Tags cloud.Tags
	// OddTags counts those that were left out, since Azure does not allow such.
	OddTags int
	NICs    []NIC
}

// NIC is one network interface.
type NIC struct {
	// MAC is in twelve lower-case hexadecimal digits.
	MAC  string
	IPv4 []Address
	IPv6 []netip.Addr
}

// Address is a private address, and the public one that belongs to it, if any shows.
type Address struct{ Private, Public netip.Addr }

const (
	// maxWord is more than any name of Azure's has.
	maxWord = 128
	// maxTags: Azure allows 50 on a resource.
	maxTags = 200
	// maxTag: 512 characters in a name, 256 in a value, of at most four bytes.
	maxTag = 2048
	// maxNICs: the largest machines have 8.
	maxNICs = 64
)

// ParseInstance reads /metadata/instance. Unknown fields are ignored; a document without the machine's id is not one.
func ParseInstance(body []byte) (Machine, error) {
	var doc struct {
		Compute struct {
			VMID                   string `json:"vmId"`
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
			// Tags in a form that nobody has seen yet cost no node its identity.
			Tags     json.RawMessage `json:"tags"`
			TagsList json.RawMessage `json:"tagsList"`
		} `json:"compute"`
		Network struct {
			Interface []struct {
				MACAddress string `json:"macAddress"`
				IPv4       struct {
					IPAddress []struct {
						Private string `json:"privateIpAddress"`
						Public  string `json:"publicIpAddress"`
					} `json:"ipAddress"`
				} `json:"ipv4"`
				IPv6 struct {
					IPAddress []struct {
						Private string `json:"privateIpAddress"`
					} `json:"ipAddress"`
				} `json:"ipv6"`
			} `json:"interface"`
		} `json:"network"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return Machine{}, fmt.Errorf("the instance metadata is not the JSON expected: %w", err)
	}
	var errs []error
	c := doc.Compute
	check := func(field, value string) string {
		if value == "" || isWord(value) {
			return value
		}
		errs = append(errs, fmt.Errorf("the instance metadata's %s is %s", field, cloud.Quote(value)))
		return ""
	}
	m := Machine{
		VMID: strings.ToLower(c.VMID), Name: check("name", c.Name), ScaleSet: check("vmScaleSetName", c.VMScaleSetName),
		Subscription: check("subscriptionId", c.SubscriptionID), Location: check("location", c.Location), Zone: check("zone", c.Zone),
		Size: check("vmSize", c.VMSize), Priority: check("priority", c.Priority), Hostname: check("computerName", c.OSProfile.ComputerName),
	}
	if !isUUID(m.VMID) {
		errs = append(errs, fmt.Errorf("the instance metadata's vmId is %s", cloud.Quote(c.VMID)))
	}
	if m.ScaleSet == "" {
		// A path of Azure's resource manager, of which the last element is the name.
		id := strings.TrimRight(c.VirtualMachineScaleSet.ID, "/")
		m.ScaleSet = check("virtualMachineScaleSet.id", id[strings.LastIndexByte(id, '/')+1:])
	}
	m.Tags, m.OddTags = parseTags(c.TagsList)
	if len(doc.Network.Interface) > maxNICs {
		errs = append(errs, fmt.Errorf("the instance metadata holds %d network interfaces", len(doc.Network.Interface)))
		doc.Network.Interface = nil
	}
	for _, i := range doc.Network.Interface {
		n := NIC{MAC: normalMAC(i.MACAddress)}
		for _, a := range i.IPv4.IPAddress {
			private, err := privateAddress(a.Private)
			if err != nil || private.Is6() {
				errs = append(errs, fmt.Errorf("the instance metadata's privateIpAddress is %s", cloud.Quote(a.Private)))
			}
			if private.IsValid() {
				// What is wrong with a public address costs no node its join.
				n.IPv4 = append(n.IPv4, Address{Private: private, Public: publicAddress(a.Public)})
			}
		}
		for _, a := range i.IPv6.IPAddress {
			private, err := privateAddress(a.Private)
			if err != nil || private.Is4() {
				errs = append(errs, fmt.Errorf("the instance metadata's IPv6 address is %s", cloud.Quote(a.Private)))
			}
			if private.IsValid() && private.IsGlobalUnicast() {
				n.IPv6 = append(n.IPv6, private)
			}
		}
		m.NICs = append(m.NICs, n)
	}
	if len(errs) > 0 {
		return Machine{}, errors.Join(errs...)
	}
	return m, nil
}

// parseTags reads the list of tags; nil is that there is none that could be read.
func parseTags(raw json.RawMessage) (tags cloud.Tags, odd int) {
	var list []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	if json.Unmarshal(raw, &list) != nil || list == nil {
		return nil, 0
	}
	tags = cloud.Tags{}
	for _, t := range list {
		if t.Name == "" || !isTag(t.Name) || !isTag(t.Value) || len(tags) == maxTags {
			odd++
			continue
		}
		tags[t.Name] = t.Value
	}
	return tags, odd
}

// Frontend is a public address of a load balancer that leads to a private one.
type Frontend struct{ Public, Private netip.Addr }

// ParseLoadBalancer reads /metadata/loadbalancer. An entry that cannot be read takes none of the others away.
func ParseLoadBalancer(body []byte) ([]Frontend, error) {
	var doc struct {
		LoadBalancer *struct {
			PublicIPAddresses []struct {
				Frontend string `json:"frontendIpAddress"`
				Private  string `json:"privateIpAddress"`
			} `json:"publicIpAddresses"`
		} `json:"loadbalancer"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return nil, fmt.Errorf("the load balancer's metadata is not the JSON expected: %w", err)
	}
	if doc.LoadBalancer == nil {
		return nil, errors.New("the load balancer's metadata is not the JSON expected: no loadbalancer in it")
	}
	var out []Frontend
	for _, a := range doc.LoadBalancer.PublicIPAddresses {
		f := Frontend{Public: publicAddress(a.Frontend), Private: publicAddress(a.Private)}
		if f.Public.IsValid() {
			out = append(out, f)
		}
	}
	return out, nil
}

// privateAddress reads an address that has to be one; "" is none.
func privateAddress(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsLoopback() {
		return netip.Addr{}, errors.New("no address")
	}
	return a.Unmap(), nil
}

// publicAddress reads an address that may be anything; the load balancer's IPv6 ones are seen in brackets.
func publicAddress(s string) netip.Addr {
	a, err := privateAddress(strings.Trim(strings.TrimSpace(s), "[]"))
	if err != nil {
		return netip.Addr{}
	}
	return a
}

// normalMAC takes the separators out: Azure writes none, the kernel colons.
func normalMAC(s string) string {
	s = strings.ToLower(strings.NewReplacer(":", "", "-", "", ".", "").Replace(strings.TrimSpace(s)))
	if b, err := hex.DecodeString(s); err != nil || len(b) != 6 {
		return ""
	}
	return s
}

// isWord accepts names, regions, sizes: text without blanks, with room for what Azure has yet to allow.
func isWord(s string) bool {
	return s != "" && len(s) <= maxWord && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) })
}

func isTag(s string) bool {
	return len(s) <= maxTag && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, r := range s {
		switch i {
		case 8, 13, 18, 23:
			if r != '-' {
				return false
			}
		default:
			if (r < '0' || r > '9') && (r < 'a' || r > 'f') {
				return false
			}
		}
	}
	return true
}
