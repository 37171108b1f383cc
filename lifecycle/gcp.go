// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"log/slog"
	"time"

	"github.com/amsagent/amsagent/metadata/gcp"
)

const providerGCP = "gcp"

// gcpWatcher is what a GCP source needs of metadata/gcp.
type gcpWatcher interface {
	Watch(ctx context.Context, fn func(gcp.Signal))
}

// NewGCPSource makes notices of what the metadata of a machine on Google Cloud
// signals. The logger may be nil.
//
// A scale-in of a managed instance group is not among it: of that nothing is told
// before the machine is switched off, see [Shutdown].
func NewGCPSource(w gcpWatcher, log *slog.Logger) Source {
	unknown := newUnknownSignals(log)
	return sourceFunc(func(ctx context.Context, report func(Notice)) {
		w.Watch(ctx, func(s gcp.Signal) {
			if s.Kind == gcp.SignalMaintenance && s.Value == gcp.MaintenanceMigrate {
				if !s.Gone {
					// Everybody stays connected; pictures may stand still for a moment.
					unknown.log.Info("this machine is moved to another host while it runs: nothing is done about it", "signal", s.Kind, "value", s.Value)
				}
				return
			}
			n, known := gcpNotice(s)
			if !known {
				unknown.say(string(s.Kind), s.Value, s.Text)
				return
			}
			report(n)
		})
	})
}

// gcpNotice tells what a signal means. The metadata speak of this machine alone,
// so a notice needs no id of an instance to be known again.
func gcpNotice(s gcp.Signal) (n Notice, known bool) {
	n = Notice{Received: s.Seen, Deadline: s.At}
	as := func(kind Kind, more, source, reason string) {
		n.ID, n.Kind, n.Source, n.Reason = NoticeID(providerGCP, "self", kind)+more, kind, source, reason
		n.Who = "Google Cloud"
	}
	expected := gcp.Preempted
	switch s.Kind {
	case gcp.SignalPreempted:
		as(Interrupt, "", "gcp-preempted", "preemption of a Spot VM")
	case gcp.SignalMaintenance:
		expected = gcp.MaintenanceTerminate
		as(Reboot, "", "gcp-maintenance", "host maintenance")
	case gcp.SignalStopState:
		expected = gcp.PendingStop
		reason := "graceful shutdown"
		if s.Text != "" {
			reason += " (to be " + s.Text + ")"
		}
		as(Terminate, "", "gcp-shutdown", reason)
	case gcp.SignalUpcoming:
		expected = s.Value
		reason := "upcoming host maintenance"
		if s.Text != "" {
			reason += " (" + s.Text + ")"
		}
		as(Reboot, "/upcoming", "gcp-maintenance", reason)
		n.Moved = !s.Gone // where it is known already, also from before a restart of ours
	default:
		return Notice{}, false
	}
	switch {
	case s.Gone:
		n.Kind, n.Deadline = Withdrawn, time.Time{}
	case s.Value != expected:
		return Notice{}, false
	}
	return n, true
}
