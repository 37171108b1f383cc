// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
)

func seeIdentity(_ *patient, in *bootstrap.Inspection) Result {
	if in.Instance.ID == "" {
		return unknown("not asked")
	}
	text := in.Instance.ID
	if in.Instance.Provider != "" {
		text += " on " + in.Instance.Provider
	}
	return good("%s", text)
}

func seeAddress(_ *patient, in *bootstrap.Inspection) Result {
	a := in.Address
	if !a.Addr.IsValid() {
		return unknown("without an identity there is no address")
	}
	text := a.Addr.String() + ", " + a.Reason
	if a.Interface != "" {
		text += ", on " + a.Interface
	}
	return good("%s", text)
}

// interfaces are those of this machine, nil where they are not known.
func (p *patient) interfaces() []netip.Addr {
	list, err := ams.HostInterfaces(p.root)
	if err != nil {
		return nil
	}
	var all []netip.Addr
	for _, in := range list {
		all = append(all, in.Addr.WithZone(""))
	}
	return all
}

func checkHostname(ctx context.Context, p *patient, in *bootstrap.Inspection) []Result {
	if found := findings(in.Findings, bootstrap.IDHostname); len(found) > 0 {
		return found
	}
	h := in.Hostname
	if h.Name == "" {
		// A join asks for it once it knows the address.
		var err error
		ctx, cancel := context.WithTimeout(ctx, p.askTime())
		defer cancel()
		if h, err = ams.LookupHostname(ctx, p.root); err != nil {
			return one(notKnown(err))
		}
	}
	joined, _ := p.joined(ctx)
	switch {
	case !h.Resolvable() && joined:
		return one(bad("amsagent join adds a line to /etc/hosts", "%s does not resolve: the server answers 500 to its liveness call (%s)", h.Name, h.Problem))
	case !h.Resolvable():
		return one(good("%s does not resolve; a join adds a line to /etc/hosts", h.Name))
	}
	addr, here := h.Addr(), p.interfaces()
	if here != nil && !addr.IsLoopback() && !slices.Contains(here, addr) {
		return one(warning("correct it in /etc/hosts or in DNS", "%s resolves to %s, which is no address of this machine", h.Name, addr))
	}
	text := fmt.Sprintf("%s resolves to %s", h.Name, addr)
	if len(h.Addrs) > 1 {
		text += fmt.Sprintf(" and %d more", len(h.Addrs)-1)
		if in.Install != nil && in.Install.Release.Known() && !in.Install.Release.HonoursHostAddress() {
			return one(warning("leave one address for it in /etc/hosts", "%s, and release %s takes the first for its own", text, in.Install.Release))
		}
	}
	return one(good("%s", text))
}

// checkHosts finds what the vendor's script, or the build of an image, left in
// /etc/hosts: lines without a name, and this machine's name at addresses that it has
// not.
func checkHosts(ctx context.Context, p *patient, in *bootstrap.Inspection) []Result {
	f, err := p.store.Read("/etc/hosts")
	switch {
	case err != nil:
		return one(notKnown(err))
	case !f.Exists():
		return one(good("there is no /etc/hosts"))
	}
	name, here := in.Hostname.Name, p.interfaces()
	if name == "" {
		if h, err := ams.LookupHostname(ctx, p.root); err == nil {
			name = h.Name
		}
	}
	var found []Result
	var mine []string
	n := 0
	for line := range strings.Lines(string(f.Bytes)) {
		n++
		text, _, _ := strings.Cut(line, "#")
		fields := strings.Fields(text)
		if len(fields) == 0 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		switch {
		case err != nil:
			found = append(found, warning("remove the line", "line %d of /etc/hosts begins with no address", n))
			continue
		case len(fields) == 1:
			found = append(found, warning("remove the line: the vendor's script leaves one on a machine with several addresses",
				"line %d of /etc/hosts has the address %s and no name", n, addr))
			continue
		}
		isMine := slices.ContainsFunc(fields[1:], func(s string) bool { return name != "" && strings.EqualFold(s, name) })
		if !isMine || addr.IsLoopback() {
			continue
		}
		mine = append(mine, addr.String())
		if here != nil && !slices.Contains(here, addr.Unmap()) {
			found = append(found, warning("remove the line: an image, or an earlier address, left it",
				"line %d of /etc/hosts gives %s the address %s, which this machine has not", n, name, addr))
		}
	}
	slices.Sort(mine)
	if mine = slices.Compact(mine); len(mine) > 1 && len(found) == 0 {
		found = append(found, warning("leave one", "/etc/hosts has several addresses for %s: %s", name, strings.Join(mine, ", ")))
	}
	if len(found) > 0 {
		return found
	}
	if here == nil {
		return one(good("no fault found; this machine's interfaces are not known"))
	}
	return one(good("nothing is left over"))
}

