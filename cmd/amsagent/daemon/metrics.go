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
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/heartbeat"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/lifecycle"
)

// exposition is Prometheus' text format 0.0.4.
//
// It is written by hand: Prometheus' library adds 2.7 MB to the binary, and the small maintained one writes to standard error
// before main on kernels without pressure stall information.
type exposition struct{ bytes.Buffer }

// series is one line of a family. An unknown value is nil and has no line: zero would be wrong, and NaN breaks sums.
type series struct {
	labels string
	value  *float64
}

// family writes nothing without a known value.
func (e *exposition) family(kind, name, help string, all ...series) {
	head := fmt.Sprintf("# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	for _, s := range all {
		if s.value == nil {
			continue
		}
		labels := s.labels
		if labels != "" {
			labels = "{" + labels + "}"
		}
		e.WriteString(head + name + labels + " " + strconv.FormatFloat(*s.value, 'f', -1, 64) + "\n")
		head = ""
	}
}

func (e *exposition) gauge(name, help string, value *float64) {
	e.family("gauge", name, help, series{value: value})
}

// states writes 1 for the current state, and 0 for the others.
func states[T ~string](e *exposition, name, help string, current T, all ...T) {
	var list []series
	for _, s := range all {
		list = append(list, series{label("state", string(s)), known(s == current)})
	}
	e.family("gauge", name, help, list...)
}

// labelValue escapes as the text format requires.
var labelValue = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

func label(name, value string) string { return name + `="` + labelValue.Replace(value) + `"` }

func divided[T int | int64 | uint64 | seconds.Duration](v *T, by float64) *float64 {
	if v == nil {
		return nil
	}
	return new(float64(*v) / by)
}

func stamp(t time.Time) *float64 {
	if t.IsZero() {
		return nil
	}
	return new(float64(t.UnixMilli()) / 1000)
}

func known(b bool) *float64 {
	if b {
		return new(1.0)
	}
	return new(0.0)
}

