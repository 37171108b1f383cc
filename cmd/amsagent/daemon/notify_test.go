// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

func TestReady(t *testing.T) {
	for _, tt := range []struct {
		unit, interval time.Duration
		want           string
	}{
		{0, 5 * time.Second, "READY=1"},
		{0, time.Minute, "READY=1"}, // a person wants none
		{30 * time.Second, 5 * time.Second, "READY=1\nWATCHDOG_USEC=30000000"},
		{30 * time.Second, time.Minute, "READY=1\nWATCHDOG_USEC=240000000"},
		{10 * time.Minute, time.Minute, "READY=1\nWATCHDOG_USEC=600000000"},
		{4 * time.Second, time.Second, "READY=1\nWATCHDOG_USEC=4000000"},
	} {
		d := &Daemon{o: Options{Watchdog: tt.unit, Settings: func() Settings { return Settings{Interval: tt.interval} }}}
		must.Equal(t, fmt.Sprintf("unit %s, beats every %s", tt.unit, tt.interval), d.ready(), tt.want)
	}
}
