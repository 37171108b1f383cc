// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/sandbox/fakecloud"
)

// words are the texts that differ from cloud to cloud. Lines are as wide as the screen.
type words struct {
	cloud string // fakecloud's name of it
	// title is the cloud with the emulated parts, short its name.
	title, short string
	// lead is how long it waits without a heartbeat, in this demo.
	lead time.Duration
	// shrink are the lines of the heading under which it terminates edge-1, begin is
	// how that begins, and noticed how the agent learns it.
	shrink  []string
	begin   string
	noticed string
	// reason is the beginning of the reason in the node's record.
	reason string
	// budget explains the time that the agent reports.
	budget string
	// waits is printed while the viewer is still there.
	waits string
	// beats: the agent asks it to wait longer.
	beats bool
	// answer is the cloud's log entry for the acknowledgement; empty if the cloud takes
	// none and sees only the end of the machine. outcome is printed in both cases.
	answer, outcome string
	// books is the line above the event log.
	books string
}

// wordsOf are those of a cloud.
func wordsOf(name string) (words, error) {
	if err := fakecloud.Check(name); err != nil {
		return words{}, err
	}
	all := []words{aws(), azure(), alibaba(), gcp()}
	return all[slices.IndexFunc(all, func(w words) bool { return w.cloud == name })], nil
}

// others are the other clouds of this demo.
func (w words) others() string {
	return strings.Join(slices.DeleteFunc(fakecloud.Names(), func(name string) bool { return name == w.cloud }), ", ")
}

func aws() words {
	return words{
		cloud: "aws", short: "AWS", reason: "scale-in",
		title: "AWS: instance metadata and Auto Scaling groups",
		// An hour is usual. Here it is short, so that the agent's heartbeats are seen.
		lead: 10 * time.Second,
		shrink: []string{
			"The scaling group shrinks: AWS terminates edge-1 while a viewer watches there. The group has a",
			"lifecycle hook: AWS switches the machine off only after the agent has completed the hook",
		},
		begin:   "AWS: edge-1 will be terminated; the hook begins to wait",
		noticed: "it asks AWS's metadata service every 2 s",
		budget:  "the longest time that AWS waits",
		waits:   "edge-1 keeps waiting, and so does AWS",
		beats:   true, answer: "is completed by edge-1: CONTINUE",
		outcome: "AWS: the hook is completed, the machine may be switched off",
		books:   "AWS's event log (here the hook expires 10 s after the last heartbeat; an hour is usual):",
	}
}

func azure() words {
	return words{
		cloud: "azure", short: "Azure", reason: "scale-in",
		title: "Azure: instance metadata and scale sets",
		lead:  time.Minute,
		shrink: []string{
			"The scale set shrinks: Azure deletes edge-1 while a viewer watches there. With termination",
			"notices on, Azure announces that and waits for an acknowledgement, for a time that is set on the",
			"scale set: 5 to 15 minutes (here it is one). The agent cannot extend it",
		},
		begin:   "Azure: a Scheduled Event announces that edge-1 will be deleted, in a minute at the latest",
		noticed: "it asks for Scheduled Events every second",
		budget:  "the rest of Azure's minute is for the steps after that",
		waits:   "edge-1 keeps waiting, and so does Azure",
		answer:  "is acknowledged by edge-1",
		outcome: "Azure: the event is acknowledged, so the machine may be deleted now",
		books:   "Azure's event log:",
	}
}

func alibaba() words {
	return words{
		cloud: "alibaba", short: "Alibaba Cloud", reason: "scale-in",
		title: "Alibaba Cloud: instance metadata and scaling groups (ESS)",
		lead:  30 * time.Second,
		shrink: []string{
			"The scaling group shrinks: Alibaba Cloud removes edge-1 while a viewer watches there. A hook of",
			"the group waits until the agent completes it. Instance metadata do not show that: the agent asks",
			"the API of the scaling groups (ESS), with the RAM role of the machine",
		},
		begin:   "ESS: edge-1 will be removed; the hook begins to wait",
		noticed: "it asks ESS about itself, about every ten seconds",
		budget:  "with heartbeats ESS waits for up to 6 hours",
		waits:   "edge-1 keeps waiting, and so does ESS",
		beats:   true, answer: "is completed by edge-1: CONTINUE",
		outcome: "ESS: the lifecycle action is completed, the machine may be released",
		books:   "The event log of ESS (here the hook expires after 30 s without a heartbeat; 10 minutes is usual):",
	}
}

func gcp() words {
	return words{
		cloud: "gcp", short: "Google Cloud", reason: "preemption of a Spot VM",
		title: "Google Cloud: instance metadata",
		lead:  30 * time.Second,
		shrink: []string{
			"Google Cloud preempts edge-1, a Spot VM, while a viewer watches there. There is no hook: 30 s",
			"after the notice the machine is off. The agent keeps the server running as long as that allows",
		},
		begin:   "Google Cloud: edge-1 is preempted; its metadata announce that",
		noticed: "a request to the metadata service was open (a long poll)",
		budget:  "the rest of the 30 s is for the steps after that",
		waits:   "edge-1 keeps waiting, for at most half of its 30 s",
		outcome: "Google Cloud takes no acknowledgement; edge-1 switches itself off",
		books:   "Google Cloud's event log:",
	}
}
