// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package realams

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/internal/sleep"
)

// Player watches a stream by HLS: twice a second it reads the playlist and the last segment.
type Player struct {
	Client   *http.Client
	Playlist string // its URL

	mu  sync.Mutex
	met Playback
}

// Playback is what a player met.
type Playback struct {
	Segments, Failed int
	Longest          time.Duration // of errors in a row
	Slowest          time.Duration // of a playlist with its segment
	Last             error
}

// Run watches until ctx ends.
func (p *Player) Run(ctx context.Context) {
	for good := time.Now(); ctx.Err() == nil; sleep.For(ctx, 500*time.Millisecond) {
		begin := time.Now()
		err := p.Segment(ctx)
		if ctx.Err() != nil {
			return
		}
		p.mu.Lock()
		p.met.Slowest = max(p.met.Slowest, time.Since(begin))
		if err != nil {
			p.met.Failed, p.met.Last = p.met.Failed+1, err
			p.met.Longest = max(p.met.Longest, time.Since(good))
		} else {
			p.met.Segments, good = p.met.Segments+1, time.Now()
		}
		p.mu.Unlock()
	}
}

// Met returns what the player has met until now.
func (p *Player) Met() Playback {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.met
}

// Segment reads the playlist and its last segment.
func (p *Player) Segment(ctx context.Context) error {
	list, err := p.fetch(ctx, p.Playlist)
	if err != nil {
		return err
	}
	lines := strings.Fields(list)
	if len(lines) == 0 {
		return errors.New("the playlist is empty")
	}
	_, err = p.fetch(ctx, p.Playlist[:strings.LastIndex(p.Playlist, "/")+1]+lines[len(lines)-1])
	return err
}

func (p *Player) fetch(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := p.Client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || len(b) == 0) {
		err = fmt.Errorf("%s: %s, %d bytes", url, resp.Status, len(b))
	}
	return string(b), err
}
