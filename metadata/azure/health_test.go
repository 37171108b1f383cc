// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure_test

import (
	"encoding/json"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/azure"
)

// The body is that of Azure's page, byte for byte.
func TestHealthOf(t *testing.T) {
	for _, tt := range []struct {
		healthy, idle bool
		want          string
	}{
		{true, true, `{"ApplicationHealthState":"Healthy","customMetrics":"{\"rollingUpgrade\":{\"SkipUpgrade\":false,\"PhaseOrderingNumber\":0}}"}`},
		{true, false, `{"ApplicationHealthState":"Healthy","customMetrics":"{\"rollingUpgrade\":{\"SkipUpgrade\":true,\"PhaseOrderingNumber\":1}}"}`},
		{false, false, `{"ApplicationHealthState":"Unhealthy","customMetrics":"{\"rollingUpgrade\":{\"SkipUpgrade\":true,\"PhaseOrderingNumber\":1}}"}`},
	} {
		got, err := json.Marshal(azure.HealthOf(tt.healthy, tt.idle))
		must.OK(t, err)
		must.Equal(t, "answer", string(got), tt.want)
	}
}
