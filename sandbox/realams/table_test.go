// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package realams_test

import (
	"context"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/internal/amstable"
	"github.com/amsagent/amsagent/sandbox/realams"
)

// The stand-in is held to the same table by TestTable of package fakeams.
func TestRealTable(t *testing.T) {
	for _, release := range []string{realams.Newest, realams.Older, realams.Oldest} {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			table(t, release)
		})
	}
}

func table(t *testing.T, release string) {
	w := realams.New(t, realams.Options{})
	n := w.Node(t, release)
	n.AllowAgent(t)
	mongo, err := w.Mongo.Client()
	must.OK(t, err)
	t.Cleanup(func() { _ = mongo.Disconnect(context.Background()) })
	host, started := "mongodb://"+w.Mongo.Addrs(), false // without the scheme the script takes it for Redis
	amstable.Hold(t, amstable.Server{
		Start: func(t *testing.T) {
			if !started {
				n.MustRun(t, "bash", realams.Home+"/change_server_mode.sh", "cluster", host) // and it starts the server
				started = true
				return
			}
			n.MustRun(t, realams.Service, "start")
		},
		Stop: func(t *testing.T) { n.MustRun(t, realams.Service, "stop") },
		Kill: func(t *testing.T) {
			n.Signal(t, syscall.SIGKILL)
			for end := time.Now().Add(time.Minute); n.Server() != 0; <-time.After(50 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the server outlives a kill")
				}
			}
		},
		Publish: func(t *testing.T, app, stream string) func() {
			publisher := w.Publish(t, n, app, stream)
			return func() { publisher.Signal(syscall.SIGTERM) }
		},
		Settings: func(t *testing.T, app string) []byte {
			return []byte(n.Read(t, realams.Home+"/webapps/"+app+"/WEB-INF/red5-web.properties"))
		},
		Complete: (&ams.Installation{Root: n.Path("/"), Dir: realams.Home}).Initialized,
		Client:   &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: n.Dial, DisableKeepAlives: true}},
		URL:      func() string { return "http://127.0.0.1:5080" },
		Token:    realams.Token(),
		Apps:     []string{"LiveApp", "WebRTCApp", "live"}, Address: n.Address, MongoHost: host,
		Old:   release == realams.Oldest,
		Mongo: mongo,
	})
}
