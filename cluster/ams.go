// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

const (
	amsDatabase   = "clusterdb"
	amsCollection = "clusternode"

	broadcastCollection = "broadcast"

	// amsFresh is AMS's own limit: it writes every 5 s, and treats a node as dead after four missed periods.
	amsFresh = 20 * time.Second
	// streamFresh is AMS's own limit for a live stream.
	streamFresh = 20 * time.Second
)

// AMSNode is an AMS document: each AMS in cluster mode writes its own into clusterdb.clusternode every 5 seconds.
type AMSNode struct {
	ID string `json:"id"`
	// IP is the address at which the other nodes call this one.
	IP string `json:"ip"`
	// LastUpdate is by the clock of AMS's machine; zero if the document has no time.
	LastUpdate time.Time `json:"last_update,omitzero"`
	Memory     string    `json:"memory,omitempty"` // as written, e.g. "586/1945"
	CPU        *float64  `json:"cpu,omitempty"`    // percent; nil if unknown

	id      bson.RawValue // as stored; may have any type
	written bson.RawValue // lastUpdateTime as stored
}

// amsFields is the projection of an AMS document.
var amsFields = bson.D{{Key: "ip", Value: 1}, {Key: "lastUpdateTime", Value: 1}, {Key: "memory", Value: 1}, {Key: "cpu", Value: 1}}

func readAMSNode(doc bson.Raw) AMSNode {
	n := AMSNode{
		IP:         textField(doc, "ip"),
		LastUpdate: timeField(doc, "lastUpdateTime"),
		Memory:     textField(doc, "memory"),
		id:         keep(field(doc, "_id")),
		written:    keep(field(doc, "lastUpdateTime")),
	}
	n.ID = idText(n.id)
	if cpu, ok := numberField(doc, "cpu"); ok {
		n.CPU = &cpu
	}
	return n
}

// Fresh reports whether AMS would treat this node as alive by the reader's clock. A time in the future is fresh, as it is for AMS.
func (n AMSNode) Fresh(now time.Time) bool {
	return !n.LastUpdate.IsZero() && now.Sub(n.LastUpdate) <= amsFresh
}

// AMSNodes reads all AMS documents, ordered by address and id.
func (c *Client) AMSNodes(ctx context.Context) ([]AMSNode, error) {
	return c.readAMSNodes(ctx, "reading AMS's cluster nodes", bson.D{})
}

// AMSNodesByAddress reads the AMS documents with this address. Earlier processes may have left some.
func (c *Client) AMSNodesByAddress(ctx context.Context, address string) ([]AMSNode, error) {
	return c.readAMSNodes(ctx, "reading AMS's cluster nodes of "+address, addressFilter("ip", address))
}

func (c *Client) readAMSNodes(ctx context.Context, op string, filter bson.D) ([]AMSNode, error) {
	nodes, err := find(ctx, c, op, c.amsNodes(), filter, readAMSNode, options.Find().SetProjection(amsFields))
	if err != nil {
		return nil, err
	}
	// AMS writes no document without a usable id.
	nodes = slices.DeleteFunc(nodes, func(n AMSNode) bool { return n.id.Type == 0 })
	slices.SortStableFunc(nodes, func(a, b AMSNode) int {
		return cmp.Or(compareText(a.IP, b.IP), compareText(a.ID, b.ID))
	})
	return nodes, nil
}

// compareText orders addresses as numbers and everything else as text.
func compareText(a, b string) int {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	if errX == nil && errY == nil {
		return x.Compare(y)
	}
	return strings.Compare(a, b)
}

// SameAddress reports whether two spellings mean one address: AMS writes an IPv6 address in full, as Java does, unless the
// address is configured.
func SameAddress(a, b string) bool { return a == b || oneSpelling(a) == oneSpelling(b) }

// oneSpelling returns the canonical spelling of an address.
func oneSpelling(address string) string {
	if addr, err := netip.ParseAddr(address); err == nil {
		return addr.Unmap().WithZone("").String()
	}
	return address
}

// addressFilter matches a field that holds the address in a spelling that AMS uses.
func addressFilter(key, address string) bson.D {
	forms := []string{address}
	if addr, err := netip.ParseAddr(address); err == nil {
		forms = append(forms, addr.String(), javaAddress(addr))
	}
	slices.Sort(forms)
	return bson.D{{Key: key, Value: bson.D{{Key: "$in", Value: slices.Compact(forms)}}}}
}

