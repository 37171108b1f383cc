// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"

	"github.com/amsagent/amsagent/sandbox/internal/port"
	"github.com/amsagent/amsagent/sandbox/internal/proc"
)

// page is `amsagent web` beside the cluster.
type page struct {
	*proc.Program
	url string
}

// openPage serves the page until the demo ends.
func (d *demo) openPage() error {
	number, err := port.Free()
	if err != nil {
		return err
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(number))
	cmd := exec.Command(d.agent, "web", "--listen", address, "--mongo", d.place.dialed(), "--root", d.dir, "--log-level", "error")
	cmd.Env = []string{"LANG=C.UTF-8"} // no setting of this machine
	p, err := proc.Start(cmd)
	if err != nil {
		return err
	}
	d.page = &page{p, "http://" + address}
	if err := d.shown("no nodes"); err != nil {
		return err
	}
	d.print("The cluster in a browser, while the demo runs: %s", d.page.url)
	return nil
}

// shown checks that the page has texts, as curl reads it.
func (d *demo) shown(texts ...string) error {
	err := d.until("the page shows "+strings.Join(texts, " and "), func() string {
		req, err := http.NewRequestWithContext(d.ctx, http.MethodGet, d.page.url, nil)
		if err != nil {
			return err.Error()
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return err.Error()
		}
		for _, text := range texts {
			if !strings.Contains(string(b), text) {
				return string(b)
			}
		}
		return ""
	})
	return d.check(err == nil, "%v", err)
}
