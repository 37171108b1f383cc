// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"
	"unicode"

	"github.com/amsagent/amsagent/internal/plain"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// Kind is the meaning of a notice for this machine: a kind of the cloud, or one of these.
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
	// Ask: the operator, or a program of the operator, drains this node.
	Ask Kind = "ask"
	// Shutdown: the service manager stops the daemon because the machine shuts down.
	Shutdown Kind = "shutdown"
)

// Hook is a hook of the cloud that waits for a completion by this agent.
type Hook = cloud.Hook

// Notice announces that this machine leaves the cluster, temporarily or permanently, or that it serves again.
type Notice struct {
	// ID is derived from the cloud's facts, so that a notice from two sources has one ID. It begins with its topic and a /.
	ID     string `json:"id"`
	Source string `json:"source"` // "aws-lifecycle", "aws-spot", "event", "drain"...
	Kind   Kind   `json:"kind"`
	// Reason is a text for people, Who the person or program that caused the notice, if known.
	Reason string `json:"reason,omitempty"`
	Who    string `json:"who,omitempty"`
	// By is the source of the deadline if there are several.
	By       string    `json:"by,omitempty"`
	Received time.Time `json:"received"`
	// Deadline is when the machine ends, whatever the agent does; zero if unknown.
	Deadline time.Time `json:"deadline,omitzero"`
	// Hook waits for a completion by this agent; nil if no such hook is known.
	Hook *Hook `json:"hook,omitempty"`
}

// EventNotice returns the notice of a hook event.
func EventNotice(e cloud.Event, now time.Time) Notice {
	n, at := e.Notice(now)
	return Notice{ID: n.ID, Source: "event", Kind: n.Kind, Reason: n.Reason, Who: n.Who, Received: at, Deadline: n.At, Hook: n.Hook}
}

// notice is a notice in force, as drain.json keeps it.
type notice struct {
	ID       string  `json:"id"`
	Source   string  `json:"source"`
	Kind     Kind    `json:"kind"`
	Reason   string  `json:"reason,omitempty"`
	Who      string  `json:"who,omitempty"`
	By       string  `json:"by,omitempty"`
	Received instant `json:"received"`
	Deadline instant `json:"deadline,omitempty"`
	// Begun: the node drains for it. A drain that has begun continues if its notice is postponed by less than putOffTime.
	Begun bool `json:"begun,omitempty"`
	// Missing counts the consecutive reports without this notice.
	Missing int `json:"missing,omitempty"`
}

// goneAfter is the number of consecutive reports without a notice after which it counts as withdrawn: one wrong answer must not
// return a node to service that ends in two minutes.
const goneAfter = 3

func (n notice) inForce() bool { return n.Missing < goneAfter }

// topicOf returns the topic that reports the notice.
func topicOf(id string) string {
	topic, _, _ := strings.Cut(id, "/")
	return topic
}

// Bounds of what drain.json may hold. Notices come from a metadata service, and from any program that may call the control
// socket.
const (
	maxNotices    = 32
	maxHooks      = 32
	maxIDText     = 256
	maxWordText   = 512 // bytes of a reason, or of a name of a person, program or source
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

func boundedWord(s string) string {
	return plain.Truncate(oneLine(plain.Truncate(s, maxWordText)), maxWordText)
}

func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// hookBounded reports whether the names of a hook are within the bounds. They are not truncated: another hook may have the
// shorter name.
func hookBounded(h Hook) bool {
	others := 0
	for _, o := range h.Others {
		others += len(o)
	}
	for _, s := range append([]string{h.Provider, h.Group, h.Name, h.ID, h.Token}, h.Others...) {
		if len(s) > maxNameText || s != oneLine(s) {
			return false
		}
	}
	return others <= maxOthersText
}
