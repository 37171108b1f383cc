// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeaws

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
)

// Instance is the virtual machine that the service speaks of.
type Instance struct {
	ID        string `json:"id"`
	AccountID string `json:"account_id"`
	Region    string `json:"region"`
	Zone      string `json:"zone"`
	Type      string `json:"type"`
	LifeCycle string `json:"life_cycle"` // spot, on-demand
	Hostname  string `json:"hostname"`
	// NICs are the network interfaces; the first is the primary one.
	NICs []NIC `json:"nics"`
	// Tags are shown only with TagsEnabled (InstanceMetadataTags=enabled).
	Tags        map[string]string `json:"tags"`
	TagsEnabled bool              `json:"tags_enabled"`
	// Role is the name of the instance profile's role; empty: none.
	Role string `json:"role"`
	// Signals are the announced changes of the instance.
	Signals Signals `json:"signals"`
	// UserData is served raw; empty: none.
	UserData string `json:"user_data"`
	// Extra are items by their path below meta-data, such as autoscaling/target-lifecycle-state; they win over all others.
	Extra map[string]string `json:"extra"`
}

// NIC is one network interface.
type NIC struct {
	MAC    string   `json:"mac"`
	IPv4s  []string `json:"ipv4s"` // the first is the primary one; none: IPv6-only
	IPv6s  []string `json:"ipv6s"`
	Public string   `json:"public"` // IPv4; empty: none
}

// Sample is an instance of a scaling group, with tags that say what it shall do.
func Sample() Instance {
	return Instance{
		ID: "i-0abc1234567890def", AccountID: "123456789012",
		Region: "eu-west-1", Zone: "eu-west-1a",
		Type: "c7i.2xlarge", LifeCycle: "on-demand",
		Hostname: "ip-10-0-1-23.eu-west-1.compute.internal",
		NICs:     []NIC{{MAC: "0e:49:61:0f:c3:11", IPv4s: []string{"10.0.1.23"}, Public: "203.0.113.7"}},
		Tags: map[string]string{
			"Name": "ams-edge", "aws:autoscaling:groupName": "edge-asg", "amsagent:role": "edge",
		},
		TagsEnabled: true,
		Role:        "ams-node",
	}
}

// items are all answers by their path below the version: those that an agent or an operator asks for. An item without a value
// is not there, and its path answers 404.
func (i Instance) items(k fakes.Key) fakes.Items {
	m := fakes.Items{}
	nic := fakes.First(i.NICs)
	ip := fakes.First(nic.IPv4s)

	m.Meta("instance-id", i.ID)
	m.Meta("instance-life-cycle", i.LifeCycle)
	m.Meta("local-ipv4", ip)
	m.Meta("public-ipv4", nic.Public)
	m.Meta("mac", nic.MAC)
	m.Meta("local-hostname", i.Hostname)
	m.Meta("placement/availability-zone", i.Zone)
	for _, nic := range i.NICs {
		m.Meta("network/interfaces/macs/"+nic.MAC+"/ipv6s", strings.Join(nic.IPv6s, "\n"))
	}
	if i.TagsEnabled {
		for key, value := range i.Tags {
			m["meta-data/tags/instance/"+key] = value // an empty value is a value
		}
		m.Meta("tags/instance", strings.Join(slices.Sorted(maps.Keys(i.Tags)), "\n"))
	}

	document := map[string]any{
		"accountId": i.AccountID, "architecture": "x86_64", "availabilityZone": i.Zone,
		"billingProducts": nil, "instanceId": i.ID, "instanceType": i.Type, "pendingTime": "2026-11-20T08:00:00Z",
		"privateIp": nil, "region": i.Region, "version": "2017-09-30",
	}
	if ip != "" {
		document["privateIp"] = ip
	}
	m.Set("dynamic/instance-identity/document", fakes.JSON(document))

	if i.Role != "" {
		m.Meta("iam/security-credentials/", i.Role)
		m.Meta("iam/security-credentials/"+i.Role, fakes.JSON(map[string]string{
			"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": k.ID, "SecretAccessKey": k.Secret, "Token": k.Token,
			"LastUpdated": k.Since.UTC().Format(time.RFC3339), "Expiration": k.Until.UTC().Format(time.RFC3339),
		}))
	}
	i.Signals.items(m.Meta)
	m.Set("user-data", i.UserData)
	for path, value := range i.Extra {
		if value == "" {
			delete(m, "meta-data/"+path)
		} else {
			m["meta-data/"+path] = value
		}
	}
	return m
}
