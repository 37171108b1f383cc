// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/port"
)

// TestHealthAmongOthers: a node whose server hangs is unhealthy, but not while half of the other nodes of its group do not
// serve either.
func TestHealthAmongOthers(t *testing.T) {
	t.Parallel()
	a := newAgent(t)
	number, err := port.Free()
	must.OK(t, err)
	a.o.Metrics = fmt.Sprintf("127.0.0.1:%d", number)
	settings := a.o.Settings
	a.o.Settings = func() daemon.Settings {
		s := settings()
		s.UnhealthyAfter = 300 * time.Millisecond
		return s
	}
	a.start()
	is := func(status int, when string) {
		t.Helper()
		for range 20 {
			must.Until(t, fmt.Sprintf("/healthz is %d: %s", status, when), func() bool { return a.health() == status })
			// The status stays, although the other nodes are checked repeatedly.
			to, late := a.rounds()+10, false
			must.Until(t, "the loop goes round", func() bool {
				b := a.view().Beat
				late = late || b.Dropped > 0 || b.Error != ""
				return a.rounds() >= to
			})
			is := a.health()
			if is == status {
				return
			}
			if !late { // while MongoDB accepts no heartbeats, no server is unhealthy
				t.Errorf("%s: /healthz is %d, want %d", when, is, status)
				return
			}
		}
		t.Errorf("%s: MongoDB accepts no heartbeats", when)
	}
	must.Until(t, "the server serves", func() bool { return a.view().Server.Up })
	is(http.StatusOK, "all is well")
	a.svc.hang(true)
	is(http.StatusServiceUnavailable, "there is no other node")

	peer := func(id, group string, up bool) {
		t.Helper()
		record := a.door.record(nodeID)
		record["_id"], record["group"], record["heartbeat"] = id, group, bson.M{"seq": 1, "serving": bson.M{"up": up}}
		a.door.insert(a.door.nodes(), record)
	}
	group, _ := a.door.record(nodeID)["group"].(string)
	peer("i-elsewhere", "another group", false)
	peer("i-serves", group, true)
	is(http.StatusServiceUnavailable, "the other node of the group serves")
	peer("i-down", group, false)
	is(http.StatusOK, "one of two others does not serve either")
	peer("i-serves-too", group, true)
	is(http.StatusServiceUnavailable, "two of three others serve")
	_, err = a.door.nodes().UpdateByID(t.Context(), "i-serves-too", bson.M{"$set": bson.M{"state": "draining"}})
	must.OK(t, err)
	is(http.StatusOK, "one that drains does not count")
	_, err = a.door.nodes().DeleteOne(t.Context(), bson.M{"_id": "i-down"})
	must.OK(t, err)
	is(http.StatusServiceUnavailable, "the one that does not serve is gone")
	a.svc.hang(false)
	is(http.StatusOK, "it serves again")
}

// health returns the status of /healthz; 0 means no answer.
func (a *agent) health() int {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), http.MethodGet, "http://"+a.o.Metrics+"/healthz", http.NoBody)
	must.OK(a.t, err)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}
