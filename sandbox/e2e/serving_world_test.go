// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// answers CODE URL [REGEXP]: waits until that is the answer to GET URL.
func (w *world) answers(ts *testscript.TestScript, _ bool, args []string) error {
	want, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	text := regexp.MustCompile("")
	if len(args) > 2 {
		if text, err = regexp.Compile(args[2]); err != nil {
			return err
		}
	}
	client := &http.Client{Timeout: 30 * time.Second}
	if p, ok := w.place.(interface{ transport() *http.Transport }); ok {
		client.Transport = p.transport()
	}
	saw := ""
	deadline, tick := time.After(patience), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(w.ctx, http.MethodGet, args[1], nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			saw = err.Error()
		} else {
			b, rerr := io.ReadAll(resp.Body)
			saw = fmt.Sprintf("%d %s%v", resp.StatusCode, b, errors.Join(rerr, resp.Body.Close()))
			if resp.StatusCode == want && text.Match(b) {
				ts.Logf("%s", b)
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("%v: the last answer was %s", args, saw)
		}
	}
}

// readiness polls NAME URL: asks URL from now on, as a balancer does.
// readiness ended left|back: no answer was 200 from the first one that was not, nor from the first start or stop of the
// server. With back the node was ready again after that.
func (w *world) readiness(_ *testscript.TestScript, _ bool, args []string) error {
	if args[0] == "ended" {
		err := w.polled()
		if args[1] == "back" && errors.Is(err, errReadyAgain) {
			return nil
		}
		return err
	}
	count := func() int { return touched(w.place.asked(args[1])) }
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	before, end, done := count(), make(chan struct{}), make(chan error, 1)
	go func() {
		ready, out := 0, 0
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			now := count()
			resp, err := client.Get(args[2])
			is := err == nil && resp.StatusCode == http.StatusOK
			if err == nil {
				_ = resp.Body.Close()
			}
			switch {
			case is && now > before && out == 0:
				done <- fmt.Errorf("%s was ready after the server was touched", args[1])
				return
			case is && out > 0:
				done <- errReadyAgain
				return
			case is:
				ready++
			default:
				out++
			}
			select {
			case <-tick.C:
				continue
			case <-end:
			}
			if ready == 0 || out == 0 {
				done <- fmt.Errorf("%d answers ready, then %d not", ready, out)
			}
			close(done)
			return
		}
	}()
	w.polled = func() error { close(end); return <-done }
	return nil
}

var errReadyAgain = errors.New("it was ready again")

// server NAME METHOD PATH?QUERY: a call of the stand-in's control port.
func (w *world) server(_ *testscript.TestScript, _ bool, args []string) error {
	u, err := url.Parse(args[2])
	if err != nil {
		return err
	}
	p, err := w.standIns()
	if err != nil {
		return err
	}
	err = p.control(args[0], args[1], u.Path, u.Query())
	if u.Path == "/crash" && errors.Is(err, io.EOF) {
		return nil // it has ended before its answer was sent
	}
	return err
}

// freeAddress VARIABLE: sets it to a loopback host:port without a listener.
func (w *world) freeAddress(ts *testscript.TestScript, _ bool, args []string) error {
	p, err := freePort()
	if err != nil {
		return err
	}
	ts.Setenv(args[0], "127.0.0.1:"+p)
	return nil
}