const (
	// mostPeers bounds the other nodes that are tried: a cluster may have hundreds.
	mostPeers = 5
	peerTime  = 2 * time.Second
)

// checkPeers connects to other nodes as their Ant Media Servers do.
func checkPeers(ctx context.Context, p *patient, look cluster.Look, in *bootstrap.Inspection) []Result {
	peers := others(look, in)
	if len(peers) == 0 {
		return one(good("there is no other node yet"))
	}
	if !p.running {
		return inTree() // the network is that of another machine
	}
	total := len(peers)
	peers = sample(peers, mostPeers)
	var mu sync.Mutex
	var silent, closed []string
	var wg sync.WaitGroup
	for _, peer := range peers {
		for _, port := range []int{peer.port, peer.origin} {
			wg.Go(func() {
				at := net.JoinHostPort(peer.address, strconv.Itoa(port))
				err := p.dial(ctx, at)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
				case errors.Is(err, syscall.ECONNREFUSED):
					// The way is open; who does not listen has reasons of its own.
					if port == peer.port {
						closed = append(closed, at)
					}
				default:
					silent = append(silent, at)
				}
			})
		}
	}
	wg.Wait()
	slices.Sort(silent)
	slices.Sort(closed)
	var found []Result
	if len(silent) > 0 {
		found = append(found, bad(fmt.Sprintf("the security group of the nodes must admit TCP %d and %d from each other", ams.DefaultHTTPPort, ams.DefaultOriginPort),
			"no connection to %s: streams do not travel between these nodes", few(silent)))
	}
	if len(closed) > 0 {
		found = append(found, warning("look at that node: amsagent status", "no server listens at %s", few(closed)))
	}
	if len(found) > 0 {
		return found
	}
	return one(good("%d of %d other nodes tried, all answer", len(peers), total))
}

// peer is another node, with the ports of its server.
type peer struct {
	address      string
	port, origin int
}

// others are the nodes whose servers are in the cluster, except this one.
func others(look cluster.Look, in *bootstrap.Inspection) []peer {
	id, address := ownNode(in)
	var o cluster.Observer
	var list []peer
	for _, m := range o.Observe(look) {
		a := m.Address()
		if !m.Server.Fresh || cluster.SameAddress(a, address) || m.Node != nil && m.Node.ID == id {
			continue
		}
		// By this machine's port: by a document's, any client of MongoDB could choose the target.
		if _, ok := cluster.Dialable(a); !ok {
			continue
		}
		x := peer{address: a, port: ams.DefaultHTTPPort, origin: ams.DefaultOriginPort}
		if in.Install != nil {
			x.port = in.Install.Ports.HTTP
		}
		list = append(list, x)
	}
	return list
}

// sample takes n, evenly spread.
func sample(list []peer, n int) []peer {
	if len(list) <= n {
		return list
	}
	var out []peer
	for i := range n {
		out = append(out, list[i*len(list)/n])
	}
	return out
}

func dial(ctx context.Context, at string) error {
	d := net.Dialer{Timeout: peerTime}
	c, err := d.DialContext(ctx, "tcp", at)
	if err != nil {
		return err
	}
	return c.Close()
}
