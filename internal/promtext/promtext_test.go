// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package promtext

import (
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

func TestPage(t *testing.T) {
	p := new(Page)
	p.Family("counter", "a_total", "Of a.", Of(new(3.0), "x", `"\`+"\n"), Of(nil, "x", "unknown"), Of(Bool(false), "x", "", "y", "2"))
	p.Gauge("unknown", "Nothing.", Timestamp(time.Time{}))
	p.Gauge("b_timestamp_seconds", "Of b.", Timestamp(time.UnixMilli(1_900_000_000_250)))
	const want = "# HELP a_total Of a.\n# TYPE a_total counter\n" + `a_total{x="",y="2"} 0` + "\n" + `a_total{x="\"\\\n"} 3` + "\n" +
		"# HELP b_timestamp_seconds Of b.\n# TYPE b_timestamp_seconds gauge\nb_timestamp_seconds 1900000000.25\n"
	must.NoDiff(t, "text", p.String(), want)
}
