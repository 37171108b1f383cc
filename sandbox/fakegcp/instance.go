// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakegcp

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/amsagent/amsagent/sandbox/internal/cloud"
)

// Instance is what the service tells.
type Instance struct {
	ID          string `json:"id"` // decimal
	Name        string `json:"name"`
	Zone        string `json:"zone"`
	MachineType string `json:"machine_type"`
	Project     string `json:"project"`
	// Number is the project's.
	Number string `json:"number"`
	// Spot is a machine that may be preempted, Migrates one that moves to another
	// host when its own is looked after.
	Spot     bool  `json:"spot"`
	Migrates bool  `json:"migrates"`
	NICs     []NIC `json:"nics"`
	// Attributes are the instance's custom metadata, ProjectAttributes those of all
	// instances of the project.
	Attributes        map[string]string `json:"attributes"`
	ProjectAttributes map[string]string `json:"project_attributes"`
	// Tags are the network's.
	Tags []string `json:"tags"`

	Signals Signals `json:"signals"`
}

// NIC is one network interface.
type NIC struct {
	MAC    string   `json:"mac"`
	IPv4   string   `json:"ipv4,omitempty"`
	IPv6s  []string `json:"ipv6s,omitempty"`
	Public string   `json:"public,omitempty"`
}

// Signals are what the metadata says about the future of the machine.
type Signals struct {
	Preempted bool `json:"preempted,omitempty"`
	// Maintenance is maintenance-event; empty: NONE.
	Maintenance   string        `json:"maintenance,omitempty"`
	StopState     string        `json:"stop_state,omitempty"`
	StopTarget    string        `json:"stop_target,omitempty"`
	StopRequested time.Time     `json:"stop_requested,omitzero"`
	StopMax       time.Duration `json:"stop_max_ns,omitempty"`
}

// Sample is a Spot VM of a managed instance group.
func Sample() Instance {
	return Instance{
		ID: "4567890123456789012", Name: "edge-mig-x7k2", Zone: "europe-west1-b", MachineType: "n2-standard-4",
		Project: "acme-video", Number: "123456789012", Spot: true,
		NICs:       []NIC{{MAC: "42:01:0a:84:00:05", IPv4: "10.132.0.5", Public: "203.0.113.7"}},
		Attributes: map[string]string{"amsagent-role": "edge", "ssh-keys": "operator:ssh-ed25519 AAAA operator@example.com", "created-by": GroupOf("123456789012", "europe-west1-b", "edge-mig")},
		Tags:       []string{"edge"},
	}
}

// GroupOf is what a zonal managed instance group writes into created-by.
func GroupOf(number, zone, group string) string {
	return fmt.Sprintf("projects/%s/zones/%s/instanceGroupManagers/%s", number, zone, group)
}

// Window is how long the machine has from the soft power-off to the hard one.
func (i Instance) Window() time.Duration {
	if i.Spot {
		return 30 * time.Second
	}
	return 120 * time.Second
}

// items are the answers by their path below computeMetadata/v1/. Folders are there
// in their recursive form alone.
func (i Instance) items() map[string]string {
	yes := func(b bool) string {
		if b {
			return "TRUE"
		}
		return "FALSE"
	}
	policy := "TERMINATE"
	if i.Migrates {
		policy = "MIGRATE"
	}
	maintenance := i.Signals.Maintenance
	if maintenance == "" {
		maintenance = "NONE"
	}
	project := "projects/" + i.Number
	out := map[string]string{
		"instance/id": i.ID, "instance/name": i.Name, "instance/hostname": i.hostname(),
		"instance/zone": project + "/zones/" + i.Zone, "instance/machine-type": project + "/machineTypes/" + i.MachineType,
		"instance/preempted": yes(i.Signals.Preempted), "instance/maintenance-event": maintenance,
		"instance/scheduling/preemptible": yes(i.Spot), "instance/scheduling/on-host-maintenance": policy,
		"instance/scheduling/automatic-restart": yes(!i.Spot),
		"project/project-id":                    i.Project, "project/numeric-project-id": i.Number,
	}
	for k, v := range i.Attributes {
		out["instance/attributes/"+k] = v
	}
	for k, v := range i.ProjectAttributes {
		out["project/attributes/"+k] = v
	}
	var nics []any
	for n, nic := range i.NICs {
		dir := fmt.Sprintf("instance/network-interfaces/%d/", n)
		m := map[string]any{
			"mac": nic.MAC, "mtu": 1460, "network": project + "/networks/default", "dnsServers": []string{"169.254.169.254"},
			"forwardedIps": []string{}, "ipAliases": []string{}, "targetInstanceIps": []string{},
			"accessConfigs": []any{map[string]any{"externalIp": nic.Public, "type": "ONE_TO_ONE_NAT"}},
		}
		out[dir+"mac"] = nic.MAC
		if nic.IPv4 != "" {
			m["ip"], m["subnetmask"] = nic.IPv4, "255.255.240.0"
			out[dir+"ip"] = nic.IPv4
		}
		if len(nic.IPv6s) > 0 {
			m["ipv6s"] = nic.IPv6s
		}
		nics = append(nics, m)
	}
	doc := map[string]any{
		"id": json.Number(i.ID), "name": i.Name, "hostname": i.hostname(), "description": "",
		"zone": out["instance/zone"], "machineType": out["instance/machine-type"],
		"attributes": orEmpty(i.Attributes), "networkInterfaces": nics, "tags": i.Tags,
		"cpuPlatform": "Intel Cascade Lake", "image": "projects/debian-cloud/global/images/debian-12-bookworm-v20260901",
		"disks": []any{map[string]any{"deviceName": "boot", "index": 0, "mode": "READ_WRITE"}}, "licenses": []any{map[string]any{"id": "1"}},
		"serviceAccounts": map[string]any{}, "guestAttributes": map[string]any{}, "partnerAttributes": map[string]any{},
		"preempted": out["instance/preempted"], "maintenanceEvent": maintenance, "remainingCpuTime": -1,
		"scheduling": map[string]any{
			"preemptible": yes(i.Spot), "onHostMaintenance": policy, "automaticRestart": out["instance/scheduling/automatic-restart"],
		},
		"virtualClock": map[string]any{"driftToken": "0"},
	}
	docs := map[string]any{
		"instance/attributes/": orEmpty(i.Attributes), "project/attributes/": orEmpty(i.ProjectAttributes),
		"project/": map[string]any{"projectId": i.Project, "numericProjectId": json.Number(i.Number), "attributes": orEmpty(i.ProjectAttributes)},
	}
	signals := i.Signals
	requested := ""
	if !signals.StopRequested.IsZero() {
		requested = signals.StopRequested.UTC().Format(time.RFC3339)
	}
	details := map[string]any{
		"stopState": signals.StopState, "targetState": signals.StopTarget, "requestTimestamp": requested, "maxDuration": int(signals.StopMax.Seconds()),
	}
	doc["shutdownDetails"], docs["instance/shutdown-details/"] = details, details
	out["instance/shutdown-details/stop-state"] = signals.StopState
	out["instance/shutdown-details/target-state"] = signals.StopTarget
	out["instance/shutdown-details/request-timestamp"] = requested
	out["instance/shutdown-details/max-duration"] = fmt.Sprint(int(signals.StopMax.Seconds()))
	docs["instance/"] = doc
	for path, v := range docs {
		out[path] = cloud.JSON(v)
	}
	return out
}

func (i Instance) hostname() string {
	return i.Name + "." + i.Zone + ".c." + i.Project + ".internal"
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
