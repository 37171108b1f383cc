// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package aws_test

import (
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/fakeaws"
	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

const (
	self  = "i-0abc1234567890def"
	group = "edge-asg"
)

// emulated is an instance in service, the account with its group, and the agent's provider, in memory. It belongs to one bubble
// of synctest.
type emulated struct {
	*fakeaws.Server
	*metadatatest.Watched // nil before watch

	asg *fakeaws.AutoScaling
	p   *aws.Provider
	url string // of the last call of the API
	log locked.Buffer
}

// emulate runs body in a bubble. The group has the termination hook z and the launch hook up.
func emulate(t *testing.T, body func(t *testing.T, e *emulated)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		e := &emulated{Server: fakeaws.New(fakeaws.Options{}), asg: fakeaws.NewAutoScaling(fakeaws.AutoScalingOptions{})}
		e.asg.Group(group, fakes.Hook{Name: "z", Timeout: 5 * time.Minute, Limit: 500 * time.Minute}, fakes.Hook{Name: "up", Launching: true, Default: "CONTINUE"})
		must.OK(t, e.asg.Attach(group, e.Server))
		e.open(t, "")
		body(t, e)
	})
}

// open opens the provider with another address of the API.
func (e *emulated) open(t *testing.T, endpoint string) {
	t.Helper()
	api := metadatatest.RoundTrip(func(req *http.Request) (*http.Response, error) {
		if !strings.HasPrefix(req.UserAgent(), cloud.UserAgent) {
			t.Errorf("the User-Agent of the request is %q", req.UserAgent())
		}
		e.url = req.URL.String()
		return fakes.Transport{Handler: e.asg}.RoundTrip(req)
	})
	var err error
	e.p, err = aws.New(cloud.Options{
		Transport: fakes.Transport{Handler: e.Server}, APITransport: api, Endpoints: map[string]string{aws.EndpointAutoScaling: endpoint},
		Log: slog.New(slog.NewTextHandler(&e.log, nil)),
	})
	must.OK(t, err)
}

// terminate begins a scale-in, so that hook z waits.
func (e *emulated) terminate(t *testing.T) {
	t.Helper()
	must.OK(t, e.asg.Terminate(self))
	<-time.After(time.Second)
}

// calls counts the calls of the API.
func (e *emulated) calls() int { return len(e.entries(fakes.Call)) }

// entries are the entries of the books of one kind.
func (e *emulated) entries(what fakes.What) (found []fakes.Entry) {
	for _, entry := range e.asg.Books() {
		if entry.What == what {
			found = append(found, entry)
		}
	}
	return found
}

// item sets an item below meta-data; "" removes it.
func (e *emulated) item(path, body string) {
	e.Update(func(i *fakeaws.Instance) { fakes.Set(&i.Extra, path, body) })
}

// watch runs Watch.
func (e *emulated) watch(t *testing.T) {
	t.Helper()
	e.Watched = metadatatest.Watch(t, e.p)
}

// pass advances the time and returns the reports in between.
func (e *emulated) pass(d time.Duration) map[string]int {
	<-time.After(d)
	synctest.Wait()
	return e.Reports()
}

func (e *emulated) lines(level string) int { return strings.Count(e.log.String(), "level="+level) }
