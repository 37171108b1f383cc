// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/metadata/cloud"
)

// goneAfter is how often in a row a notice has to be missing before it is believed to be withdrawn: an answer that is wrong
// once must not put a node back into service that goes in two minutes.
const goneAfter = 3

// report takes what the cloud has in force for a topic.
func (m *Manager) report(topic string, current []cloud.Notice) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	var listed []string
	for _, c := range current {
		listed = append(listed, boundedID(c.ID))
		m.reported(topic, c, now)
	}
	group := strings.HasSuffix(topic, cloud.GroupTopic(""))
	if group && slices.ContainsFunc(current, func(c cloud.Notice) bool { return c.Kind == cloud.Unknown }) {
		return // what was announced before may be meant still
	}
	if group && len(current) == 0 {
		m.inService = now
	}
	for _, id := range m.inForce(topic) {
		if slices.Contains(listed, id) {
			delete(m.missing, id)
			continue
		}
		if m.missing[id]++; m.missing[id] != goneAfter {
			continue
		}
		n := Notice{ID: id, Source: topic, Kind: Withdrawn, Reason: "it is no longer announced", Received: now}
		if group {
			n.Reason = "in service again"
		}
		m.takeOrLog(n)
	}
	if group && len(current) == 0 && !m.launched {
		// A launch hook may wait for this machine, and nothing announces that.
		m.launched = true
		m.takeOrLog(Notice{ID: topic + "/launch", Source: topic, Kind: Launch, Reason: "launch", Received: now})
	}
}

// reported takes one notice that is in force.
func (m *Manager) reported(topic string, c cloud.Notice, now time.Time) {
	i := slices.IndexFunc(m.r.Notices, func(n Notice) bool { return n.ID == boundedID(c.ID) })
	switch {
	case c.Kind == cloud.Unknown:
		if _, told := m.missing[c.ID]; !told {
			remember(m.missing, c.ID, 0)
			m.log.Warn("unknown cloud signal ignored", "topic", topic, "signal", c.Reason)
		}
		return
	case c.Past && i < 0:
		return
	}
	n := Notice{ID: c.ID, Source: topic, Kind: c.Kind, Reason: c.Reason, Who: c.Who, Received: now, Deadline: c.At, Hook: c.Hook}
	if i >= 0 {
		n.Moved = !c.At.IsZero() && !m.r.Notices[i].Deadline.IsZero()
	}
	m.takeOrLog(n)
}

// inForce are the ids of the notices of a topic that are known, those among them that a person overruled.
func (m *Manager) inForce(topic string) []string {
	ids := slices.Concat(m.r.Dismissed, m.r.Rejoined)
	for _, n := range m.r.Notices {
		ids = append(ids, n.ID)
	}
	ids = slices.DeleteFunc(ids, func(id string) bool { return !strings.HasPrefix(id, topic+"/") })
	slices.Sort(ids)
	return slices.Compact(ids)
}

// takeOrLog takes a notice. The lock is held.
func (m *Manager) takeOrLog(n Notice) {
	if err := m.take(n); err != nil {
		m.log.Info("notice ignored", "id", n.ID, "kind", string(n.Kind), "reason", err.Error())
	}
}
