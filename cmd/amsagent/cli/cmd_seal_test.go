// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// seal lists what goes and what stays, and no letter that a terminal obeys.
func TestSealText(t *testing.T) {
	root := doctorTree(t)
	plant(t, root, map[string]string{"usr/local/antmedia/evil\x1b[2J.db": "", "usr/local/antmedia/conf/privkey.pem": ""})
	const stays = "  tls         /usr/local/antmedia/conf/privkey.pem: kept: every clone will have it\n  (1 thing left in the image; --remove takes them out)\n"
	const goes = "  hosts       /etc/hosts: the line of node-1 is removed\n  databases   /usr/local/antmedia/evil\\u001b[2J.db: removed\n"
	for _, tt := range []struct{ flags, want string }{
		{"--dry-run", "sealing would remove 2 things; nothing was touched\n" + goes + stays},
		{"--yes", "sealed: 2 things removed; make the image before Ant Media Server is started again\n" + goes + stays},
		{"--yes", "nothing to do: what names this machine is gone, but for what is kept\n" + stays},
		{"--yes --remove tls", "sealed: 1 thing removed; make the image before Ant Media Server is started again\n  tls         /usr/local/antmedia/conf/privkey.pem: removed\n"},
		{"--yes", "nothing to do: nothing here names this machine\n"},
	} {
		code, stdout, _ := run(t, nil, append([]string{"seal", "--root", root}, strings.Fields(tt.flags)...)...)
		must.Equal(t, "exit", code, codeOK)
		must.NoDiff(t, tt.flags, stdout, tt.want)
	}
}
