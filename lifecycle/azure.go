// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/metadata/azure"
	"github.com/amsagent/amsagent/metadata/cloud"
)

const (
	providerAzure = "azure"
	// azureEvents is the source of all notices from here.
	azureEvents = "azure-events"
	// freezeEvery is how often people hear of machines that stand still for a moment,
	// which may come in storms.
	freezeEvery = 10 * time.Minute
)

// azureWatcher is what an AzureSource needs of metadata/azure.
type azureWatcher interface {
	Watch(ctx context.Context, o azure.WatchOptions, fn func(azure.Signal))
}

// AzureSourceOptions are the settings of an AzureSource; the zero value works.
type AzureSourceOptions struct {
	// Announced tells the ids of the notices that a former life of this process was
	// given, by the events' own; see [AzureAnnounced]. It is asked when the watching
	// begins. With nil an event that was taken back meanwhile stays in force.
	Announced func() (map[string]string, error)
	// Log may be nil.
	Log *slog.Logger
}

// AzureSource makes notices of the scheduled events of a machine on Azure.
type AzureSource struct {
	watcher azureWatcher
	opts    AzureSourceOptions
	log     *slog.Logger

	unknown map[string]bool // what was logged once
	frozen  time.Time       // when a freeze was last told
	unsaid  int             // freezes since then
}

var _ Source = (*AzureSource)(nil)

// NewAzureSource makes a source. It asks nothing.
func NewAzureSource(w azureWatcher, o AzureSourceOptions) *AzureSource {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &AzureSource{watcher: w, opts: o, log: o.Log, unknown: map[string]bool{}}
}

// Watch implements Source.
func (s *AzureSource) Watch(ctx context.Context, report func(Notice)) error {
	// By the event's id, under which id it is announced.
	announced := map[string]string{}
	earlier := map[string]bool{} // announced by an earlier life of this process, which may have missed a move
	if s.opts.Announced != nil {
		known, err := s.opts.Announced()
		if err != nil {
			s.log.Warn("what was announced before is not known: an event that was taken back since then stays in force", "err", err)
		}
		maps.Copy(announced, known)
		for id := range known {
			earlier[id] = true
		}
	}
	s.watcher.Watch(ctx, azure.WatchOptions{Known: slices.Sorted(maps.Keys(earlier))}, func(signal azure.Signal) {
		id := signal.Event.ID
		if signal.Gone {
			if notice, ok := announced[id]; ok {
				delete(announced, id)
				report(Notice{
					ID: notice, Kind: Withdrawn, Source: azureEvents, Who: azureWho(signal.Event), Received: signal.Seen,
					Reason: "the event is over, or was cancelled",
				})
			}
			return
		}
		n, what := azureNotice(signal)
		// The node goes on draining, with the new time.
		before := signal.Before.NotBefore
		moved := !before.IsZero() && !n.Deadline.Equal(before) || before.IsZero() && earlier[id]
		n.Moved = what == azureTold && announced[id] != "" && !n.Deadline.IsZero() && moved
		delete(earlier, id)
		switch what {
		case azureTold:
			announced[id] = n.ID
			s.oddStatus(signal.Event)
			report(n)
		case azureFreeze:
			s.freeze(signal)
		case azurePast:
			s.log.Info("a scheduled event had begun before this process did, and was the boot before it: nothing is done about it",
				"event", id, "type", signal.Event.Type)
		case azureUnknown:
			s.strange(signal.Event)
		}
	})
	return ctx.Err()
}

// freeze tells of a machine that stands still for a moment. Viewers have buffers for
// that, and to send them away would cost more.
func (s *AzureSource) freeze(signal azure.Signal) {
	e := signal.Event
	if signal.Before.Type != "" {
		return // the same one has begun
	}
	if !s.frozen.IsZero() && signal.Seen.Sub(s.frozen) < freezeEvery {
		s.unsaid++
		return
	}
	args := []any{"event", e.ID, "for", azureDuration(e), "not_before", e.NotBefore, "text", e.Description}
	if s.unsaid > 0 {
		args = append(args, "not_told_since_the_last_one", s.unsaid)
	}
	s.frozen, s.unsaid = signal.Seen, 0
	s.log.Info("the cloud will let this machine stand still for a moment, and nothing is done about it", args...)
}

// strange says once what this version does not know.
func (s *AzureSource) strange(e azure.Event) {
	key := strings.ToLower(e.Type + "/" + e.ResourceType + "/" + e.Status)
	if s.unknown[key] || len(s.unknown) >= maxMemory {
		return
	}
	s.unknown[key] = true
	s.log.Warn("the cloud signals something that this version does not know, and nothing is done about it",
		"event", e.ID, "type", e.Type, "of", e.ResourceType, "status", e.Status, "not_before", e.NotBefore, "for", azureDuration(e), "text", e.Description)
}

// oddStatus says once that an event was taken for one that is scheduled.
func (s *AzureSource) oddStatus(e azure.Event) {
	key := "status/" + strings.ToLower(e.Status)
	if e.Started() || strings.EqualFold(e.Status, azure.StatusScheduled) || s.unknown[key] || len(s.unknown) >= maxMemory {
		return
	}
	s.unknown[key] = true
	s.log.Warn("a scheduled event is in a state that this version does not know; it is to happen yet, by its time", "event", e.ID, "status", e.Status, "not_before", e.NotBefore)
}

