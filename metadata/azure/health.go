// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure

import "fmt"

// ApplicationHealth is the body for the Application Health extension 2.0. Its HTTP status is always 200: any other means
// Unknown, and Azure repairs such machines. Source:
//
//	https://learn.microsoft.com/azure/virtual-machine-scale-sets/virtual-machine-scale-sets-rolling-upgrade-custom-metrics
type ApplicationHealth struct {
	State string `json:"ApplicationHealthState"` // Healthy or Unhealthy
	// CustomMetrics is JSON in a string.
	CustomMetrics string `json:"customMetrics"`
}

// HealthOf returns the health for Azure. An unhealthy machine is replaced; an idle one, known to have no sessions, may be
// upgraded.
func HealthOf(healthy, idle bool) ApplicationHealth {
	h, phase := ApplicationHealth{State: "Unhealthy"}, 1
	if healthy {
		h.State = "Healthy"
	}
	if idle {
		phase = 0 // upgraded first
	}
	h.CustomMetrics = fmt.Sprintf(`{"rollingUpgrade":{"SkipUpgrade":%t,"PhaseOrderingNumber":%d}}`, !idle, phase)
	return h
}
