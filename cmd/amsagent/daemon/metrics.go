// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/heartbeat"
	"github.com/amsagent/amsagent/internal/promtext"
	"github.com/amsagent/amsagent/internal/seconds"
	"github.com/amsagent/amsagent/lifecycle"
)

// states writes 1 for the current state, and 0 for the others.
func states[T ~string](e *promtext.Page, name, help string, current T, all ...T) {
	var list []promtext.Series
	for _, s := range all {
		list = append(list, promtext.Of(promtext.Bool(s == current), "state", string(s)))
	}
	e.Family("gauge", name, help, list...)
}

func divided[T int | int64 | uint64 | seconds.Duration](v *T, by float64) *float64 {
	if v == nil {
		return nil
	}
	return new(float64(*v) / by)
}

func writeMetrics(w io.Writer, v View) {
	e := new(promtext.Page)
	e.Family("gauge", "amsagent_build_info", "Version of the agent, as a label; the value is always 1.", promtext.Of(promtext.Bool(true), "version", v.Version))
	e.Gauge("amsagent_joined", "1 if this machine has joined a cluster, else 0.", promtext.Bool(v.Phase == bootstrap.PhaseJoined))
	if n := v.node; v.Phase == bootstrap.PhaseJoined && n.ID != "" {
		labels := []string{"node", n.ID, "role", n.Role, "group", n.Group, "zone", n.Zone, "provider", n.Provider, "ams_version", n.AMS}
		e.Family("gauge", "amsagent_node_info", "Facts of this node, as labels; the value is always 1.", promtext.Of(promtext.Bool(true), labels...))
	}
	states(e, "amsagent_node_state", "State of this node in the registry: 1 for the current state, 0 for the others.", v.State, cluster.States()...)
	e.Gauge("amsagent_ready", "1 if /readyz answers 200: new sessions may come.", promtext.Bool(v.Ready))
	if l := v.Lifecycle; l != nil && l.State == lifecycle.StateDraining {
		e.Gauge("amsagent_drain_started_timestamp_seconds", "When the drain of this node began, in seconds since 1970; only during a drain.", promtext.Timestamp(l.Begun))
		if limit := drainLimit(l, nil); limit != nil {
			e.Gauge("amsagent_drain_deadline_timestamp_seconds", "When the drain cuts the sessions that are left, in seconds since 1970; only during a drain with a deadline.", promtext.Timestamp(limit.Until))
		}
	}
	if !v.Server.Since.IsZero() {
		e.Gauge("amsagent_server_up", "1 if every application of Ant Media Server that must serve answers.", promtext.Bool(v.Server.Up))
	}
	degraded := []promtext.Series{promtext.Of(promtext.Bool(v.Trouble != ""), "reason", "daemon"), promtext.Of(promtext.Bool(v.SettingsError != ""), "reason", "settings")}
	if v.Lifecycle != nil {
		for _, about := range lifecycle.Troubles() {
			degraded = append(degraded, promtext.Of(promtext.Bool(v.Lifecycle.Trouble[about] != ""), "reason", about))
		}
		e.Family("counter", "amsagent_unknown_signals_total", "Signals of the cloud, since the agent started, that this version does not know.", promtext.Of(divided(&v.Lifecycle.UnknownSignals, 1)))
	}
	e.Family("gauge", "amsagent_degraded", "1 for each reason for which the agent is degraded, else 0; amsagent status shows the text.", degraded...)
	e.Gauge("amsagent_server_restart_pending", "1 if Ant Media Server needs a restart to apply its files: they differ from those of the join, or are newer than the server.", promtext.Bool(v.RestartPending))
	if r := v.Release; r != nil && r.Match != bootstrap.ReleaseUnknown {
		e.Gauge("amsagent_server_outdated", "1 if Ant Media Server runs another release than its files have, because it was not restarted after an upgrade; 0 if the same.", promtext.Bool(r.Match == bootstrap.ReleaseOlder))
	}
	e.Family("counter", "amsagent_heartbeats_total", "Heartbeats by result.",
		promtext.Of(divided(&v.sent, 1), "result", "sent"), promtext.Of(divided(&v.failed, 1), "result", "failed"))
	e.Gauge("amsagent_last_heartbeat_timestamp_seconds", "Time of the last heartbeat that was written, in seconds since 1970.", promtext.Timestamp(v.Beat.Last))
	if v.Phase == bootstrap.PhaseJoined && v.State != cluster.StateLeft && (!v.Beat.Last.IsZero() || v.Beat.Error != "") {
		e.Gauge("amsagent_mongodb_reachable", "1 if MongoDB took the last heartbeat, else 0.", promtext.Bool(v.Beat.Error == ""))
	}
	e.Gauge("amsagent_clock_offset_seconds", "How far this machine's clock is ahead of MongoDB's.", divided(v.clock, float64(time.Second)))
	e.Gauge("amsagent_server_document_age_seconds", "Age of Ant Media Server's own document of this node; above 20 s, other nodes consider this node dead.", divided(v.AMSAge, float64(time.Second)))
	e.Family("counter", "amsagent_repairs_total", "Differences from the settings of the join that the agent repaired.", promtext.Of(divided(&v.repaired, 1)))
	e.Gauge("amsagent_score_ratio", "Highest of CPU and memory, as shares of Ant Media Server's limits, and of each GPU's utilization, encoder, decoder and memory.", divided(v.Load.Score, 100))
	e.Gauge("amsagent_publishers", "Streams that are published to this node.", divided(v.Sessions.Publishers, 1))
	e.Gauge("amsagent_viewers", "Viewers of this node.", divided(v.Sessions.Viewers, 1))
	if v.Sessions.Viewers != nil {
		e.Gauge("amsagent_viewers_estimated", "1 if the viewers are counted by their connections, else 0.", promtext.Bool(v.Sessions.By == cluster.CountedByConnections))
	}
	e.Gauge("amsagent_idle_connections", "Connections from other machines to the server that nothing was sent on for two minutes: they do not count as viewers or publishers.", divided(v.Sessions.Idle, 1))
	states(e, "amsagent_gpu_state", "State of the GPU readings: 1 for the current state, 0 for the others.", v.gpus.State,
		heartbeat.GPUAbsent, heartbeat.GPUPending, heartbeat.GPUFailing, heartbeat.GPUReady)
	var util, enc, dec, mem []promtext.Series
	for i, g := range v.gpus.Devices {
		labels := []string{"gpu", strconv.Itoa(i), "name", g.Name}
		util = append(util, promtext.Of(divided(g.Util, 100), labels...))
		enc = append(enc, promtext.Of(divided(g.Enc, 100), labels...))
		dec = append(dec, promtext.Of(divided(g.Dec, 100), labels...))
		mem = append(mem, promtext.Of(divided(g.Mem, 100), labels...))
	}
	e.Family("gauge", "amsagent_gpu_utilization_ratio", "Utilization of the GPU.", util...)
	e.Family("gauge", "amsagent_gpu_encoder_utilization_ratio", "Utilization of the GPU's encoder.", enc...)
	e.Family("gauge", "amsagent_gpu_decoder_utilization_ratio", "Utilization of the GPU's decoder.", dec...)
	e.Family("gauge", "amsagent_gpu_memory_used_ratio", "Used share of the GPU's memory.", mem...)
	var missing []promtext.Series
	if v.Phase == bootstrap.PhaseJoined {
		for _, reading := range slices.Sorted(maps.Keys(v.Missing)) {
			missing = append(missing, promtext.Of(promtext.Bool(true), "reading", reading))
		}
	}
	e.Family("gauge", "amsagent_reading_missing", "1 for each reading that is missing on a node; amsagent status -o json has the reason (daemon.missing).", missing...)
	_, _ = w.Write(e.Bytes())
}
