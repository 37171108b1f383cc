// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/rig"
	"github.com/amsagent/amsagent/sandbox/standin"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// The password of the database, which must not appear in any output.
const (
	daemonUser     = "cluster"
	daemonPassword = "s3cret-of-the-cluster"
)

// newDatabase starts a MongoDB with a password.
func newDatabase(t testing.TB) *mongod.Server {
	t.Helper()
	return servers.Start(t, mongod.Options{Users: map[string]string{daemonUser: daemonPassword}})
}

// nodeOptions are a machine with the load of this one, whose server reports its sessions to the agent.
func nodeOptions(m *mongod.Server, id, ip string) rig.Options {
	return rig.Options{
		Options: standin.Options{
			Sandbox: bins.sandbox, Tree: tree.Options{NoUnit: true, Host: "node", HostResolves: true},
			Args: []string{"--request-timeout", "1s", "--stream-wait", "100ms"}, Reports: true, BootID: "11111111-2222-3333-4444-555555555555",
		},
		Agent: bins.agent, ID: id, Address: ip, Mongo: m, Env: []string{"AMSAGENT_TIMEOUT=120s"},
	}
}

// newNode makes a machine with the firmware of a cloud. Node.Env sets its metadata service.
func newNode(t testing.TB, m *mongod.Server, cloud, id, ip string) *rig.Node {
	t.Helper()
	o := nodeOptions(m, id, ip)
	o.Tree.DMI = cloud
	return rig.New(t, o)
}

// onAWS is a machine in EC2.
type onAWS struct {
	*rig.Node
	aws *fakeaws.Server
	asg *fakeaws.AutoScaling // its group's, if it is in one
}

func newOnAWS(t testing.TB, m *mongod.Server, ip string) *onAWS {
	t.Helper()
	id := "i-0abc" + strings.ReplaceAll(fmt.Sprintf("%13s", strings.ReplaceAll(ip, ".", "")), " ", "0")
	n, aws := rig.NewInEC2(t, nodeOptions(m, id, ip))
	return &onAWS{Node: n, aws: aws}
}

// until waits until why returns "".
func until(t testing.TB, what string, why func() string) {
	t.Helper()
	rig.Until(t, what, why)
}

// soFar keeps until waiting even if text is empty.
func soFar(text string) string { return "so far: " + text }

// patience is how long a test waits for what must come. Only a defect reaches it.
const patience = rig.Patience

func wait(d time.Duration) { <-time.After(d) }
