// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/amsagent/amsagent/internal/fakes/fakemongo"
	"github.com/amsagent/amsagent/internal/must"
)

func findReply(docs ...any) bson.D {
	return fakemongo.OK(bson.E{Key: "cursor", Value: bson.D{
		{Key: "id", Value: int64(0)}, {Key: "ns", Value: "d.c"}, {Key: "firstBatch", Value: append(bson.A{}, docs...)},
	}})
}

// Every read has a batch size, and one of AMS's collections a projection.
func TestFindIsBounded(t *testing.T) {
	t.Parallel()
	s := fakemongo.Start(t, nil)
	s.Answer = func(string, bson.Raw) (bson.D, error) { return findReply(), nil }
	c := connect(t, "mongodb://"+s.Addr()+"/", Options{Timeout: 3 * time.Second})
	for name, read := range map[string]func() error{
		"nodes":       func() error { _, err := c.Nodes(t.Context()); return err },
		"clusternode": func() error { _, err := c.AMSNodes(t.Context()); return err },
		"events":      func() error { _, err := c.Events(t.Context(), EventQuery{Limit: 3}); return err },
		"broadcast": func() error {
			_, err := c.LocalStreams(t.Context(), []string{"liveapp"}, "10.0.0.1", time.Now())
			return err
		},
	} {
		before := len(s.Sent("find"))
		if err := read(); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		sent := s.Sent("find")[before:]
		if len(sent) != 1 {
			t.Fatalf("%s: %d finds", name, len(sent))
		}
		if n, _ := field(sent[0], "batchSize").AsInt64OK(); n != findBatch {
			t.Errorf("%s: %d documents in one answer", name, n)
		}
		if fields, ok := field(sent[0], "projection").DocumentOK(); name != "nodes" && name != "events" && (!ok || len(fields) < 10) {
			t.Errorf("%s: projection %v", name, fields)
		}
	}
}

func TestTextsAreBounded(t *testing.T) {
	t.Parallel()
	huge := strings.Repeat("ä", 1<<20)
	a := readAMSNode(raw(t, bson.D{{Key: "_id", Value: huge}, {Key: "memory", Value: huge}, {Key: "lastUpdateTime", Value: huge}}))
	if len(a.ID) > maxText || len(a.Memory) > maxText {
		t.Errorf("%d bytes of id, %d of memory", len(a.ID), len(a.Memory))
	}
	// Short texts are not changed; long ones are cut between characters.
	for s, want := range map[string]string{
		"": "", "edge": "edge", strings.Repeat("x", 256): strings.Repeat("x", 256),
		strings.Repeat("x", 257): strings.Repeat("x", 253) + "…", "x" + strings.Repeat("ä", 128): "x" + strings.Repeat("ä", 126) + "…",
	} {
		if got := textField(raw(t, bson.D{{Key: "k", Value: s}}), "k"); got != want {
			t.Errorf("%d bytes became %d: %q", len(s), len(got), got[max(0, len(got)-9):])
		}
	}
}

// A refusal repeats the whole command, with session and signed cluster time, which must not be logged.
func TestRefusalWithoutItsCommand(t *testing.T) {
	t.Parallel()
	s := fakemongo.Start(t, nil)
	s.Answer = func(string, bson.Raw) (bson.D, error) {
		return fakemongo.Failure(13, "Unauthorized", `not authorized on liveapp to execute command { find: "broadcast", filter: {}, lsid: { id: UUID("0000") }, `+
			`$clusterTime: { clusterTime: Timestamp(1, 1), signature: { hash: BinData(0, 00), keyId: 7 } }, $db: "liveapp" }`), nil
	}
	c := connect(t, "mongodb://"+s.Addr()+"/", Options{Timeout: 3 * time.Second})
	err := c.CheckRead(t.Context(), []string{"liveapp"})
	must.Equal(t, fmt.Sprintf("kind of %v", err), KindOf(err), KindForbidden)
	for _, no := range []string{"lsid", "clusterTime", "filter", "{"} {
		if strings.Contains(err.Error(), no) {
			t.Errorf("the message has %s: %v", no, err)
		}
	}
	if !strings.HasSuffix(err.Error(), "not authorized on liveapp to execute command find") {
		t.Errorf("%v", err)
	}
	if long := message(strings.Repeat("ä", 5000)); len(long) > maxMessage+3 || !utf8.ValidString(long) {
		t.Errorf("a message of %d bytes", len(long))
	}
}

// A server that is not MongoDB, or a collection with a long validator, may send long errors.
func TestErrorsAreBounded(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ä", 1<<20)
	target, err := ParseTarget("mongodb://u:hunter22@10.0.0.1/")
	must.OK(t, err)
	for name, err := range map[string]error{
		"an error":                mongo.CommandError{Code: 1, Name: "Name", Message: long},
		"one without a code":      mongo.CommandError{Message: long},
		"a long name":             mongo.CommandError{Code: 1, Name: long, Message: "message"},
		"a write":                 mongo.WriteException{WriteErrors: mongo.WriteErrors{{Code: 121, Message: long}}},
		"a write with details":    mongo.WriteException{WriteErrors: mongo.WriteErrors{{Code: 121, Message: "Document failed validation", Details: details(long)}}},
		"a write's acknowledging": mongo.WriteException{WriteConcernError: &mongo.WriteConcernError{Code: 64, Message: long}},
		"something else":          errors.New(long),
	} {
		e := newError("writing", fmt.Errorf("wrapped: %w", err), target, nil)
		if text := e.Error(); len(text) > maxMessage+300 || !utf8.ValidString(text) {
			t.Errorf("%s: %d bytes", name, len(text))
		} else if name == "a write with details" && !strings.Contains(text, "write error 121: Document failed validation") {
			t.Errorf("%s: %.100s", name, text)
		}
	}
}

func details(text string) bson.Raw {
	b, err := bson.Marshal(bson.D{{Key: "reason", Value: text}})
	if err != nil {
		panic(err)
	}
	return b
}

// A read of a collection that another program fills ends with an error, and returns no documents.
func TestTooMany(t *testing.T) {
	t.Parallel()
	batch := bson.A{}
	for range findBatch {
		batch = append(batch, bson.D{{Key: "_id", Value: "x"}})
	}
	s := fakemongo.Start(t, nil)
	limit := int64(0)
	s.Answer = func(name string, cmd bson.Raw) (bson.D, error) {
		key := map[string]string{"find": "firstBatch", "getMore": "nextBatch"}[name]
		if key == "" {
			return fakemongo.OK(), nil
		}
		if name == "find" {
			limit = cmd.Lookup("limit").AsInt64()
		}
		docs, id := batch[:min(limit, findBatch)], int64(7)
		if limit -= findBatch; limit <= 0 {
			id = 0
		}
		return fakemongo.OK(bson.E{Key: "cursor", Value: bson.D{{Key: "id", Value: id}, {Key: "ns", Value: "clusterdb.clusternode"}, {Key: key, Value: docs}}}), nil
	}
	c := connect(t, "mongodb://"+s.Addr()+"/", Options{Timeout: time.Minute})
	got, err := c.AMSNodes(t.Context())
	if !errors.Is(err, ErrTooMany) || len(got) > 0 || !strings.Contains(err.Error(), "clusterdb.clusternode") {
		t.Errorf("%d documents, %v", len(got), err)
	}
	if asked, more := len(s.Sent("find")), len(s.Sent("getMore")); asked != 1 || more > maxFound/findBatch {
		t.Errorf("find was asked %d times, more %d times", asked, more)
	}
}
