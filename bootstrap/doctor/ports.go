// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
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

// serverPorts are those of an installation.
func (p *patient) serverPorts(in *ams.Installation) []wanted {
	list := []wanted{{"tcp", in.HTTPPort, "HTTP"}}
	s, ok := p.read(in.Server, "red5.properties")
	add := func(key string, usual int, network, what string) {
		port := usual
		if ok && key != "" {
			if n, err := strconv.Atoi(s.get(key)); err == nil && n > 0 && n < 1<<16 {
				port = n
			}
		}
		list = append(list, wanted{network, port, what})
	}
	add("https.port", 5443, "tcp", "HTTPS")
	add("rtmp.port", 1935, "tcp", "RTMP")
	if ok && strings.EqualFold(s.get("rtmps.enabled"), "true") {
		add("rtmps.port", 8443, "tcp", "RTMPS")
	}
	add("server.srt_port", 4200, "udp", "SRT")
	add("server.origin_port", originPort, "tcp", "between nodes")
	add("", 9999, "tcp", "shutdown")
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
			return one(good("the server runs, and has its ports"))
		case !in.Service.Known():
			return one(unknown("whether the server runs is not known"))
		}
		var found []Result
		for _, w := range p.serverPorts(in.Install) {
			if err := p.listen(ctx, w.network, net.JoinHostPort("", strconv.Itoa(w.port))); errors.Is(err, syscall.EADDRINUSE) {
				found = append(found, bad("`ss -l"+w.network[:1]+"np` as root names the process: stop it, or give it another port", "port %d (%s) is taken", w.port, w.what))
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
