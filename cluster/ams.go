// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"errors"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/amsagent/amsagent/internal/plain"
)

const (
	amsDatabase   = "clusterdb"
	amsCollection = "clusternode"

	broadcastCollection = "broadcast"

	// amsFresh is AMS's own limit for nodes (four missed periods of 5 s) and streams.
	amsFresh = 20 * time.Second
)

// AMSNode is AMS's own document in clusterdb.clusternode.
type AMSNode struct {
	ID string `json:"id"`
	// IP is the address for calls of other nodes.
	IP string `json:"ip"`
	// LastUpdate is by its machine's clock; zero if missing.
	LastUpdate time.Time `json:"last_update,omitzero"`
	Memory     string    `json:"memory,omitempty"` // as in "586/1945"
	CPU        *float64  `json:"cpu,omitempty"`    // percent; nil if unknown
}

var amsFields = bson.D{{Key: "ip", Value: 1}, {Key: "lastUpdateTime", Value: 1}, {Key: "memory", Value: 1}, {Key: "cpu", Value: 1}}

func readAMSNode(doc bson.Raw) AMSNode {
	return AMSNode{
		ID:         idText(field(doc, "_id")),
		IP:         textField(doc, "ip"),
		LastUpdate: timeField(doc, "lastUpdateTime"),
		Memory:     textField(doc, "memory"),
		CPU:        numberField(doc, "cpu"),
	}
}

// Fresh reports whether AMS treats this node as alive, also with a future time.
func (n AMSNode) Fresh(now time.Time) bool {
	return !n.LastUpdate.IsZero() && now.Sub(n.LastUpdate) <= amsFresh
}

// AMSNodes reads all AMS documents, ordered by address and id.
func (c *Client) AMSNodes(ctx context.Context) ([]AMSNode, error) {
	return c.readAMSNodes(ctx, "reading AMS's cluster nodes", bson.D{})
}

// AMSNodesByAddress includes documents of earlier processes.
func (c *Client) AMSNodesByAddress(ctx context.Context, address string) ([]AMSNode, error) {
	return c.readAMSNodes(ctx, "reading AMS's cluster nodes of "+address, addressFilter("ip", address))
}

func (c *Client) readAMSNodes(ctx context.Context, op string, filter bson.D) ([]AMSNode, error) {
	nodes, err := find(ctx, c, op, c.amsNodes(), filter, readAMSNode, options.Find().SetProjection(amsFields))
	slices.SortStableFunc(nodes, func(a, b AMSNode) int {
		return cmp.Or(compareText(a.IP, b.IP), compareText(a.ID, b.ID))
	})
	return nodes, err
}

func newestFirst(a, b AMSNode) int { return b.LastUpdate.Compare(a.LastUpdate) }

func compareText(a, b string) int {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	if errX == nil && errY == nil {
		return x.Compare(y)
	}
	return strings.Compare(a, b)
}

// SameAddress compares two spellings: AMS writes a detected IPv6 address in full, as Java does.
func SameAddress(a, b string) bool { return a == b || oneSpelling(a) == oneSpelling(b) }

func oneSpelling(address string) string {
	if addr, err := netip.ParseAddr(address); err == nil {
		return addr.Unmap().WithZone("").String()
	}
	return address
}

// leadingZeros of a group: Java's getHostAddress writes neither them nor ::.
var leadingZeros = regexp.MustCompile(`\b0{1,3}`)

func addressFilter(key, address string) bson.D {
	forms := []string{address}
	if addr, err := netip.ParseAddr(address); err == nil {
		addr = addr.Unmap()
		forms = append(forms, addr.String())
		if addr.Is6() {
			forms = append(forms, leadingZeros.ReplaceAllString(addr.StringExpanded(), ""))
		}
	}
	slices.Sort(forms)
	return bson.D{{Key: key, Value: bson.D{{Key: "$in", Value: slices.Compact(forms)}}}}
}

// DeleteAMSNodes deletes AMS documents of an address, or only that with the id, last written before a time by their
// machine's clock. It returns those deleted, and those that another AMS writes or without a readable time (AMS writes an
// integer). AMS must have stopped: it writes every 5 s.
func (c *Client) DeleteAMSNodes(ctx context.Context, address, id string, before time.Time) (gone, stay []AMSNode, err error) {
	if address == "" || before.IsZero() {
		return nil, nil, errors.New("removing AMS's node documents: no address or no time is given")
	}
	were, err := c.AMSNodesByAddress(ctx, address)
	if err != nil {
		return nil, nil, err
	}
	isOld := func(n AMSNode) bool {
		return (id == "" || n.ID == id) && !n.LastUpdate.IsZero() && !n.LastUpdate.After(before)
	}
	if !slices.ContainsFunc(were, isOld) {
		return nil, were, nil
	}
	filter := append(addressFilter("ip", address), written("$or", "lastUpdateTime", "$lte", before))
	if id != "" {
		filter = append(filter, bson.E{Key: "_id", Value: id})
	}
	failed := c.deleteMany(ctx, "removing AMS's node documents of "+address, c.amsNodes(), filter)
	// The answer may be lost: what is left decides.
	if stay, err = c.AMSNodesByAddress(ctx, address); err != nil {
		return nil, nil, errors.Join(failed, err)
	}
	gone = slices.DeleteFunc(were, func(n AMSNode) bool {
		return slices.ContainsFunc(stay, func(m AMSNode) bool { return m.ID == n.ID })
	})
	if failed != nil && slices.ContainsFunc(stay, isOld) {
		return gone, nil, failed
	}
	return gone, stay, nil
}

