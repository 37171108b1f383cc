// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package mongod

import (
	"sync"
	"time"
)

// Stats counts what went through the proxy.
type Stats struct {
	Accepted int64            `json:"accepted"`  // connections since the start
	Open     int64            `json:"open"`      // connections now
	Requests int64            `json:"requests"`  // messages received
	Commands map[string]int64 `json:"commands"`  // by command name, faulty ones included
	Struck   int64            `json:"struck"`    // requests that met a fault
	BytesIn  int64            `json:"bytes_in"`  // received from clients
	BytesOut int64            `json:"bytes_out"` // sent to clients
}

// Command is one line of the record of requests.
type Command struct {
	Seq        int64     `json:"seq"`
	Time       time.Time `json:"time"`
	Conn       int64     `json:"conn"`
	Name       string    `json:"name"`
	DB         string    `json:"db,omitempty"`
	Collection string    `json:"collection,omitempty"`
	BytesIn    int       `json:"bytes_in"`
	BytesOut   int       `json:"bytes_out"` // 0: not answered
	OK         bool      `json:"ok"`
	Fault      Mode      `json:"fault,omitempty"`
}

// keep bounds the record: a demonstration may run for hours.
const keep = 8192

type recorder struct {
	mu    sync.Mutex
	stats Stats
	log   []Command // the last keep ones, oldest first
}

func (r *recorder) opened() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Accepted++
	r.stats.Open++
	return r.stats.Accepted
}

func (r *recorder) closed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Open--
}

func (r *recorder) received(conn int64, req request, n int, fault Mode) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Requests++
	r.stats.BytesIn += int64(n)
	if r.stats.Commands == nil {
		r.stats.Commands = map[string]int64{}
	}
	r.stats.Commands[req.command]++
	if fault == None {
		fault = ""
	} else {
		r.stats.Struck++
	}
	if len(r.log) == keep {
		r.log = append(r.log[:0], r.log[keep/2:]...)
	}
	r.log = append(r.log, Command{
		Seq: r.stats.Requests, Time: time.Now(), Conn: conn, Name: req.command,
		DB: req.db, Collection: req.collection, BytesIn: n, Fault: fault,
	})
	return r.stats.Requests
}

func (r *recorder) answered(seq int64, n int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.BytesOut += int64(n)
	if len(r.log) == 0 {
		return
	}
	if i := seq - r.log[0].Seq; i >= 0 && i < int64(len(r.log)) {
		r.log[i].BytesOut += n
		r.log[i].OK = ok
	}
}

func (r *recorder) snapshot() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Commands = make(map[string]int64, len(r.stats.Commands))
	for k, v := range r.stats.Commands {
		s.Commands[k] = v
	}
	return s
}

func (r *recorder) commands() []Command {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Command(nil), r.log...)
}
