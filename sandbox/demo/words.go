// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"slices"
	"strings"
	"time"

	"github.com/amsagent/amsagent/sandbox/fakecloud"
)

// words are what a story needs that is another one on each cloud. Lines are as wide
// as the screen.
type words struct {
	cloud string // fakecloud's name of it
	// title is the cloud with what is pretended of it, short what it is called.
	title, short string
	// lead is how long it waits without a word, in this story.
	lead time.Duration
	// shrink are the lines of the heading under which it takes edge-1 away, begin is
	// how that begins, and noticed how the agent comes to know.
	shrink  []string
	begin   string
	noticed string
	// reason is how what our row says of it begins.
	reason string
	// budget explains what the agent says of its time.
	budget string
	// waits is said while a viewer is still there.
	waits string
	// beats: the agent asks it to wait longer.
	beats bool
	// answer is what the cloud notes when it is told that the machine may go; empty
	// where nobody can tell it, and the machine's own end is all that it sees. told is
	// said of either.
	answer, told string
	// books is the line above what it noted.
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

// others are the clouds that this story can be told on, too.
func (w words) others() string {
	return strings.Join(slices.DeleteFunc(fakecloud.Names(), func(name string) bool { return name == w.cloud }), ", ")
}

func aws() words {
	return words{
		cloud: "aws", short: "AWS", reason: "scale-in",
		title: "AWS: what it tells a machine, and its Auto Scaling groups",
		// An hour is usual. Here it is short, so that the agent's word is seen.
		lead: 10 * time.Second,
		shrink: []string{
			"The scaling group shrinks: AWS wants edge-1 back while somebody watches there. The group has a",
			"lifecycle hook, so AWS waits with switching the machine off until it hears from the agent",
		},
		begin:   "AWS: edge-1 is to be terminated; the hook begins to wait",
		noticed: "it asks AWS's metadata service every 2 s",
		budget:  "so long AWS waits at most",
		waits:   "edge-1 goes on waiting, and so does AWS",
		beats:   true, answer: "is completed by edge-1: CONTINUE",
		told:  "AWS: the hook is completed, the machine may be switched off",
		books: "All of it as AWS noted it (its hook waits 10 s from word to word here; an hour is usual):",
	}
}

func azure() words {
	return words{
		cloud: "azure", short: "Azure", reason: "scale-in",
		title: "Azure: what it tells a machine, and its scale sets",
		lead:  time.Minute,
		shrink: []string{
			"The scale set shrinks: Azure wants edge-1 back while somebody watches there. With termination",
			"notices on, Azure tells of it beforehand and waits for an answer. How long at most is set on the",
			"scale set, 5 to 15 minutes (here it is one), and nothing the agent says makes it longer",
		},
		begin:   "Azure: a Scheduled Event says that edge-1 is to be deleted, in a minute at the latest",
		noticed: "it asks for Scheduled Events every second",
		budget:  "some of Azure's minute is kept for what comes after that",
		waits:   "edge-1 goes on waiting, and so does Azure",
		answer:  "is acknowledged by edge-1",
		told:    "Azure: the event is acknowledged, so the machine may go before its time",
		books:   "All of it as Azure noted it:",
	}
}

func alibaba() words {
	return words{
		cloud: "alibaba", short: "Alibaba Cloud", reason: "scale-in",
		title: "Alibaba Cloud: what it tells a machine, and its scaling groups (ESS)",
		lead:  30 * time.Second,
		shrink: []string{
			"The scaling group shrinks: Alibaba Cloud wants edge-1 back while somebody watches there. A hook",
			"of the group makes it wait until it hears from the agent. A machine's metadata tell nothing of",
			"that: the agent asks the API of the scaling groups (ESS), as the machine's RAM role lets it",
		},
		begin:   "ESS: edge-1 is to be removed; the hook begins to wait",
		noticed: "it asks ESS about itself, every ten seconds or so",
		budget:  "ESS would wait for 6 hours, asked to again and again",
		waits:   "edge-1 goes on waiting, and so does ESS",
		beats:   true, answer: "is completed by edge-1: CONTINUE",
		told:  "ESS: the lifecycle action is completed, the machine may be released",
		books: "All of it as ESS noted it (its hook waits 30 s for a first word here; 10 minutes is usual):",
	}
}

func gcp() words {
	return words{
		cloud: "gcp", short: "Google Cloud", reason: "preemption of a Spot VM",
		title: "Google Cloud: what it tells a machine",
		lead:  30 * time.Second,
		shrink: []string{
			"Google Cloud wants edge-1, a Spot VM, back while somebody watches there. It has no hook and waits",
			"for nobody: 30 s after its only word the machine is off. The agent serves as long as that allows",
		},
		begin:   "Google Cloud: edge-1 is preempted: its metadata say so",
		noticed: "its question to the metadata service stood open (a long poll)",
		budget:  "the rest of the 30 s is for what comes after that",
		waits:   "edge-1 goes on waiting, for half of its 30 s at most",
		told:    "nobody takes a word for it, so edge-1 switches itself off: Google Cloud sees that",
		books:   "All of it as Google Cloud noted it:",
	}
}