func writeMetrics(w io.Writer, v View) {
	e := new(exposition)
	e.family("gauge", "amsagent_build_info", "Version of the agent, as a label; the value is always 1.", series{label("version", v.Version), known(true)})
	e.gauge("amsagent_joined", "1 if this machine has joined a cluster, else 0.", known(v.Phase == bootstrap.PhaseJoined))
	if n := v.node; v.Phase == bootstrap.PhaseJoined && n.ID != "" {
		labels := []string{
			label("node", n.ID), label("role", n.Role), label("group", n.Group), label("zone", n.Zone), label("provider", n.Provider), label("ams_version", n.AMS),
		}
		e.family("gauge", "amsagent_node_info", "Facts of this node, as labels; the value is always 1.", series{strings.Join(labels, ","), known(true)})
	}
	states(e, "amsagent_node_state", "State of this node in the registry: 1 for the current state, 0 for the others.", v.State, cluster.States()...)
	e.gauge("amsagent_ready", "1 if /readyz answers 200: new sessions may come.", known(v.Ready))
	if l := v.Lifecycle; l != nil && l.State == lifecycle.StateDraining {
		e.gauge("amsagent_drain_started_timestamp_seconds", "When the drain of this node began, in seconds since 1970; only during a drain.", stamp(l.Begun))
		e.gauge("amsagent_drain_deadline_timestamp_seconds", "When the drain cuts the sessions that are left, in seconds since 1970; only during a drain with a deadline.", stamp(l.Deadline))
	}
	if !v.Server.Since.IsZero() {
		e.gauge("amsagent_server_up", "1 if every application of Ant Media Server that must serve answers.", known(v.Server.Up))
	}
	degraded := []series{{label("reason", "daemon"), known(v.Trouble != "")}, {label("reason", "settings"), known(v.SettingsError != "")}}
	if v.Lifecycle != nil {
		for _, about := range lifecycle.Troubles() {
			degraded = append(degraded, series{label("reason", about), known(v.Lifecycle.Trouble[about] != "")})
		}
		e.family("counter", "amsagent_unknown_signals_total", "Signals of the cloud, since the agent started, that this version does not know.", series{value: divided(&v.Lifecycle.UnknownSignals, 1)})
	}
	e.family("gauge", "amsagent_degraded", "1 for each reason for which the agent is degraded, else 0; amsagent status shows the text.", degraded...)
	e.gauge("amsagent_server_restart_pending", "1 if Ant Media Server needs a restart to apply its files: they differ from those of the join, or are newer than the server.", known(v.RestartPending))
	e.family("counter", "amsagent_heartbeats_total", "Heartbeats by result.",
		series{label("result", "sent"), divided(&v.sent, 1)}, series{label("result", "failed"), divided(&v.failed, 1)})
	e.gauge("amsagent_last_heartbeat_timestamp_seconds", "Time of the last heartbeat that was written, in seconds since 1970.", stamp(v.Beat.Last))
	if !v.Beat.Round.IsZero() && v.Phase == bootstrap.PhaseJoined {
		e.gauge("amsagent_mongodb_reachable", "1 if MongoDB took the last heartbeat, else 0.", known(v.Beat.Error == ""))
	}
	e.gauge("amsagent_clock_offset_seconds", "How far this machine's clock is ahead of MongoDB's.", divided(v.clock, float64(time.Second)))
	e.gauge("amsagent_server_document_age_seconds", "Age of Ant Media Server's own document of this node; above 20 s, other nodes consider this node dead.", divided(v.AMSAge, float64(time.Second)))
	e.family("counter", "amsagent_repairs_total", "Differences from the settings of the join that the agent repaired.", series{value: divided(&v.repaired, 1)})
	e.gauge("amsagent_score_ratio", "Highest of CPU and memory, as shares of Ant Media Server's limits, and of each GPU's utilization, encoder, decoder and memory.", divided(v.Load.Score, 100))
	e.gauge("amsagent_publishers", "Streams that are published to this node.", divided(v.Sessions.Publishers, 1))
	e.gauge("amsagent_viewers", "Viewers of this node.", divided(v.Sessions.Viewers, 1))
	if v.Sessions.Viewers != nil {
		e.gauge("amsagent_viewers_estimated", "1 if the viewers are counted by their connections, else 0.", known(v.Sessions.By == cluster.CountedByConnections))
	}
	e.gauge("amsagent_idle_connections", "Connections from other machines to the server that nothing was sent on for two minutes: they do not count as viewers or publishers.", divided(v.Sessions.Idle, 1))
	states(e, "amsagent_gpu_state", "State of the GPU readings: 1 for the current state, 0 for the others.", v.gpus.State,
		heartbeat.GPUAbsent, heartbeat.GPUPending, heartbeat.GPUFailing, heartbeat.GPUReady)
	var util, enc, dec, mem []series
	for i, g := range v.gpus.Devices {
		labels := label("gpu", strconv.Itoa(i)) + "," + label("name", g.Name)
		util = append(util, series{labels, divided(g.Util, 100)})
		enc = append(enc, series{labels, divided(g.Enc, 100)})
		dec = append(dec, series{labels, divided(g.Dec, 100)})
		mem = append(mem, series{labels, divided(g.Mem, 100)})
	}
	e.family("gauge", "amsagent_gpu_utilization_ratio", "Utilization of the GPU.", util...)
	e.family("gauge", "amsagent_gpu_encoder_utilization_ratio", "Utilization of the GPU's encoder.", enc...)
	e.family("gauge", "amsagent_gpu_decoder_utilization_ratio", "Utilization of the GPU's decoder.", dec...)
	e.family("gauge", "amsagent_gpu_memory_used_ratio", "Used share of the GPU's memory.", mem...)
	var missing []series
	if v.Phase == bootstrap.PhaseJoined {
		for _, reading := range slices.Sorted(maps.Keys(v.Missing)) {
			missing = append(missing, series{label("reading", reading), known(true)})
		}
	}
	e.family("gauge", "amsagent_reading_missing", "1 for each reading that is missing on a node; amsagent status -o json has the reason (daemon.missing).", missing...)
	_, _ = w.Write(e.Bytes())
}
