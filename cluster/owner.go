// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// Life names one boot of one machine at one address, in the four bytes that a
// beat can spare for it. Zero is not known.
type Life int32

// lifeKey is the field of a row that holds the [Life] of its last registration.
const lifeKey = "life"

// Life returns the life that the row was registered by.
func (n Node) Life() Life {
	h := fnv.New32a()
	_, _ = h.Write([]byte(n.BootID + "\x00" + n.IP)) // a hash takes everything
	return Life(h.Sum32())                           //nolint:gosec // all 32 bits, whatever the sign
}

// silentBeats is after how many intervals without a beat a row is free for
// another machine.
const silentBeats = 3

// OtherMachineError says that another machine uses this node's row: two machines
// have one id. The row was not changed.
type OtherMachineError struct {
	// Row is the row as the other machine wrote it.
	Row Node
	// Age is how long ago that was, by the server's clock; zero is not known.
	Age time.Duration
}

// Error names the other machine.
func (e *OtherMachineError) Error() string {
	s := fmt.Sprintf("another machine uses the id %s: %s writes its row", e.Row.ID, e.who())
	if e.Age > 0 {
		s += fmt.Sprintf(", %s ago", e.Age.Round(100*time.Millisecond))
	}
	return s
}

func (e *OtherMachineError) who() string {
	who := "one without an address"
	if e.Row.IP != "" {
		who = e.Row.IP
	}
	if e.Row.Hostname != "" {
		who += " (" + e.Row.Hostname + ")"
	}
	return who
}

// Free is in how long the row is free if the other machine writes it no more.
func (e *OtherMachineError) Free() time.Duration {
	return max(0, silentBeats*intervalOf(e.Row)-e.Age)
}

// taken reports whether the row is one that only its machine may write: an agent
// has beaten into it moments ago and did not say that it left.
func (n Node) taken(age time.Duration) bool {
	return n.Beats() && n.State != StateLeft && n.State != StateFailed && age < silentBeats*intervalOf(n)
}

// otherMachine reports whether the row is another machine's: both boot and address
// differ. Another boot at the same address is this machine after a reset, and the
// same boot at another address this machine after a move.
func (n Node) otherMachine(self Node) bool {
	return n.ID == self.ID && n.BootID != self.BootID && !SameAddress(n.IP, self.IP) && n.BootID+n.IP != ""
}

// UsedByOther reports whether another machine than self beats into this row, which
// is of the given age.
func (n Node) UsedByOther(self Node, age time.Duration) bool {
	return n.otherMachine(self) && n.taken(age)
}

// CheckOwner returns an [OtherMachineError] if another machine, with another boot
// and another address than self's, beats into the row of self's id.
func (c *Client) CheckOwner(ctx context.Context, self Node) error {
	return c.checkOwner(ctx, self, Node.otherMachine)
}

// CheckLife is CheckOwner for a node whose row was taken over by another life while
// it was beating: then a differing boot or address is enough.
func (c *Client) CheckLife(ctx context.Context, self Node) error {
	return c.checkOwner(ctx, self, func(n, self Node) bool { return !n.SameLife(self) })
}

func (c *Client) checkOwner(ctx context.Context, self Node, differs func(n, self Node) bool) error {
	row, err := c.Node(ctx, self.ID)
	switch {
	case errors.Is(err, ErrNoNode):
		return nil
	case err != nil:
		return err
	case !differs(row, self) || !row.taken(0):
		return nil
	}
	now, err := c.ServerTime(ctx)
	if err != nil {
		return err
	}
	if age, known := row.Age(now); known && row.taken(age) {
		return &OtherMachineError{Row: row, Age: age}
	}
	return nil
}

// beatRefused says why a beat found no row of its id and life.
func (c *Client) beatRefused(ctx context.Context, op string, b Beat) error {
	var life int64
	rows, err := find(ctx, c, op, c.nodes, bson.D{{Key: "_id", Value: b.ID}}, nodeFields(), func(doc bson.Raw) Node {
		life, _ = int64Field(doc, lifeKey)
		return readNode(doc)
	})
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		return fmt.Errorf("%s: %w", op, ErrNoNode)
	}
	if life == 0 || Life(life) == b.Life { //nolint:gosec // written as 32 bits
		// Registered between both looks, or by something that knows no life.
		return fmt.Errorf("%s: its row is not of this life: %w", op, ErrNoNode)
	}
	e := &OtherMachineError{Row: rows[0]}
	if now, err := c.ServerTime(ctx); err == nil {
		e.Age, _ = e.Row.Age(now)
	}
	return fmt.Errorf("%s: %w", op, e)
}

// ownedBy matches rows that are not another machine's.
func ownedBy(self Node) bson.D {
	if self.BootID == "" || self.IP == "" {
		return nil // who does not know itself cannot tell others from it
	}
	return bson.D{{Key: "$or", Value: bson.A{
		bson.D{{Key: "boot_id", Value: self.BootID}},
		addressFilter("ip", self.IP),
		bson.D{{Key: "boot_id", Value: nil}, {Key: "ip", Value: nil}},
	}}}
}
