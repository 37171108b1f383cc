// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakealibaba

import (
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
)

// Instance is the virtual machine that the service speaks of.
type Instance struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	AccountID string `json:"account_id"`
	Region    string `json:"region"`
	Zone      string `json:"zone"`
	Type      string `json:"type"`
	Hostname  string `json:"hostname"`
	// NICs are the network interfaces; the first is the primary one.
	NICs []NIC `json:"nics"`
	// Tags are served only by the ECS API.
	Tags map[string]string `json:"tags"`
	// Role is the name of the RAM role; empty: none.
	Role string `json:"role"`
	// TerminationTime is when a spot instance is reclaimed; zero: no notice.
	TerminationTime time.Time `json:"termination_time,omitzero"`
	// Events are the active system events, as they are answered; empty: not there.
	Events string `json:"events"`
	// UserData is served raw; empty: none.
	UserData string `json:"user_data"`
}

// NIC is one network interface.
type NIC struct {
	MAC   string   `json:"mac"`
	IPv4s []string `json:"ipv4s"` // the first is the primary one
	// IPv6s is answered as it is: the form of the list is documented nowhere.
	IPv6s  string `json:"ipv6s"`
	Public string `json:"public"` // IPv4; empty: none
}

// Sample is an instance of a scaling group with a RAM role.
func Sample() Instance {
	return Instance{
		ID: "i-bp13znx0m0me8cq0001", Name: "edge-hangzhou-0001", AccountID: "1609000000000001",
		Region: "cn-hangzhou", Zone: "cn-hangzhou-i", Type: "ecs.g7.xlarge",
		Hostname: "iZbp13znx0m0me8cq0001Z",
		NICs:     []NIC{{MAC: "00:16:3e:0f:00:01", IPv4s: []string{"192.168.0.12"}, Public: "203.0.113.7"}},
		Tags:     map[string]string{"Name": "ams-edge", "amsagent-role": "edge"},
		Role:     "ams-node",
	}
}

// items are all answers by their path below the version, but the credentials. An
// item without a value is not there, and its path answers 404.
func (i Instance) items(k fakes.Key) fakes.Items {
	m := fakes.Items{}
	nic := fakes.First(i.NICs)
	ip := fakes.First(nic.IPv4s)
	m.Meta("instance-id", i.ID)
	m.Meta("instance/instance-name", i.Name)
	m.Meta("hostname", i.Hostname)
	m.Meta("region-id", i.Region)
	m.Meta("zone-id", i.Zone)
	m.Meta("private-ipv4", ip)
	m.Meta("eipv4", nic.Public)
	m.Meta("mac", nic.MAC)
	for _, n := range i.NICs {
		m.Meta("network/interfaces/macs/"+n.MAC+"/ipv6s", n.IPv6s)
	}
	if !i.TerminationTime.IsZero() {
		m.Meta("instance/spot/termination-time", i.TerminationTime.UTC().Format(time.RFC3339))
	}
	if i.Role != "" {
		m.Meta("ram/security-credentials/", i.Role)
		m.Meta("ram/security-credentials/"+i.Role, fakes.JSON(map[string]string{
			"Code": "Success", "AccessKeyId": k.ID, "AccessKeySecret": k.Secret, "SecurityToken": k.Token,
			"LastUpdated": k.Since.UTC().Format(time.RFC3339), "Expiration": k.Until.UTC().Format(time.RFC3339),
		}))
	}
	m.Set("maintenance/active-system-events", i.Events)
	m.Set("user-data", i.UserData)
	m.Set("dynamic/instance-identity/document", fakes.JSON(map[string]string{
		"zone-id": i.Zone, "serial-number": "4acd2b47-b328-4762-852f-998f2dfb0001", "instance-id": i.ID, "region-id": i.Region,
		"private-ipv4": ip, "owner-account-id": i.AccountID, "mac": nic.MAC, "instance-type": i.Type,
	}))
	return m
}
