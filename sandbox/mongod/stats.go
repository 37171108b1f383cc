// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mongod

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// Stats counts what went through the proxy.
type Stats struct {
	Accepted int64            `json:"accepted"` // connections since the start
	Open     int64            `json:"open"`     // connections now
	Struck   int64            `json:"struck"`   // requests that met a fault
	Commands map[string]int64 `json:"commands"` // by command name, faulty ones included
}

// Command is one line of the record of requests.
type Command struct {
	Time       time.Time `json:"time"`
	Name       string    `json:"name"`
	DB         string    `json:"db,omitempty"`
	Collection string    `json:"collection,omitempty"`
}

// keep bounds the record: a demonstration may run for hours.
const keep = 8192

type recorder struct {
	mu    sync.Mutex
	stats Stats
	log   []Command // the last keep ones, oldest first
}

func (r *recorder) opened() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Accepted++
	r.stats.Open++
}

func (r *recorder) closed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Open--
}

func (r *recorder) received(req request, fault Mode) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if fault != None {
		r.stats.Struck++
	}
	if r.stats.Commands == nil {
		r.stats.Commands = map[string]int64{}
	}
	r.stats.Commands[req.command]++
	if len(r.log) == keep {
		r.log = append(r.log[:0], r.log[keep/2:]...)
	}
	r.log = append(r.log, Command{Time: time.Now(), Name: req.command, DB: req.db, Collection: req.collection})
}

func (r *recorder) snapshot() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Commands = maps.Clone(s.Commands)
	return s
}

func (r *recorder) commands() []Command {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.log)
}
