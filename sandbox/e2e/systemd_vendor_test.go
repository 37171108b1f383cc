// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

// vendorsNode: a join accepts a correct node of the vendor's script without a restart. The stop timeout applies at once, and the
// server gets its address at its next start.
func (n *bootedNode) vendorsNode(t *testing.T) {
	n.reset(t, "--local-address="+nodeAddress)
	n.sh(t, `
cd `+nodeHome+`
sed -i 's/<!-- cluster start$/<!-- cluster start -->  /; s/^\(\t*\)cluster end -->/\1<!-- cluster end -->/' conf/jee-container.xml
sed -i 's/^clusterdb.host=.*/clusterdb.host=`+nodeMongo+`/' conf/red5.properties
sed -i 's/^db.type=.*/db.type=mongodb/; s/^db.host=.*/db.host=`+nodeMongo+`/' webapps/*/WEB-INF/red5-web.properties
echo '`+nodeAddress+` `+nodeHostname+`' >>/etc/hosts
systemctl restart `+nodeUnit)
	must.Until(t, "a node of the script's", func() bool { return n.mode(t) == "cluster" && len(n.clusternode(t)) == 1 })
	before, starts := n.show(t), n.starts(t)

	n.agent(t, 0, "join", "--mongo", nodeMongo, "--dry-run").says(t, "a join would write 2 files, with no restart; nothing was touched")
	n.agent(t, 0, "join", "--mongo", nodeMongo).says(t, "joined: origin "+nodeID+" is in the cluster as "+nodeAddress)
	u := n.show(t)
	if n.starts(t) != starts || u["MainPID"] != before["MainPID"] {
		t.Errorf("the server was restarted: before %v, after %v", before, u)
	}
	u.want(t, map[string]string{"TimeoutStopUSec": "2min", "DropInPaths": nodeDropIn, "NeedDaemonReload": "no"})
	n.row(t, "active")
	n.agent(t, 0, "status", "--strict").says(t, "active: in the cluster as "+nodeAddress)
	n.agent(t, 0, "join", "--mongo", nodeMongo).says(t, "nothing to do: ")

	n.sh(t, "systemctl restart "+nodeUnit)
	must.Until(t, "a server with AMS_HOST_ADDRESS", func() bool {
		u := n.show(t)
		return strings.Contains(n.read(t, "/proc/"+u["MainPID"]+"/environ"), "\x00AMS_HOST_ADDRESS="+nodeAddress+"\x00")
	})
	must.Until(t, "a node again", func() bool { return n.mode(t) == "cluster" })

	// Under another address than the server found for itself it has to be restarted.
	n.sh(t, "rm -r /var/lib/amsagent "+nodeDropIn+"; systemctl daemon-reload")
	n.behave(t, "--local-address=10.9.0.8")
	n.sh(t, "systemctl restart "+nodeUnit)
	must.Until(t, "a node under another address", func() bool {
		for _, d := range n.clusternode(t) {
			if d.IP == "10.9.0.8" {
				return true
			}
		}
		return false
	})
	starts = n.starts(t)
	n.agent(t, 0, "join", "--mongo", nodeMongo).says(t, "joined: origin "+nodeID+" is in the cluster as "+nodeAddress)
	if got := n.starts(t); got != starts+1 {
		t.Errorf("want one restart, there were %d", got-starts)
	}
}