// javaAddress spells an address as Java's getHostAddress does, without ::.
func javaAddress(addr netip.Addr) string {
	if !addr.Is6() || addr.Is4In6() {
		return addr.Unmap().String()
	}
	b := addr.As16()
	groups := make([]string, 8)
	for i := range groups {
		groups[i] = fmt.Sprintf("%x", uint16(b[2*i])<<8|uint16(b[2*i+1]))
	}
	return strings.Join(groups, ":")
}

// DeleteAMSNodes deletes the AMS documents of an address, or only the one with an id, that were last written before a time, by
// the clock of AMS's machine. AMS must have stopped: while it runs, it writes its document again within 5 s.
//
// It returns the documents that are gone, and, without an error, those of the address that stay: another AMS writes them, or
// they have no readable time.
func (c *Client) DeleteAMSNodes(ctx context.Context, address, id string, before time.Time) (gone, stay []AMSNode, err error) {
	if address == "" || before.IsZero() {
		return nil, nil, errors.New("removing AMS's node documents: no address or no time is given")
	}
	were, err := c.AMSNodesByAddress(ctx, address)
	if err != nil {
		return nil, nil, err
	}
	versions := bson.A{}
	for _, n := range were {
		if (id == "" || n.ID == id) && !n.LastUpdate.IsZero() && !n.LastUpdate.After(before) {
			versions = append(versions, n.version())
		}
	}
	if len(versions) == 0 {
		return nil, were, nil
	}
	failed := c.call(ctx, "removing AMS's node documents of "+address, func(ctx context.Context) error {
		_, err := c.amsNodes().DeleteMany(ctx, bson.D{{Key: "$or", Value: versions}})
		return err
	})
	// The answer may be lost: what is left decides.
	if stay, err = c.AMSNodesByAddress(ctx, address); err != nil {
		return nil, nil, errors.Join(failed, err)
	}
	for _, n := range were {
		if !slices.ContainsFunc(stay, func(m AMSNode) bool { return m.id.Equal(n.id) }) {
			gone = append(gone, n)
		}
	}
	if failed != nil && len(gone) < len(versions) {
		return gone, nil, failed
	}
	return gone, stay, nil
}

// version is a filter that matches the document as it was read.
func (n AMSNode) version() bson.D {
	written := bson.E{Key: "lastUpdateTime", Value: bson.D{{Key: "$exists", Value: false}}}
	if n.written.Type != 0 {
		written.Value = n.written
	}
	return bson.D{{Key: "_id", Value: n.id}, {Key: "ip", Value: n.IP}, written}
}

// DatabaseStreams are the streams that an origin serves from one application.
type DatabaseStreams struct {
	Database string   `json:"database"`
	IDs      []string `json:"ids"` // ids of the streams
}

// LocalStreams reads the streams that are live on the node with this address, by AMS's own rule: published there,
// broadcasting, and written at most 20 s ago by that node's clock. databases are the db.name of the applications. An error is
// returned together with the streams of the databases that could be read.
func (c *Client) LocalStreams(ctx context.Context, databases []string, address string, now time.Time) ([]DatabaseStreams, error) {
	switch {
	case address == "":
		return nil, errors.New("reading live streams: no address is given")
	case len(databases) == 0:
		return nil, errors.New("reading live streams: no application database is named")
	}
	since := now.Add(-streamFresh)
	filter := append(addressFilter("originAdress", address), // sic
		bson.E{Key: "status", Value: "broadcasting"},
		// Numbers and dates do not compare with each other.
		bson.E{Key: "$or", Value: bson.A{
			bson.D{{Key: "updateTime", Value: bson.D{{Key: "$gte", Value: since.UnixMilli()}}}},
			bson.D{{Key: "updateTime", Value: bson.D{{Key: "$gte", Value: since}}}},
		}})
	projection := bson.D{{Key: "_id", Value: 1}, {Key: "streamId", Value: 1}}

	all := make([]DatabaseStreams, 0, len(databases))
	var errs []error
	for _, name := range databases {
		d := DatabaseStreams{Database: name, IDs: []string{}}
		op := "reading live streams of " + name
		ids, err := find(ctx, c, op, c.db(name).Collection(broadcastCollection), filter, readStream, options.Find().SetProjection(projection))
		errs = append(errs, err)
		d.IDs = append(d.IDs, ids...)
		slices.Sort(d.IDs)
		all = append(all, d)
	}
	return all, errors.Join(errs...)
}

// readStream returns the id of a stream, whatever its document holds.
func readStream(doc bson.Raw) string {
	if id := textField(doc, "streamId"); id != "" {
		return id
	}
	return idText(field(doc, "_id"))
}

func (c *Client) amsNodes() *mongo.Collection {
	return c.db(amsDatabase).Collection(amsCollection)
}