// written compares a time of AMS: numbers and dates do not compare with each other.
func written(which, key, operator string, at time.Time) bson.E {
	return bson.E{Key: which, Value: bson.A{
		bson.D{{Key: key, Value: bson.D{{Key: operator, Value: at.UnixMilli()}}}},
		bson.D{{Key: key, Value: bson.D{{Key: operator, Value: at}}}},
	}}
}

// DatabaseStreams are one application's streams.
type DatabaseStreams struct {
	Database string   `json:"database"`
	IDs      []string `json:"ids"`
}

// streams matches those published at an address: with $or lately written ones, with $nor others.
func streams(address string, now time.Time, which string) bson.D {
	return append(addressFilter("originAdress", address), // sic
		bson.E{Key: "status", Value: "broadcasting"}, written(which, "updateTime", "$gte", now.Add(-amsFresh)))
}

// LocalStreams reads a node's live streams by AMS's rule: published there, broadcasting, and written at most 20 s ago by
// its clock. With an error it still returns those of other databases.
func (c *Client) LocalStreams(ctx context.Context, databases []string, address string, now time.Time) ([]DatabaseStreams, error) {
	switch {
	case address == "":
		return nil, errors.New("reading live streams: no address is given")
	case len(databases) == 0:
		return nil, errors.New("reading live streams: no application database is named")
	}
	projection := bson.D{{Key: "_id", Value: 1}, {Key: "streamId", Value: 1}}

	all := make([]DatabaseStreams, 0, len(databases))
	var errs []error
	for _, name := range databases {
		op, coll := "reading live streams of "+name, c.db(name).Collection(broadcastCollection)
		ids, err := find(ctx, c, op, coll, streams(address, now, "$or"), readStream, options.Find().SetProjection(projection))
		slices.Sort(ids)
		errs = append(errs, err)
		all = append(all, DatabaseStreams{Database: name, IDs: append([]string{}, ids...)})
	}
	return all, errors.Join(errs...)
}

func readStream(doc bson.Raw) string {
	return cmp.Or(textField(doc, "streamId"), idText(field(doc, "_id")))
}

// RepairStreams ends the streams that a node left "broadcasting"; AMS does so only when a server with the same address
// starts. Streams written within 20 s by that node's clock (now) stay. It writes into AMS's collections: call it only for an
// operator.
func (c *Client) RepairStreams(ctx context.Context, databases []string, address string, now time.Time) error {
	if address == "" {
		return errors.New("repairing streams: no address is given")
	}
	stale := streams(address, now, "$nor")
	made := append(streams(address, now, "$nor"), bson.E{Key: "zombi", Value: true}) // AMS deletes these when they end
	ended := bson.D{{Key: "$set", Value: bson.D{
		{Key: "status", Value: "terminated_unexpectedly"},
		{Key: "hlsViewerCount", Value: int32(0)},
		{Key: "dashViewerCount", Value: int32(0)},
		{Key: "webRTCViewerCount", Value: int32(0)},
		{Key: "rtmpViewerCount", Value: int32(0)},
	}}}
	var errs []error
	for _, name := range databases {
		op, coll := "repairing streams of "+name, c.db(name).Collection(broadcastCollection)
		err := c.deleteMany(ctx, op, coll, made)
		if err == nil {
			err = c.updateMany(ctx, op, coll, stale, ended)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c *Client) amsNodes() *mongo.Collection {
	return c.db(amsDatabase).Collection(amsCollection)
}

// Releases of AMS write numbers as text, int32, int64 or double. An unreadable field must not hide a node.

// In bytes: any program with the same login may write these documents.
const (
	maxText    = 256
	maxMessage = 1024
)

func field(doc bson.Raw, key string) bson.RawValue {
	v, _ := doc.LookupErr(key)
	return v
}

func text(v bson.RawValue) string {
	s, _ := v.StringValueOK()
	return plain.Truncate(s, maxText)
}

func textField(doc bson.Raw, key string) string { return text(field(doc, key)) }

func idText(v bson.RawValue) string {
	if id, ok := v.ObjectIDOK(); ok {
		return id.Hex()
	}
	if v.Type == bson.TypeString {
		return text(v)
	}
	return plain.Truncate(v.String(), maxText)
}

func numberField(doc bson.Raw, key string) *float64 {
	v := field(doc, key)
	f, ok := v.AsFloat64OK()
	var err error
	if !ok {
		f, err = strconv.ParseFloat(strings.TrimSpace(text(v)), 64)
	}
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return nil
	}
	return &f
}

func timeField(doc bson.Raw, key string) time.Time {
	v := field(doc, key)
	ms, ok := v.DateTimeOK()
	if !ok {
		ms, ok = v.AsInt64OK()
	}
	t := time.UnixMilli(ms).UTC()
	if !ok || !inJSON(t) {
		return time.Time{}
	}
	return t
}

func inJSON(t time.Time) bool { return t.Year() >= 1 && t.Year() <= 9999 }
