// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"io/fs"
	"regexp"
	"strconv"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
)

// wanted is a port that the server listens on.
type wanted struct {
	network string // tcp or udp
	port    int
	what    string
}

// serverPorts are those of an installation, with the defaults where its settings cannot be read.
func serverPorts(in *ams.Installation) []wanted {
	ports := in.Ports
	list := []wanted{
		{"tcp", ports.HTTP, "HTTP"},
		{"tcp", ports.HTTPS, "HTTPS"},
		{"tcp", ports.RTMP, "RTMP"},
		{"udp", ports.SRT, "SRT"},
		{"tcp", ports.Origin, "between nodes"},
		{"tcp", 9999, "shutdown"},
	}
	if ports.RTMPS > 0 {
		list = append(list, wanted{"tcp", ports.RTMPS, "RTMPS"})
	}
	return list
}

// checkPorts looks for other programs' sockets at the ports of a server that does not run.
func checkPorts(ctx context.Context, p *patient, in *bootstrap.Inspection) []Result {
	switch {
	case in.Install == nil:
		return one(noInstall())
	case !p.running:
		return inTree()
	case in.Service.Running() || in.Service.Starting():
		return one(good("the server runs; its ports were not compared"))
	case !in.Service.Known():
		return one(unknown("whether the server runs is not known"))
	}
	sockets, err := p.sockets()
	if err != nil {
		return one(notKnown(err))
	}
	var found []Result
	for _, w := range serverPorts(in.Install) {
		if sockets[socket{w.network, w.port}] {
			found = append(found, bad("`ss -l"+w.network[:1]+"np` as root names the process: stop it, or give it another port", "port %d (%s) is taken", w.port, w.what))
		}
	}
	if len(found) == 0 {
		return one(good("free: no process has the server's ports"))
	}
	if now, err := p.Machine.Service.State(ctx); err == nil && (now.Running() || now.Starting()) {
		return one(good("the server has started meanwhile; its ports were not compared"))
	}
	return found
}

type socket struct {
	network string
	port    int
}

// socketLine has the local port and the state of a line in /proc/net/tcp or udp, both in hexadecimal.
var socketLine = regexp.MustCompile(`(?m)^ *\d+: [0-9A-F]+:([0-9A-F]{4}) [0-9A-F]+:[0-9A-F]{4} ([0-9A-F]{2}) `)

// maxSockets is in bytes: room for 100,000 sockets.
const maxSockets = 16 << 20

// sockets are those that listen. They are read: a port that the check opens is taken for a server that starts in that moment.
func (p *patient) sockets() (map[socket]bool, error) {
	const listens = "0A"
	found := map[socket]bool{}
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		network := table[:3]
		b, _, err := p.store.Files().Read("/proc/net/"+table, maxSockets)
		switch {
		case errors.Is(err, fs.ErrNotExist) && table != network: // a kernel without IPv6
			continue
		case err != nil:
			return nil, err
		}
		for _, m := range socketLine.FindAllSubmatch(b, -1) {
			if network == "tcp" && string(m[2]) != listens {
				continue
			}
			port, _ := strconv.ParseInt(string(m[1]), 16, 32)
			found[socket{network, int(port)}] = true
		}
	}
	return found, nil
}
