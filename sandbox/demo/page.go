// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"net/http"
	"os/exec"
	"strings"

	"github.com/amsagent/amsagent/sandbox/rig"
)

// openPage serves `amsagent web` beside the cluster until the demo ends.
func (d *demo) openPage() {
	address := d.free()
	cmd := exec.Command(d.agent, "web", "--listen", address, "--mongo", d.place.dialed(), "--root", d.dir, "--log-level", "error")
	cmd.Env = []string{"LANG=C.UTF-8"} // no setting of this machine
	d.start(cmd)
	d.page = "http://" + address
	d.shown("no nodes")
	d.print("The cluster in a browser, while the demo runs: %s", d.page)
}

// shown checks that the page has texts, as curl reads it.
func (d *demo) shown(texts ...string) {
	d.checks++
	d.until("the page shows "+strings.Join(texts, " and "), func() string {
		page, _, err := rig.Fetch(d.ctx, http.DefaultClient, d.page)
		if err != nil {
			return err.Error()
		}
		for _, text := range texts {
			if !strings.Contains(page, text) {
				return page
			}
		}
		return ""
	})
}
