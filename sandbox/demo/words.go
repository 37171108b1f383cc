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
	// reason is what our row says of it.
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
	all := []words{aws()}
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