// azureVerdict is what becomes of an event.
type azureVerdict int

const (
	azureUnknown azureVerdict = iota
	azureTold                 // there is a notice of it
	azureFreeze
	azurePast
)

// azureNotice tells what an event means.
func azureNotice(s azure.Signal) (Notice, azureVerdict) {
	e := s.Event
	n := Notice{
		ID: providerAzure + "/" + s.Machine.VMID + "/" + e.ID, Source: azureEvents, Who: azureWho(e), Received: s.Seen,
		Reason: azureReason(e),
	}
	if e.ResourceType != "" && !strings.EqualFold(e.ResourceType, azure.ResourceVM) {
		return n, azureUnknown
	}
	switch {
	case e.Is(azure.EventFreeze):
		return n, azureFreeze
	case e.Is(azure.EventTerminate):
		n.Kind = Terminate
	case e.Is(azure.EventPreempt):
		n.Kind = Interrupt
	case e.Is(azure.EventReboot), e.Is(azure.EventRedeploy):
		n.Kind = Reboot
	default:
		return n, azureUnknown
	}
	switch {
	case e.Started():
		if n.Kind == Reboot && s.First {
			// It stays in the document until Azure has seen the machine back.
			return n, azurePast
		}
		// It happens now, and nobody waits for our word. For how long the machine still
		// is there is not known: those who watch get what there is, and no new ones come.
		if n.Kind == Terminate {
			n.Kind = Interrupt
		}
		return n, azureTold
	case !strings.EqualFold(e.Status, azure.StatusScheduled) && !e.NotBefore.After(s.Seen):
		// A state of which only the future could tell that it is not over.
		return n, azureUnknown
	}
	n.Deadline = e.NotBefore
	n.Hook = &Hook{
		Provider: providerAzure, Group: s.Machine.ScaleSet, Name: e.Type + " " + e.ID, Token: e.ID,
		Others: e.Others(s.Machine.Name), Fixed: true, Limit: e.NotBefore,
	}
	return n, azureTold
}

func azureWho(e azure.Event) string {
	if e.Source == "" {
		return "Azure"
	}
	return "Azure (" + e.Source + ")"
}

// azureReason is what people read: why, and for how long where the machine comes
// back.
func azureReason(e azure.Event) string {
	text := "scheduled event " + e.Type
	if e.Is(azure.EventTerminate) {
		text = "scale-in" // of a set, by its rules or by a person
	} else if e.Is(azure.EventPreempt) {
		text = "spot eviction"
	}
	if e.Duration > 0 {
		text += ", for " + e.Duration.String()
	}
	if e.Description != "" {
		text += ": " + e.Description
	}
	return text
}

func azureDuration(e azure.Event) string {
	if e.Duration < 0 {
		return "not known"
	}
	return e.Duration.String()
}

// AzureAnnounced reads which scheduled events are announced in the record of a
// drain: the ids of the notices, by those of the events.
func AzureAnnounced(files Files) (map[string]string, error) {
	r, err := load(files)
	if err != nil || r == nil {
		return nil, err
	}
	out := map[string]string{}
	for _, n := range r.Notices {
		if rest, ok := strings.CutPrefix(n.ID, providerAzure+"/"); ok && n.Source == azureEvents {
			_, event, _ := strings.Cut(rest, "/")
			out[event] = n.ID
		}
	}
	return out, nil
}

// azureAPI is what an AzureCompleter needs of metadata/azure.
type azureAPI interface {
	Start(ctx context.Context, eventID string) error
	Events(ctx context.Context) (azure.Document, error)
}

// AzureCompleter acknowledges scheduled events. It has no hooks to discover: each
// comes with its notice.
type AzureCompleter struct{ api azureAPI }

var _ Completer = (*AzureCompleter)(nil)

// NewAzureCompleter makes a completer. It asks nothing.
func NewAzureCompleter(api azureAPI) *AzureCompleter { return &AzureCompleter{api: api} }

// Discover implements Completer.
func (c *AzureCompleter) Discover(context.Context, bool) (*Hook, error) {
	return nil, nil //nolint:nilnil // no hook, and no error: none is found by asking
}

// Heartbeat implements Completer. Nothing prolongs an event.
func (c *AzureCompleter) Heartbeat(context.Context, Hook) error { return ErrNoAction }

// Complete implements Completer: the event may begin, for all machines that it
// names.
func (c *AzureCompleter) Complete(ctx context.Context, h Hook) error {
	if h.Provider != providerAzure || h.Token == "" {
		return fmt.Errorf("%w: it is no scheduled event of Azure's", ErrGone)
	}
	err := c.api.Start(ctx, h.Token)
	if e, ok := errors.AsType[*cloud.Error](err); !ok || e.Status != http.StatusBadRequest {
		return err
	}
	// Malformed or not known, says the documentation of this answer.
	doc, derr := c.api.Events(ctx)
	if derr != nil {
		return fmt.Errorf("%w; and whether the event is over is not known: %w", err, derr)
	}
	i := slices.IndexFunc(doc.Events, func(e azure.Event) bool { return strings.EqualFold(e.ID, h.Token) })
	switch {
	case i < 0:
		return fmt.Errorf("%w: the event is not scheduled any more", ErrGone)
	case doc.Events[i].Started():
		return fmt.Errorf("%w: the event has begun", ErrGone)
	}
	return err
}
