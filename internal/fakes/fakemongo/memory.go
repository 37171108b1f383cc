// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakemongo

import (
	"bytes"
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// Memory keeps documents and does to them what the agent and its tests ask of MongoDB.
type Memory struct {
	*Server

	mu    sync.Mutex
	docs  map[string][]bson.M // by database and collection
	fault func(command, collection string) Fate
	last  bson.DateTime // of a write: two have two times
}

// Fate is what becomes of a command.
type Fate int

// The fates.
const (
	Done      Fate = iota
	Fails          // with an error, undone
	Forbidden      // as for a user without the right
	Cut            // undone, and the connection ends
	Lost           // done, and the connection ends without an answer
)

// NewMemory returns a MongoDB in memory, with the machine's clock. It takes no time: while the driver closes a client, it spins
// until the calls under way have ended, and a bubble's time does not pass.
func NewMemory() *Memory {
	m := &Memory{Server: New(), docs: map[string][]bson.M{}}
	m.Server.Now, m.Server.Answer = time.Now, m.answer
	return m
}

// SetFault decides about each command on a collection such as amsagent.nodes, and may wait first; nil does all.
func (m *Memory) SetFault(fault func(command, collection string) Fate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = fault
}

// Get returns a document of a collection, or nil.
func (m *Memory) Get(coll, id string) (doc map[string]any) {
	m.Edit(coll, id, func(found map[string]any) { doc = encoded(found) })
	return doc
}

// Edit changes a document, if it is there.
func (m *Memory) Edit(coll, id string, edit func(doc map[string]any)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, doc := range m.docs[coll] {
		if doc["_id"] == id {
			changed := maps.Clone(doc)
			edit(changed)
			m.docs[coll][i] = encoded(changed)
		}
	}
}

// Put writes a document, such as a map or a cluster.Node, in the place of one with the same id.
func (m *Memory) Put(coll string, doc any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	is := encoded(doc)
	same := func(was bson.M) bool { return was["_id"] == is["_id"] }
	m.docs[coll] = append(slices.DeleteFunc(m.docs[coll], same), is)
}

// Listen gives the MongoDB in memory a port, and returns its address.
func (m *Memory) Listen(t testing.TB) (address string) {
	t.Helper()
	s := Start(t, nil)
	s.Now, s.Answer = m.Now, m.answer
	return s.Addr()
}

// encoded is a document as a client sends it.
func encoded(doc any) bson.M {
	raw, err := bson.Marshal(doc)
	if err != nil {
		panic(err)
	}
	is, err := document(raw)
	if err != nil {
		panic(err)
	}
	return is
}

// Remove removes a document.
func (m *Memory) Remove(coll, id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.docs[coll] = slices.DeleteFunc(m.docs[coll], func(doc bson.M) bool { return doc["_id"] == id })
}

func (m *Memory) answer(name string, cmd bson.Raw) (bson.D, error) {
	c, err := document(cmd)
	if err != nil {
		return nil, err
	}
	coll, _ := c[name].(string)
	coll = c["$db"].(string) + "." + coll
	m.mu.Lock()
	fault, fate := m.fault, Done
	m.mu.Unlock()
	if fault != nil {
		fate = fault(name, coll)
	}
	switch fate {
	case Fails:
		return Failure(8, "UnknownError", "a fault of the test"), nil
	case Forbidden:
		return Failure(13, "Unauthorized", "not authorized"), nil
	case Cut:
		return nil, nil
	}
	reply, err := m.do(name, coll, c)
	if fate == Lost {
		return nil, nil
	}
	return reply, err
}

func (m *Memory) do(name, coll string, c bson.M) (bson.D, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	filter, _ := c["filter"].(bson.M)
	switch name {
	case "find":
		return cursor(coll, m.found(coll, filter, c)), nil
	case "aggregate": // CountDocuments
		filter, _ = c["pipeline"].(bson.A)[0].(bson.M)["$match"].(bson.M)
		if n := len(m.found(coll, filter, c)); n > 0 {
			return cursor(coll, []bson.M{{"_id": 1, "n": n}}), nil
		}
		return cursor(coll, nil), nil
	case "findAndModify":
		upsert, _ := c["upsert"].(bool)
		changed, _, failed := m.change(coll, c["query"].(bson.M), c["update"].(bson.M), upsert, false)
		if failed != nil || len(changed) == 0 {
			return append(OK(bson.E{Key: "value", Value: nil}), failed...), nil
		}
		doc, err := bson.Marshal(changed[0])
		return OK(bson.E{Key: "value", Value: bson.Raw(doc)}), err
	case "insert":
		for _, doc := range c["documents"].(bson.A) {
			m.docs[coll] = append(m.docs[coll], doc.(bson.M))
		}
		return OK(bson.E{Key: "n", Value: len(c["documents"].(bson.A))}), nil
	case "update":
		return m.update(coll, c["updates"].(bson.A))
	case "delete":
		n := 0
		for _, each := range c["deletes"].(bson.A) {
			limit := each.(bson.M)["limit"]
			m.docs[coll] = slices.DeleteFunc(m.docs[coll], func(doc bson.M) bool {
				gone := (n == 0 || compare(limit, int32(0)) == 0) && matches(doc, each.(bson.M)["q"].(bson.M))
				if gone {
					n++
				}
				return gone
			})
		}
		return OK(bson.E{Key: "n", Value: n}), nil
	case "ping", "createIndexes", "endSessions":
	default:
		return Failure(59, "CommandNotFound", "no such command: "+name), nil
	}
	return OK(), nil
}

func (m *Memory) update(coll string, updates bson.A) (bson.D, error) {
	n, upserted := 0, bson.A{}
	for i, each := range updates {
		u := each.(bson.M)
		upsert, _ := u["upsert"].(bool)
		multi, _ := u["multi"].(bool)
		changed, inserted, failed := m.change(coll, u["q"].(bson.M), u["u"].(bson.M), upsert, multi)
		if failed != nil {
			return failed, nil
		}
		if n += len(changed); inserted {
			upserted = append(upserted, bson.M{"index": i, "_id": changed[0]["_id"]})
		}
	}
	reply := OK(bson.E{Key: "n", Value: n}, bson.E{Key: "nModified", Value: n - len(upserted)})
	if len(upserted) > 0 {
		reply = append(reply, bson.E{Key: "upserted", Value: upserted})
	}
	return reply, nil
}

// found returns copies of the documents that match.
func (m *Memory) found(coll string, filter bson.M, c bson.M) []bson.M {
	var found []bson.M
	for _, doc := range m.docs[coll] {
		if matches(doc, filter) {
			found = append(found, doc)
		}
	}
	order, _ := c["sort"].(bson.M)
	slices.SortStableFunc(found, func(a, b bson.M) int {
		if order["at"] != nil { // the latest event first
			return cmp.Or(compare(b["at"], a["at"]), compare(b["_id"], a["_id"]))
		}
		if order["_id"] != nil {
			return compare(a["_id"], b["_id"])
		}
		return 0
	})
	if limit, ok := number(c["limit"]); ok && limit > 0 {
		found = found[:min(len(found), int(limit))]
	}
	return found
}

// change updates the first document that matches, or all; or it inserts one.
func (m *Memory) change(coll string, filter, update bson.M, upsert, multi bool) (changed []bson.M, inserted bool, failed bson.D) {
	for _, doc := range m.docs[coll] {
		if matches(doc, filter) && (multi || len(changed) == 0) {
			m.apply(doc, update)
			changed = append(changed, doc)
		}
	}
	if len(changed) > 0 || !upsert {
		return changed, false, nil
	}
	doc := bson.M{}
	for key, value := range filter {
		if operators, ok := value.(bson.M); ok {
			value = operators["$eq"]
		}
		if value != nil {
			doc[key] = value
		}
	}
	if slices.ContainsFunc(m.docs[coll], func(other bson.M) bool { return compare(other["_id"], doc["_id"]) == 0 }) {
		return nil, false, Failure(11000, "DuplicateKey", "E11000 duplicate key error")
	}
	m.apply(doc, update)
	m.docs[coll] = append(m.docs[coll], doc)
	return []bson.M{doc}, true, nil
}

func (m *Memory) apply(doc, update bson.M) {
	m.last = max(m.last+1, bson.NewDateTimeFromTime(m.Now()))
	for operator, fields := range update {
		for path, value := range fields.(bson.M) {
			parts := strings.Split(path, ".")
			in := doc
			for _, part := range parts[:len(parts)-1] {
				next, ok := in[part].(bson.M)
				if !ok {
					next = bson.M{}
					in[part] = next
				}
				in = next
			}
			last := parts[len(parts)-1]
			switch operator {
			case "$set":
				in[last] = value
			case "$unset":
				delete(in, last)
			case "$currentDate":
				in[last] = m.last
			}
		}
	}
}

func matches(doc, filter bson.M) bool {
	for key, want := range filter {
		switch operators, _ := want.(bson.M); {
		case key == "$or" || key == "$nor":
			one := slices.ContainsFunc(want.(bson.A), func(f any) bool { return matches(doc, f.(bson.M)) })
			if one != (key == "$or") {
				return false
			}
		case len(operators) == 0:
			operators = bson.M{"$eq": want}
			fallthrough
		default:
			value, there := lookup(doc, key)
			for operator, want := range operators {
				if !holds(operator, value, there, want) {
					return false
				}
			}
		}
	}
	return true
}

// holds: null matches a missing value, and values of other types do not compare.
func holds(operator string, value any, there bool, want any) bool {
	order := compare(value, want)
	switch operator {
	case "$eq":
		return order == 0
	case "$ne":
		return order != 0
	case "$in", "$nin":
		is := slices.ContainsFunc(want.(bson.A), func(w any) bool { return compare(value, w) == 0 })
		return is == (operator == "$in")
	case "$exists":
		return there == want
	case "$lte":
		return order == 0 || order == -1
	case "$gte":
		return order == 0 || order == 1
	}
	panic("no operator " + operator)
}

func lookup(doc bson.M, path string) (value any, there bool) {
	for part := range strings.SplitSeq(path, ".") {
		if value, there = doc[part]; !there {
			return nil, false
		}
		doc, _ = value.(bson.M)
	}
	return value, true
}

// compare returns 2 for values that have no order.
func compare(a, b any) int {
	if x, ok := number(a); ok {
		if y, ok := number(b); ok {
			return cmp.Compare(x, y)
		}
		return 2
	}
	switch x := a.(type) {
	case string:
		if y, ok := b.(string); ok {
			return strings.Compare(x, y)
		}
	case bson.DateTime:
		if y, ok := b.(bson.DateTime); ok {
			return cmp.Compare(x, y)
		}
	default:
		if reflect.DeepEqual(a, b) {
			return 0
		}
	}
	return 2
}

func number(v any) (float64, bool) {
	switch n := v.(type) {
	case int32:
		return float64(n), true
	case int64:
		return float64(n), true
	case float64:
		return n, true
	}
	return 0, false
}

func document(raw bson.Raw) (doc bson.M, err error) {
	d := bson.NewDecoder(bson.NewDocumentReader(bytes.NewReader(raw)))
	d.DefaultDocumentM()
	return doc, d.Decode(&doc)
}

func cursor(coll string, docs []bson.M) bson.D {
	batch := bson.A{}
	for _, doc := range docs {
		raw, err := bson.Marshal(doc) // here, where the documents do not change
		if err != nil {
			panic(err)
		}
		batch = append(batch, bson.Raw(raw))
	}
	return OK(bson.E{Key: "cursor", Value: bson.M{"id": int64(0), "ns": coll, "firstBatch": batch}})
}
