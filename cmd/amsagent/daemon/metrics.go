// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/heartbeat"
)

// metrics are counters; all other values come from the view.
//
// The format is written by hand: Prometheus' library adds 2.7 MB to the binary, and the small maintained one writes to
// standard error before main on kernels without pressure stall information.
type metrics struct {
	sent, failed, repairs atomic.Uint64
}

func (m *metrics) count(r heartbeat.Report) {
	switch {
	case r.Tried && r.Err == nil:
		m.sent.Add(1)
	case r.Tried:
		m.failed.Add(1)
	}
}

func (m *metrics) repaired(n int) { m.repairs.Add(uint64(n)) }

// labelValue escapes as the text format requires.
var labelValue = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// exposition writes Prometheus' text format 0.0.4. An unknown value has no line: zero would be wrong, and NaN breaks sums.
type exposition struct{ w *bytes.Buffer }

func (e exposition) family(name, kind, help string) {
	fmt.Fprintf(e.w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// counters writes a family; without a label it is a single counter.
func (e exposition) counters(name, help, label string, values ...counter) {
	e.family(name, "counter", help)
	for _, v := range values {
		if label == "" {
			fmt.Fprintf(e.w, "%s %d\n", name, v.value.Load())
			continue
		}
		fmt.Fprintf(e.w, "%s{%s=%q} %d\n", name, label, v.of, v.value.Load())
	}
}

type counter struct {
	of    string
	value *atomic.Uint64
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

// gauge writes nothing for an unknown value.
func (e exposition) gauge(name, help string, value *float64) {
	if value != nil {
		e.family(name, "gauge", help)
		fmt.Fprintf(e.w, "%s %s\n", name, number(*value))
	}
}

func (e exposition) labelled(name string, value float64, labels ...string) {
	fmt.Fprintf(e.w, "%s{", name)
	for i := 0; i+1 < len(labels); i += 2 {
		if i > 0 {
			e.w.WriteByte(',')
		}
		fmt.Fprintf(e.w, `%s="%s"`, labels[i], labelValue.Replace(labels[i+1]))
	}
	fmt.Fprintf(e.w, "} %s\n", number(value))
}

func ptr[T int | int64 | uint64](v *T, whole float64) *float64 {
	if v == nil {
		return nil
	}
	f := float64(*v) / whole
	return &f
}

func seconds(d *time.Duration) *float64 {
	if d == nil {
		return nil
	}
	f := d.Seconds()
	return &f
}

func stamp(t time.Time) *float64 {
	if t.IsZero() {
		return nil
	}
	f := float64(t.UnixMilli()) / 1000
	return &f
}

func known(b bool) *float64 {
	f := 0.0
	if b {
		f = 1
	}
	return &f
}

func (m *metrics) write(w io.Writer, v View, s heartbeat.Sample) {
	e := exposition{new(bytes.Buffer)}
	e.family("amsagent_build_info", "gauge", "Version of the agent, as a label; the value is always 1.")
	e.labelled("amsagent_build_info", 1, "version", v.Version)
	e.gauge("amsagent_member", "1 if this machine has joined a cluster, else 0.", known(v.Phase == bootstrap.PhaseJoined))
	e.family("amsagent_node_state", "gauge", "State of this node in the registry: 1 for the current state, 0 for the others.")
	for _, state := range cluster.States() {
		e.labelled("amsagent_node_state", *known(v.State == state), "state", string(state))
	}
	e.gauge("amsagent_ready", "1 if /readyz answers 200: new sessions may come.", known(v.Ready))
	if !v.Server.Since.IsZero() {
		e.gauge("amsagent_server_up", "1 if every application of Ant Media Server that must serve answers.", known(v.Server.Up))
	}
	e.gauge("amsagent_trouble", "1 if the agent is degraded; amsagent status shows the reason.", known(v.Trouble != ""))
	if v.Lifecycle != nil {
		e.gauge("amsagent_unknown_signals", "Signals of the cloud, since the agent started, that this version does not know.", ptr(&v.Lifecycle.UnknownSignals, 1))
	}
	e.gauge("amsagent_restart_pending", "1 if Ant Media Server needs a restart to apply its files: they differ from those of the join, or are newer than the server.", known(v.RestartPending))
	e.counters("amsagent_beats_total", "Heartbeats by result.", "result", counter{"sent", &m.sent}, counter{"failed", &m.failed})
	e.gauge("amsagent_last_beat_time_seconds", "Time of the last heartbeat that was written, in seconds since 1970.", stamp(v.Beat.Last))
	e.gauge("amsagent_server_document_age_seconds", "Age of Ant Media Server's own document of this node; above 20 s, other nodes consider this node dead.", seconds(v.AMSAge))
	e.counters("amsagent_repairs_total", "Differences from the settings of the join that the agent repaired.", "", counter{"", &m.repairs})
	machine(e, s)
	_, _ = w.Write(e.w.Bytes())
}

func machine(e exposition, s heartbeat.Sample) {
	e.gauge("amsagent_score_ratio", "Highest of CPU and memory, as shares of Ant Media Server's limits, and of GPU utilization.", ptr(s.Load.Score, 100))
	e.gauge("amsagent_publishers", "Streams that are published to this node.", ptr(s.Session.Publishers, 1))
	if s.Session.Viewers != nil {
		const name = "amsagent_viewers"
		e.family(name, "gauge", "Viewers of this node; the label names the way of counting.")
		e.labelled(name, float64(*s.Session.Viewers), "counted_by", string(s.Session.By))
	}
	e.gauge("amsagent_idle_connections", "Connections from other machines to the server that nothing was sent on for two minutes: they do not count as viewers or publishers.", ptr(s.Session.Idle, 1))
	devices(e, s.GPUs)
	if len(s.Missing) > 0 {
		const name = "amsagent_reading_missing"
		e.family(name, "gauge", "1 for each reading that is missing; amsagent status shows the reason.")
		for _, what := range slices.Sorted(maps.Keys(s.Missing)) {
			e.labelled(name, 1, "what", what)
		}
	}
}

func devices(e exposition, r heartbeat.GPUReading) {
	e.family("amsagent_gpu_state", "gauge", "State of the GPU readings: 1 for the current state, 0 for the others.")
	for _, s := range []heartbeat.GPUState{heartbeat.GPUAbsent, heartbeat.GPUPending, heartbeat.GPUFailing, heartbeat.GPUReady} {
		e.labelled("amsagent_gpu_state", *known(r.State == s), "state", string(s))
	}
	if len(r.Devices) == 0 {
		return
	}
	for _, f := range []struct {
		name, help string
		value      func(cluster.GPULoad) *int
	}{
		{"amsagent_gpu_utilization_ratio", "Utilization of the GPU.", func(g cluster.GPULoad) *int { return g.Util }},
		{"amsagent_gpu_encoder_utilization_ratio", "Utilization of the GPU's encoder.", func(g cluster.GPULoad) *int { return g.Enc }},
	} {
		first := true
		for i, g := range r.Devices {
			value := ptr(f.value(g), 100)
			if value == nil {
				continue
			}
			if first {
				e.family(f.name, "gauge", f.help)
				first = false
			}
			e.labelled(f.name, *value, "gpu", strconv.Itoa(i), "name", g.Name)
		}
	}
}
