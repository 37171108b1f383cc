// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

// panelFile is a settings file that a panel saves again and again: it reads the
// file, counts one value up, empties the file and writes it in two pieces, as
// java.util.Properties does below AMS's panel. What it wrote last it must find
// again, and nothing else may ever be there.
type panelFile struct {
	path  string
	saves int
}

var panelCounter = regexp.MustCompile(`(?m)^panel\.counter=(\d+)$`)

const panelEnd = "panel.end=yes\n"

func (p *panelFile) save() error {
	b, err := p.read()
	if err != nil {
		return err
	}
	return p.write(b)
}

// read gives what the file is to become.
func (p *panelFile) read() ([]byte, error) {
	b, err := os.ReadFile(p.path)
	if err != nil {
		return nil, err
	}
	m := panelCounter.FindSubmatch(b)
	if m == nil || !bytes.Contains(b, []byte(panelEnd)) {
		return nil, fmt.Errorf("%s is torn after %d savings: %q", p.path, p.saves, b)
	}
	if n, err := strconv.Atoi(string(m[1])); err != nil || n != p.saves {
		return nil, fmt.Errorf("%s counts %s after %d savings: one was lost", p.path, m[1], p.saves)
	}
	return panelCounter.ReplaceAll(b, fmt.Appendf(nil, "panel.counter=%d", p.saves+1)), nil
}

func (p *panelFile) write(b []byte) error {
	f, err := os.OpenFile(p.path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	half := len(b) / 2
	_, err1 := f.Write(b[:half])
	_, err2 := f.Write(b[half:])
	p.saves++
	return errors.Join(err1, err2, f.Close())
}

// TestCrashPanel lets the panel save two files as fast as it can, in bursts with
// pauses and without any pause, while the machine joins and leaves fifty times.
func TestCrashPanel(t *testing.T) {
	for _, tt := range []struct {
		name   string
		rounds int
		pause  time.Duration // between bursts of 20 savings
		every  time.Duration // a saving of each file
	}{
		{"in bursts", 50, 150 * time.Millisecond, time.Millisecond},
		{"a hundred a second", 20, 0, 10 * time.Millisecond},
		{"without a pause", 5, 0, time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := newCrashNode(t, 1, crashNodeOptions{})
			files := n.panel(t)
			ctx, stop := context.WithCancel(t.Context())
			var panel sync.WaitGroup
			defer panel.Wait()
			defer stop()
			var turn sync.RWMutex // held for writing, the panel stands still
			for _, p := range files {
				panel.Go(func() {
					tick := time.NewTicker(tt.every)
					defer tick.Stop()
					for burst := 0; ctx.Err() == nil; burst++ {
						<-tick.C
						turn.RLock()
						err := p.save()
						turn.RUnlock()
						if err != nil {
							t.Error(err)
							stop()
							return
						}
						if burst%20 == 19 && tt.pause > 0 {
							select {
							case <-ctx.Done():
							case <-time.After(tt.pause):
							}
						}
					}
				})
			}
			done, refused := map[string]int{}, map[string]int{}
			want := map[string]string{"join": "mongodb", "leave": "mapdb"}
			begin := time.Now()
			for i := 0; i < 2*tt.rounds && ctx.Err() == nil; i++ {
				cmd := []string{"join", "leave"}[i%2]
				r := n.agent(cmd)
				switch {
				case r.Exit == 0:
					done[cmd]++
				case r.Exit == 1 && strings.Contains(r.Err, "changed by another process meanwhile"):
					refused[cmd]++
				default:
					t.Fatalf("%s: exit %d\n%s", cmd, r.Exit, r.Err)
				}
				turn.Lock()
				err := n.panelStands(files, r.Exit == 0 && !strings.Contains(r.Err, "AMS-DRIFT"), want[cmd])
				turn.Unlock()
				if err != nil {
					t.Fatalf("after %s %d, exit %d: %v\n%s", cmd, i, r.Exit, err, r.Err)
				}
			}
			stop()
			panel.Wait()
			r := n.agent("leave")
			if r.Exit != 0 {
				t.Fatalf("the last leave: %s", r.Err)
			}
			if err := n.panelStands(files, true, "mapdb"); err != nil {
				t.Error(err)
			}
			if err := n.strays(false); err != nil {
				t.Error(err)
			}
			t.Logf("%d and %d savings in %s; done %v, refused %v", files[0].saves, files[1].saves, time.Since(begin).Round(time.Second), done, refused)
			if tt.pause > 0 && (done["join"] < tt.rounds*9/10 || done["leave"] < tt.rounds*9/10) {
				t.Errorf("with pauses between the savings, only %v of %d were done", done, tt.rounds)
			}
		})
	}
}

// panel prepares two files for a panel that counts.
func (n *crashNode) panel(t testing.TB) []*panelFile {
	t.Helper()
	// A server works in that folder: where none does, a command offline looks for nobody who writes.
	server := exec.Command("sleep", "infinity")
	server.Dir = n.dir
	must.OK(t, server.Start())
	t.Cleanup(func() { _, _ = server.Process.Kill(), server.Wait() })
	var files []*panelFile
	for _, rel := range []string{"conf/red5.properties", "webapps/LiveApp/WEB-INF/red5-web.properties"} {
		p := &panelFile{path: filepath.Join(n.dir, rel)}
		b, err := os.ReadFile(p.path)
		must.OK(t, err)
		if len(b) > 0 && b[len(b)-1] != '\n' {
			b = append(b, '\n')
		}
		must.OK(t, os.WriteFile(p.path, append(b, "panel.counter=0\n"+panelEnd...), 0o644))
		files = append(files, p)
	}
	return files
}

// panelStands looks at the files while the panel stands still: all savings are
// there, and where a command was done, its values are.
func (n *crashNode) panelStands(files []*panelFile, done bool, dbType string) error {
	var errs []error
	for _, p := range files {
		b, err := os.ReadFile(p.path)
		if err != nil {
			return err
		}
		if !bytes.Contains(b, fmt.Appendf(nil, "panel.counter=%d\n", p.saves)) || !bytes.Contains(b, []byte(panelEnd)) {
			errs = append(errs, fmt.Errorf("%s does not hold saving %d: %q", p.path, p.saves, b))
		}
		cluster := bytes.Contains(b, []byte(crashUser+":"))
		if done && cluster != (dbType == "mongodb") {
			errs = append(errs, fmt.Errorf("%s has the wrong values: %q", p.path, b))
		}
		for _, key := range []string{"db.host=", "clusterdb.host=", "db.type="} {
			if strings.Count("\n"+string(b), "\n"+key) > 1 {
				errs = append(errs, fmt.Errorf("%s has %s twice", p.path, key))
			}
		}
	}
	return errors.Join(errs...)
}
