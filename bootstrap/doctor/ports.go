// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"

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

// checkPorts listens, while the server does not run, on each port that it needs.
func checkPorts(ctx context.Context, p *patient) []Result {
	return inspected(func(ctx context.Context, p *patient, in *bootstrap.Inspection) []Result {
		switch {
		case in.Install == nil:
			return one(noInstall())
		case !p.running:
			return inTree()
		case in.Service.Running() || in.Service.Starting():
			return one(good("the server runs; its ports were not tried"))
		case !in.Service.Known():
			return one(unknown("whether the server runs is not known"))
		}
		var found []Result
		for _, w := range serverPorts(in.Install) {
			switch err := p.listen(ctx, w.network, net.JoinHostPort("", strconv.Itoa(w.port))); {
			case errors.Is(err, syscall.EADDRINUSE):
				found = append(found, bad("`ss -l"+w.network[:1]+"np` as root names the process: stop it, or give it another port", "port %d (%s) is taken", w.port, w.what))
			case err != nil:
				found = append(found, unknown("port %d (%s): %v", w.port, w.what, err))
			}
		}
		if len(found) > 0 {
			return found
		}
		return one(good("free: nobody listens on the server's ports"))
	})(ctx, p)
}

// listen opens a port and closes it.
func listen(ctx context.Context, network, at string) error {
	var l net.ListenConfig
	if network == "udp" {
		c, err := l.ListenPacket(ctx, network, at)
		if err != nil {
			return fmt.Errorf("listening: %w", err)
		}
		return c.Close()
	}
	c, err := l.Listen(ctx, network, at)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	return c.Close()
}
