// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeazure

import (
	"encoding/base64"
	"maps"
	"slices"
	"strings"
)

// VM is the virtual machine that a service speaks of.
type VM struct {
	ID            string `json:"id"`
	Name          string `json:"name"`
	ScaleSet      string `json:"scale_set"` // empty: in none
	Subscription  string `json:"subscription"`
	ResourceGroup string `json:"resource_group"`
	Location      string `json:"location"`
	Zone          string `json:"zone"`
	Size          string `json:"size"`
	Priority      string `json:"priority"` // Regular, Spot, Low
	Hostname      string `json:"hostname"`
	// NICs are the network interfaces, in whatever order.
	NICs     []NIC             `json:"nics"`
	Tags     map[string]string `json:"tags"`
	UserData string            `json:"user_data"`
}

// NIC is one network interface.
type NIC struct {
	MAC   string   `json:"mac"` // in any form
	IPv4s []string `json:"ipv4s"`
}

// Sample is a machine of a uniform scale set, with tags that say what it shall do.
func Sample() VM {
	return VM{
		ID: "5c08b38e-4d1b-4f0a-9e6c-3b2a1c0d0003", Name: "edge_3", ScaleSet: "edge",
		Subscription: "8d10da13-8125-4ba9-a717-bf7490507b3d", ResourceGroup: "ams", Location: "westeurope", Zone: "1",
		Size: "Standard_D4s_v5", Priority: "Regular", Hostname: "edge000003",
		NICs: []NIC{{MAC: "00:0d:3a:11:22:33", IPv4s: []string{"10.1.0.4"}}},
		Tags: map[string]string{"amsagent-role": "edge"},
	}
}

// instance is the document of the newest versions. Every primitive is a string.
func (v VM) instance() map[string]any {
	var flat []string
	list := []any{}
	for _, name := range slices.Sorted(maps.Keys(v.Tags)) {
		flat = append(flat, name+":"+v.Tags[name])
		list = append(list, map[string]any{"name": name, "value": v.Tags[name]})
	}
	path := "/subscriptions/" + v.Subscription + "/resourceGroups/" + v.ResourceGroup + "/providers/Microsoft.Compute"
	resource := path + "/virtualMachines/" + v.Name
	if v.ScaleSet != "" {
		resource = path + "/virtualMachineScaleSets/" + v.ScaleSet + "/virtualMachines/" + strings.TrimPrefix(v.Name, v.ScaleSet+"_")
	}
	compute := map[string]any{
		"azEnvironment": "AzurePublicCloud", "customData": "", "evictionPolicy": "", "location": v.Location, "name": v.Name,
		"offer": "ubuntu-24_04-lts", "osType": "Linux", "placementGroupId": "", "platformFaultDomain": "0", "platformUpdateDomain": "0",
		"priority": v.Priority, "provider": "Microsoft.Compute", "publisher": "canonical", "resourceGroupName": v.ResourceGroup,
		"resourceId": resource, "sku": "server", "subscriptionId": v.Subscription, "tags": strings.Join(flat, ";"), "version": "24.04.202611010",
		"vmId": v.ID, "vmScaleSetName": v.ScaleSet, "vmSize": v.Size, "zone": v.Zone,
		"tagsList": list, "userData": base64.StdEncoding.EncodeToString([]byte(v.UserData)),
		"virtualMachineScaleSet": map[string]any{"id": ""}, // of a flexible set alone
		"osProfile":              map[string]any{"adminUsername": "operator", "computerName": v.Hostname, "disablePasswordAuthentication": "true"},
	}
	nics := []any{}
	for _, n := range v.NICs {
		v4 := []any{}
		for _, a := range n.IPv4s {
			v4 = append(v4, map[string]any{"privateIpAddress": a, "publicIpAddress": ""})
		}
		nics = append(nics, map[string]any{
			"ipv4":       map[string]any{"ipAddress": v4, "subnet": []any{map[string]any{"address": "10.1.0.0", "prefix": "24"}}},
			"ipv6":       map[string]any{"ipAddress": []any{}},
			"macAddress": strings.ToUpper(strings.NewReplacer(":", "", "-", "").Replace(n.MAC)),
		})
	}
	return map[string]any{"compute": compute, "network": map[string]any{"interface": nics}}
}
