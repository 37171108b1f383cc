// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakegcp

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
)

// Instance is one machine as the service describes it.
type Instance struct {
	ID          string `json:"id"` // decimal
	Name        string `json:"name"`
	Zone        string `json:"zone"`
	MachineType string `json:"machine_type"`
	Project     string `json:"project"`
	// Number is the project's.
	Number string `json:"number"`
	// Spot is a machine that may be preempted, Migrates one that moves to another host when its own is looked after.
	Spot     bool  `json:"spot"`
	Migrates bool  `json:"migrates"`
	NICs     []NIC `json:"nics"`
	// Attributes are the instance's custom metadata, ProjectAttributes those of all instances of the project.
	Attributes        map[string]string `json:"attributes"`
	ProjectAttributes map[string]string `json:"project_attributes"`

	Signals Signals `json:"signals"`
}

// NIC is one network interface.
type NIC struct {
	MAC    string   `json:"mac"`
	IPv4   string   `json:"ipv4,omitempty"`
	IPv6s  []string `json:"ipv6s,omitempty"`
	Public string   `json:"public,omitempty"`
}

// Signals announce the end of the machine.
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
		NICs:              []NIC{{MAC: "42:01:0a:84:00:05", IPv4: "10.132.0.5", Public: "203.0.113.7"}},
		Attributes:        map[string]string{"amsagent-role": "edge", "ssh-keys": "operator:ssh-ed25519 AAAA operator@example.com", "created-by": GroupOf("123456789012", "europe-west1-b", "edge-mig")},
		ProjectAttributes: map[string]string{},
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

// items are the answers by their path below computeMetadata/v1/, as far as an agent asks for them. Folders are there in their
// recursive form alone.
func (i Instance) items() map[string]string {
	yes := func(b bool) string { return strings.ToUpper(strconv.FormatBool(b)) }
	policy := "TERMINATE"
	if i.Migrates {
		policy = "MIGRATE"
	}
	signals, requested := i.Signals, ""
	if !signals.StopRequested.IsZero() {
		requested = signals.StopRequested.UTC().Format(time.RFC3339)
	}
	maintenance := cmp.Or(signals.Maintenance, "NONE")
	project := "projects/" + i.Number
	nics := []any{}
	for _, nic := range i.NICs {
		m := map[string]any{
			"mac": nic.MAC, "network": project + "/networks/default",
			"accessConfigs": []any{map[string]any{"externalIp": nic.Public, "type": "ONE_TO_ONE_NAT"}},
		}
		if nic.IPv4 != "" {
			m["ip"] = nic.IPv4
		}
		if len(nic.IPv6s) > 0 {
			m["ipv6s"] = nic.IPv6s
		}
		nics = append(nics, m)
	}
	shutdown := map[string]any{
		"stopState": signals.StopState, "targetState": signals.StopTarget, "requestTimestamp": requested, "maxDuration": int(signals.StopMax.Seconds()),
	}
	instance := map[string]any{
		"id": json.Number(i.ID), "name": i.Name, "hostname": i.Name + "." + i.Zone + ".c." + i.Project + ".internal",
		"zone": project + "/zones/" + i.Zone, "machineType": project + "/machineTypes/" + i.MachineType,
		"attributes": maps.Collect(maps.All(i.Attributes)), "networkInterfaces": nics,
		"preempted": yes(signals.Preempted), "maintenanceEvent": maintenance, "shutdownDetails": shutdown,
		"scheduling": map[string]any{"preemptible": yes(i.Spot), "onHostMaintenance": policy, "automaticRestart": yes(!i.Spot)},
	}
	return map[string]string{
		"instance/": fakes.JSON(instance), "instance/shutdown-details/": fakes.JSON(shutdown),
		"instance/preempted": yes(signals.Preempted), "instance/maintenance-event": maintenance,
		"instance/shutdown-details/stop-state": signals.StopState,
		"project/": fakes.JSON(map[string]any{
			"projectId": i.Project, "numericProjectId": json.Number(i.Number), "attributes": maps.Collect(maps.All(i.ProjectAttributes)), // never null
		}),
	}
}
