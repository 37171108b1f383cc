// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/rig"
)

// browser is Chromium with one page, driven by the DevTools protocol: JSON that ends with a zero byte, on its descriptors 3 and 4.
type browser struct {
	t       *testing.T
	to      *os.File
	session string

	mu      sync.Mutex
	last    int
	waiting map[int]chan message
	asked   []string // URLs
	errors  []string // exceptions, and what is in the console
}

type message struct {
	ID      int             `json:"id,omitempty"`
	Method  string          `json:"method,omitempty"`
	Session string          `json:"sessionId,omitempty"`
	Params  any             `json:"params,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *struct {
		Message string `json:"message"`
	} `json:"error,omitempty"`
}

func openBrowser(t *testing.T) *browser {
	t.Helper()
	program := packageTool(t, "chromium")
	inRead, inWrite, err := os.Pipe()
	must.OK(t, err)
	outRead, outWrite, err := os.Pipe()
	must.OK(t, err)
	var log locked.Buffer
	cmd := exec.Command(program, "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-lcd-text", "--user-data-dir="+rig.ShortDir(t), "about:blank")
	cmd.ExtraFiles = []*os.File{inRead, outWrite} // 3, 4
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must.OK(t, cmd.Start())
	_, _ = inRead.Close(), outWrite.Close()
	b := &browser{t: t, to: inWrite, waiting: map[int]chan message{}}
	var read sync.WaitGroup
	read.Go(func() { b.read(outRead) })
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		_ = inWrite.Close()
		read.Wait()
		_ = outRead.Close()
		if t.Failed() {
			t.Logf("Chromium:\n%s", log.String())
		}
	})
	var targets struct {
		Infos []struct{ TargetID, Type string } `json:"targetInfos"`
	}
	until(t, "Chromium has a page", func() string {
		b.call("Target.getTargets", nil, &targets)
		targets.Infos = slices.DeleteFunc(targets.Infos, func(i struct{ TargetID, Type string }) bool { return i.Type != "page" })
		if len(targets.Infos) == 0 {
			return "none"
		}
		return ""
	})
	var is struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": targets.Infos[0].TargetID, "flatten": true}, &is)
	b.session = is.SessionID
	for _, domain := range []string{"Page", "Runtime", "Network", "Log"} {
		b.call(domain+".enable", nil, nil)
	}
	return b
}

// read sorts what the browser sends, until it ends.
func (b *browser) read(from *os.File) {
	r := bufio.NewReader(from)
	for {
		text, err := r.ReadBytes(0)
		if err != nil {
			b.mu.Lock()
			defer b.mu.Unlock()
			for _, c := range b.waiting {
				close(c)
			}
			b.waiting = nil
			return
		}
		var m message
		var of struct {
			Params struct {
				Request struct{ URL string }
			}
		}
		text = text[:len(text)-1]
		_, _ = json.Unmarshal(text, &m), json.Unmarshal(text, &of)
		b.mu.Lock()
		switch m.Method {
		case "":
			if c := b.waiting[m.ID]; c != nil {
				c <- m
			}
			delete(b.waiting, m.ID)
		case "Network.requestWillBeSent":
			b.asked = append(b.asked, of.Params.Request.URL)
		case "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded":
			b.errors = append(b.errors, string(text))
		}
		b.mu.Unlock()
	}
}

func (b *browser) try(method string, params, result any) error {
	b.mu.Lock()
	b.last++
	m, answer := message{ID: b.last, Method: method, Session: b.session, Params: params}, make(chan message, 1)
	if b.waiting == nil {
		b.mu.Unlock()
		return errors.New("Chromium has ended")
	}
	b.waiting[m.ID] = answer
	b.mu.Unlock()
	text, err := json.Marshal(m)
	if err == nil {
		_, err = b.to.Write(append(text, 0))
	}
	if err != nil {
		return err
	}
	select {
	case is, ok := <-answer:
		switch {
		case !ok:
			return errors.New("Chromium has ended")
		case is.Error != nil:
			return errors.New(is.Error.Message)
		case result != nil:
			return json.Unmarshal(is.Result, result)
		}
		return nil
	case <-time.After(patience):
		return fmt.Errorf("no answer to %s", method)
	}
}

func (b *browser) call(method string, params, result any) {
	b.t.Helper()
	if err := b.try(method, params, result); err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
}

// eval returns the value of a script's expression.
func (b *browser) eval(script string, value any) {
	b.t.Helper()
	var is struct {
		Result    struct{ Value json.RawMessage }
		Exception json.RawMessage `json:"exceptionDetails"`
	}
	b.call("Runtime.evaluate", map[string]any{"expression": script, "returnByValue": true, "awaitPromise": true}, &is)
	if is.Exception != nil {
		b.t.Fatalf("%s: %s", script[:min(200, len(script))], is.Exception)
	}
	if value != nil && is.Result.Value != nil {
		must.OK(b.t, json.Unmarshal(is.Result.Value, value))
	}
}

// is reports the value of a condition.
func (b *browser) is(condition string) (yes bool) {
	b.t.Helper()
	b.eval("!!("+condition+")", &yes)
	return yes
}

// open loads a page.
func (b *browser) open(url string) {
	b.t.Helper()
	b.eval("window.old = true", nil)
	b.call("Page.navigate", map[string]any{"url": url}, nil)
	b.loaded()
}

func (b *browser) loaded() {
	b.t.Helper()
	until(b.t, "the page is loaded", func() string {
		var is struct{ Result struct{ Value any } }
		// While the page changes, there is nothing that could answer.
		err := b.try("Runtime.evaluate", map[string]any{"expression": "document.readyState + !!window.old", "returnByValue": true}, &is)
		if err != nil || is.Result.Value != "completefalse" {
			return fmt.Sprint(is.Result.Value, err)
		}
		return ""
	})
}

// size sets the page's width, and whether it is dark.
func (b *browser) size(width int, scheme string) {
	b.t.Helper()
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false}, nil)
	b.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
}

// picture returns the whole page as PNG, in 256 colors: that is half as large.
func (b *browser) picture() []byte {
	b.t.Helper()
	var page struct {
		Size struct{ Width, Height float64 } `json:"cssContentSize"`
	}
	b.call("Page.getLayoutMetrics", nil, &page)
	var is struct{ Data string }
	b.call("Page.captureScreenshot", map[string]any{
		"format": "png", "captureBeyondViewport": true,
		"clip": map[string]any{"x": 0, "y": 0, "width": page.Size.Width, "height": page.Size.Height, "scale": 1},
	}, &is)
	full, err := png.Decode(base64.NewDecoder(base64.StdEncoding, strings.NewReader(is.Data)))
	must.OK(b.t, err)
	often := map[color.Color]int{}
	for x := range full.Bounds().Dx() {
		for y := range full.Bounds().Dy() {
			often[full.At(x, y)]++
		}
	}
	colors := slices.SortedFunc(maps.Keys(often), func(a, b color.Color) int { return often[b] - often[a] })
	small := image.NewPaletted(full.Bounds(), colors[:min(256, len(colors))])
	draw.Draw(small, small.Bounds(), full, image.Point{}, draw.Src)
	var out bytes.Buffer
	must.OK(b.t, (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, small))
	return out.Bytes()
}

// quiet holds the page to have asked no host but its own, and to have nothing in its console.
func (b *browser) quiet(own string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, url := range b.asked {
		if !strings.HasPrefix(url, own+"/") {
			b.t.Errorf("the page asked for %s", url)
		}
	}
	for _, text := range b.errors {
		b.t.Errorf("in the console: %s", text)
	}
	if len(b.asked) == 0 {
		b.t.Error("no request was seen")
	}
}
