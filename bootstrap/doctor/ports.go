// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
)

// listener is a socket that waits for others.
type listener struct {
	udp   bool
	port  int
	inode string
	pid   int    // 0: not known
	name  string // of the process
}

func (l listener) owner() string {
	if l.pid == 0 {
		return "another process"
	}
	return fmt.Sprintf("%s (pid %d)", l.name, l.pid)
}

// wanted is a port that the server listens on.
type wanted struct {
	port int
	udp  bool
	what string
	// needed: without it the server does not serve at all.
	needed bool
}

func (w wanted) String() string {
	if w.udp {
		return fmt.Sprintf("%d/udp (%s)", w.port, w.what)
	}
	return fmt.Sprintf("%d (%s)", w.port, w.what)
}

// serverPorts are those of an installation. Which of them it uses is its own
// matter: HTTPS and RTMPS are off until somebody switches them on.
func (p *patient) serverPorts(in *ams.Installation) []wanted {
	list := []wanted{{in.HTTPPort, false, "HTTP", true}}
	s, ok := p.read(in.Server, "red5.properties")
	add := func(key string, usual int, udp bool, what string) {
		port := usual
		if ok && key != "" {
			if n, err := strconv.Atoi(s.get(key)); err == nil && n > 0 && n < 1<<16 {
				port = n
			}
		}
		list = append(list, wanted{port, udp, what, false})
	}
	add("https.port", 5443, false, "HTTPS")
	add("rtmp.port", 1935, false, "RTMP")
	if ok && strings.EqualFold(s.get("rtmps.enabled"), "true") {
		add("rtmps.port", 8443, false, "RTMPS")
	}
	add("server.srt_port", 4200, true, "SRT")
	add("server.origin_port", originPort, false, "between nodes")
	add("", 9999, false, "shutdown, on the loopback")
	return list
}

// checkPorts finds who has a port that Ant Media Server wants.
func checkPorts(ctx context.Context, p *patient) []Result {
	return inspected(func(ctx context.Context, p *patient, in *bootstrap.Inspection) []Result {
		switch {
		case in.Install == nil:
			return one(noInstall())
		case !p.running:
			return inTree()
		}
		ports := p.serverPorts(in.Install)
		listening, err := p.listeners(ports)
		if err != nil {
			return one(notKnown(err))
		}
		p.name(ctx, listening)
		return judgePorts(in, ports, listening, func(pid int) bool { return p.isServer(pid, in) })
	})(ctx, p)
}

// judgePorts compares what is wanted with who has it.
func judgePorts(in *bootstrap.Inspection, ports []wanted, listening []listener, isServer func(pid int) bool) []Result {
	running := in.Service.Running()
	var found []Result
	var open, blind []string
	for _, w := range ports {
		at := slices.IndexFunc(listening, func(l listener) bool { return l.port == w.port && l.udp == w.udp })
		if at < 0 {
			if running && w.needed {
				found = append(found, warning("it may still be starting; else look at its log",
					"%s runs, and nobody listens on port %s", ams.DefaultUnit, w))
			}
			continue
		}
		l := listening[at]
		switch {
		case l.pid != 0 && isServer(l.pid):
			open = append(open, strconv.Itoa(w.port))
		case l.pid == 0 && (running || !in.Service.Known()):
			// It may be the server: who it is only root sees.
			blind = append(blind, strconv.Itoa(w.port))
		default:
			found = append(found, bad("stop that process, or give it another port", "port %s is taken by %s", w, l.owner()))
		}
	}
	switch {
	case len(found) > 0:
		return found
	case len(blind) > 0:
		return one(unknown("somebody listens on %s; who it is only root sees", strings.Join(blind, ", ")))
	case len(open) > 0:
		return one(good("the server listens on %s", strings.Join(open, ", ")))
	}
	return one(good("free: nobody listens on the server's ports"))
}

// isServer reports whether a process is Ant Media Server, or one of its children.
func (p *patient) isServer(pid int, in *bootstrap.Inspection) bool {
	if pid == in.Service.MainPID {
		return true
	}
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	if b, err := p.system(filepath.Join(dir, "cgroup")); err == nil && bytes.Contains(b, []byte("/"+ams.DefaultUnit)) {
		return true
	}
	// Started by a command, or by hand: from its own folder.
	if b, err := p.system(filepath.Join(dir, "cmdline")); err == nil && bytes.Contains(b, []byte(in.Install.Real)) {
		return true
	}
	where, err := os.Readlink(filepath.Join(p.root, dir, "cwd"))
	return err == nil && where == in.Install.Real
}

// listeners reads who waits on these ports. The kernel's text is read: netlink tells
// no more, and this is done once.
func (p *patient) listeners(ports []wanted) ([]listener, error) {
	var list []listener
	read := 0
	for _, file := range []struct {
		path  string
		udp   bool
		state string
	}{
		{"/proc/net/tcp", false, "0A"},
		{"/proc/net/tcp6", false, "0A"},
		{"/proc/net/udp", true, "07"},
		{"/proc/net/udp6", true, "07"},
	} {
		// It has a line for each connection: not read whole.
		open, _, _, err := p.store.Files().Open(file.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // IPv6 is switched off
		}
		if err != nil {
			return nil, err
		}
		defer open.Close()
		read++
		s := bufio.NewScanner(open)
		for s.Scan() {
			// number, our address, the other's, state, queues, timer, retransmits, uid, timeout, inode
			f := strings.Fields(s.Text())
			if len(f) < 10 || f[3] != file.state {
				continue
			}
			_, hex, _ := strings.Cut(f[1], ":")
			n, err := strconv.ParseUint(hex, 16, 16)
			if err != nil || !slices.ContainsFunc(ports, func(w wanted) bool { return w.port == int(n) && w.udp == file.udp }) {
				continue
			}
			list = append(list, listener{udp: file.udp, port: int(n), inode: f[9]})
		}
		if err := s.Err(); err != nil {
			return nil, fmt.Errorf("reading %s: %w", file.path, err)
		}
	}
	if read == 0 {
		return nil, fmt.Errorf("looking for listeners: %s: %w", filepath.Join(p.root, "/proc/net/tcp"), fs.ErrNotExist)
	}
	return list, nil
}

// name finds the processes of the sockets, as far as we may look and have time.
func (p *patient) name(ctx context.Context, list []listener) {
	unnamed := len(list)
	each := func(path string, f func(name string)) {
		d, err := p.store.Files().Folder(path)
		if err != nil {
			return
		}
		defer d.Close()
		_ = d.Each(func(name string) bool {
			f(name)
			return unnamed > 0 && ctx.Err() == nil
		})
	}
	if unnamed == 0 {
		return
	}
	each("/proc", func(process string) {
		pid, err := strconv.Atoi(process)
		if err != nil {
			return
		}
		proc := filepath.Join("/proc", process)
		each(filepath.Join(proc, "fd"), func(fd string) {
			link, err := os.Readlink(filepath.Join(p.root, proc, "fd", fd))
			if err != nil || !strings.HasPrefix(link, "socket:[") {
				return
			}
			inode := strings.TrimSuffix(strings.TrimPrefix(link, "socket:["), "]")
			for i := range list {
				if list[i].inode == inode && list[i].pid == 0 {
					comm, _ := p.system(filepath.Join(proc, "comm"))
					list[i].pid, list[i].name = pid, cmp.Or(strings.TrimSpace(string(comm)), "a process")
					unnamed--
				}
			}
		})
	})
}
