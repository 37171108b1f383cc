// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// Kind is the meaning of a notice.
type Kind = cloud.Kind

// The kinds.
const (
	Terminate = cloud.Terminate
	Interrupt = cloud.Interrupt
	Reboot    = cloud.Reboot
	Park      = cloud.Park
	Reimage   = cloud.Reimage
	Resume    = cloud.Resume
	Launch    = cloud.Launch
	// Ask is a drain by the operator or a program of the operator.
	Ask Kind = "request"
	// Shutdown means that the service manager stops the daemon because the machine shuts down.
	Shutdown Kind = "shutdown"
)

// Hook is a hook of the cloud that waits for this agent.
type Hook = cloud.Hook

// Notice announces that this machine leaves the cluster, temporarily or permanently, or serves again.
type Notice struct {
	// ID is derived from the cloud's facts, so that two sources give the same ID. It begins with the topic and a /.
	ID     string `json:"id"`
	Source string `json:"source"` // "aws-lifecycle", "aws-spot", "event", "drain"...
	Kind   Kind   `json:"kind"`   // also "request" (an operator's) and "shutdown"
	// Reason is for people, Who the person or program behind the notice, if known.
	Reason string `json:"reason,omitempty"`
	Who    string `json:"asked_by,omitempty"`
	// By is the source of the deadline if there are several.
	By       string    `json:"by,omitempty"`
	Received time.Time `json:"received"`
	// Deadline is when the machine ends in any case; zero if unknown.
	Deadline time.Time `json:"deadline,omitzero"`
	// Hook waits for this agent; nil if unknown.
	Hook *Hook `json:"hook,omitempty"`
}

// EventNotice returns the notice of a hook event.
func EventNotice(e cloud.Event, now time.Time) Notice {
	n, at := e.Notice(now)
	return Notice{ID: n.ID, Source: "event", Kind: n.Kind, Reason: n.Reason, Who: n.Who, Received: at, Deadline: n.At, Hook: n.Hook}
}

// notice is a notice as drain.json stores it.
type notice struct {
	Notice           // without its times and its hook
	Received instant `json:"received"`
	Deadline instant `json:"deadline,omitempty"`
	// Begun: the node drains for it, even if it is postponed by less than putOffTime.
	Begun bool `json:"begun,omitempty"`
	// Listed: the cloud reports it, and not only an event.
	Listed bool `json:"listed,omitempty"`
	Kept   bool `json:"kept,omitempty"` // from an earlier boot, and not reported since
	// Missing counts consecutive reports without this notice.
	Missing int `json:"missing,omitempty"`
}

// goneAfter is how many reports in a row must lack a withdrawn notice: one wrong answer must not return a node to service
// that ends in two minutes.
const goneAfter = 3

func (n notice) inForce() bool { return n.Missing < goneAfter }

func topicOf(id string) string {
	topic, _, _ := strings.Cut(id, "/")
	return topic
}

// Bounds of drain.json. Notices come from a metadata service and from any client of the control socket.
const (
	maxNotices    = 32
	maxHooks      = 32
	maxIDText     = 256
	maxNameText   = 1 << 10
	maxOthersText = 2 << 10
	maxOverruled  = 32
)

// boundedID keeps different ids different.
func boundedID(id string) string {
	if id = strings.ToValidUTF8(id, "?"); len(id) <= maxIDText {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return plain.Truncate(id, maxIDText/2) + hex.EncodeToString(sum[:16])
}

// bounded returns the notice without what another part of the state holds.
func (n Notice) bounded() Notice {
	return Notice{
		ID: boundedID(n.ID), Source: cloud.Printable(n.Source), Kind: n.Kind,
		Reason: cloud.Printable(n.Reason), Who: cloud.Printable(n.Who), By: cloud.Printable(n.By),
	}
}

// hookBounded checks names and does not truncate them: the shorter name may be another hook's.
func hookBounded(h Hook) bool {
	texts := append([]string{h.Provider, h.Group, h.Name, h.ID, h.Token}, h.Others...)
	return len(strings.Join(h.Others, "")) <= maxOthersText && !slices.ContainsFunc(texts, func(s string) bool {
		return len(s) > maxNameText || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl)
	})
}
