// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/amsagent/amsagent/sandbox/amsctl"
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

// server NAME METHOD PATH?QUERY: a call of the stand-in's control port.
func (w *world) server(ts *testscript.TestScript, _ bool, args []string) error {
	c, err := amsctl.Load(filepath.Join(ts.MkAbs(args[0]+".state"), "config.json"))
	if err != nil {
		return err
	}
	u, err := url.Parse(args[2])
	if err != nil {
		return err
	}
	_, err = c.Control(w.ctx, args[1], u.Path, u.Query())
	if u.Path == "/crash" && errors.Is(err, io.EOF) {
		return nil // it has ended before its answer was sent
	}
	return err
}

// freeAddress VARIABLE: a host:port of loopback where nobody listens.
func (w *world) freeAddress(ts *testscript.TestScript, _ bool, args []string) error {
	p, err := freePort()
	if err != nil {
		return err
	}
	ts.Setenv(args[0], "127.0.0.1:"+p)
	return nil
}
