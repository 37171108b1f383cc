// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"bytes"
	"encoding/json"
	"flag"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
)

var updateGPU = flag.Bool("update", false, "write the expected readings anew")

// gpuNoon is when all recorded outputs were read.
func gpuNoon() time.Time { return time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC) }

// gpuOutput is a case of testdata/nvidia-smi.
type gpuOutput struct {
	name   string
	fields []string
	output []byte
}

func gpuOutputs(t testing.TB) []gpuOutput {
	t.Helper()
	files, err := filepath.Glob("testdata/nvidia-smi/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	var all []gpuOutput
	for _, file := range files {
		b, err := os.ReadFile(file)
		must.OK(t, err)
		lines := bytes.SplitN(b, []byte("\n"), 3)
		fields, ok := bytes.CutPrefix(lines[1], []byte("# fields: "))
		if len(lines) != 3 || !ok || !bytes.HasPrefix(lines[0], []byte("# ")) {
			t.Fatalf("%s does not begin with what it is and with its fields", file)
		}
		all = append(all, gpuOutput{strings.TrimSuffix(filepath.Base(file), ".txt"), strings.Split(string(fields), ","), lines[2]})
	}
	return all
}

// gpuRead is what a watcher makes of an output that came in pieces of some size.
func gpuRead(o gpuOutput, piece int) (*gpuStream, GPUReading) {
	w := NewGPUWatcher(GPUOptions{Now: gpuNoon})
	w.part.reason = "nothing was read"
	s := &gpuStream{w: w, fields: o.fields, last: time.Now()}
	for part := range slices.Chunk(o.output, piece) {
		s.lines.feed(part, s.line)
	}
	if r, ok := s.frames.quiet(true); ok {
		s.take(r)
	}
	return s, w.Latest()
}

func TestGPUOutputs(t *testing.T) {
	for _, o := range gpuOutputs(t) {
		t.Run(o.name, func(t *testing.T) {
			s, r := gpuRead(o, len(o.output))
			got, err := json.MarshalIndent(struct {
				Reading GPUReading
				Said    string `json:",omitempty"`
				Unknown string `json:",omitempty"`
				Lost    bool   `json:",omitempty"`
			}{r, s.said, s.unknown, s.lost}, "", "  ")
			must.OK(t, err)
			got = append(got, '\n')
			file := filepath.Join("testdata/nvidia-smi", o.name+".json")
			if *updateGPU {
				must.OK(t, os.WriteFile(file, got, 0o644))
			}
			want, err := os.ReadFile(file)
			must.OK(t, err)
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Error(diff)
			}
			for _, piece := range []int{1, 7, 64} {
				if _, again := gpuRead(o, piece); !cmp.Equal(r, again) {
					t.Errorf("in pieces of %d: %s", piece, cmp.Diff(r, again))
				}
			}
		})
	}
}

func TestGPUOneRow(t *testing.T) {
	const row = "0, GPU-1, 550.90.07, 37, 81, 12, 1874, 23034, NVIDIA L4"
	if _, err := parseGPURow([]byte(row), gpuFields(), nil); err != nil {
		t.Fatal(err)
	}
	// Cut anywhere, at either end, it is no row; but for the end of the name, which is no figure.
	for i := 1; i < len(row); i++ {
		if _, err := parseGPURow([]byte(row[:i]), gpuFields(), nil); err == nil && i <= strings.Index(row, "NVIDIA") {
			t.Errorf("%q was taken", row[:i])
		}
		if strings.HasPrefix(row[i:], ", GPU") || strings.HasPrefix(row[i:], " GPU") {
			continue
		}
		if r, err := parseGPURow([]byte(row[i:]), gpuFields(), nil); err == nil {
			t.Errorf("%q was taken: %+v", row[i:], r)
		}
	}
	for _, bad := range []string{
		"", ",", row + row, row + ", ", strings.Replace(row, "0,", "64,", 1), strings.Replace(row, "0,", "-1,", 1),
		strings.Replace(row, "37", "0x1F", 1), strings.Replace(row, "37", "inf", 1), strings.Replace(row, "37", "1_0", 1),
		strings.Replace(row, "37", "3.7.1", 1), strings.Replace(row, "550", "five", 1),
		strings.Replace(row, "GPU-1", "MIG-1", 1), strings.Repeat(",", 8),
	} {
		if r, err := parseGPURow([]byte(bad), gpuFields(), nil); err == nil {
			t.Errorf("%q was taken: %+v", bad, r)
		}
	}
}

// What a driver may leave out is its own affair; each query has its rows.
func TestGPUFewerFields(t *testing.T) {
	all := gpuFields()
	cells := strings.Split("3, GPU-1, 550.90.07, 37, 81, 12, 1874, 23034, NVIDIA L4", ", ")
	for i := 1; i < len(all); i++ {
		fields := slices.Delete(slices.Clone(all), i, i+1)
		line := strings.Join(slices.Delete(slices.Clone(cells), i, i+1), ", ")
		r, err := parseGPURow([]byte(line), fields, nil)
		if err != nil || r.gpu.Index != 3 {
			t.Errorf("without %s: %+v, %v", all[i], r, err)
		}
		if all[i] == "utilization.encoder" && (r.gpu.Enc != nil || r.gpu.Dec == nil || *r.gpu.Dec != 12) {
			t.Errorf("without %s: %+v", all[i], r.gpu)
		}
	}
}

func TestGPULinesAreBounded(t *testing.T) {
	var l gpuLines
	var got []string
	take := func(b []byte) { got = append(got, string(b)) }
	long := bytes.Repeat([]byte("x"), 1<<20)
	l.feed([]byte("one\ntw"), take)
	l.feed([]byte("o\r\n"), take)
	l.feed(long, take)
	l.feed(long, take)
	l.feed([]byte(" the end of it\nthree\n"), take)
	l.feed(append(bytes.Repeat([]byte("y"), gpuLineRoom+1), "\nfour\nfive"...), take)
	if diff := cmp.Diff([]string{"one", "two", "", "three", "", "four"}, got); diff != "" {
		t.Error(diff)
	}
}

// A device that answers slowly splits a round in two; a round that came late is
// followed at once by the next one.
func TestGPUFramesOverTime(t *testing.T) {
	row := func(i int, util float64) gpuRow {
		r := gpuRow{gpu: GPU{Index: i}, placed: i >= 0, values: 1}
		r.gpu.Util = &util
		if i < 0 {
			r.wrong, r.values, r.gpu.Util = "Unknown Error", 0, nil
		}
		return r
	}
	indices := func(r GPUReading) []int {
		var all []int
		for _, g := range r.Devices {
			all = append(all, g.Index)
		}
		return all
	}
	expect := func(t *testing.T, r GPUReading, ok bool, want ...int) {
		t.Helper()
		if got := indices(r); ok != (len(want) > 0) || !slices.Equal(got, want) {
			t.Errorf("got %v, %v, want %v", ok, got, want)
		}
	}
	at := gpuNoon()

	var f gpuFrames
	r, ok := f.quiet(true)
	expect(t, r, ok)
	r, ok = f.row(row(0, 1), at)
	expect(t, r, ok)
	r, ok = f.row(row(1, 2), at)
	expect(t, r, ok)
	r, ok = f.quiet(false)
	expect(t, r, ok, 0, 1)
	r, ok = f.quiet(false)
	expect(t, r, ok) // nothing new
	r, ok = f.row(row(0, 3), at)
	expect(t, r, ok) // that was told
	r, ok = f.quiet(false)
	expect(t, r, ok) // the second one is on its way
	r, ok = f.quiet(true)
	expect(t, r, ok, 0) // or it is not
	r, ok = f.row(row(1, 4), at)
	expect(t, r, ok)
	r, ok = f.quiet(false)
	expect(t, r, ok, 0, 1) // it was slow
	if *r.Devices[0].Util != 3 || *r.Devices[1].Util != 4 {
		t.Errorf("got %v and %v", *r.Devices[0].Util, *r.Devices[1].Util)
	}
	_, _ = f.row(row(0, 5), at)
	_, _ = f.row(row(1, 6), at)
	r, ok = f.row(row(0, 7), at) // glued to the round before
	expect(t, r, ok, 0, 1)

	// The first of two is lost, and its row has no index.
	f = gpuFrames{}
	for range 3 {
		_, _ = f.row(row(-1, 0), at)
		_, _ = f.row(row(1, 1), at)
		r, ok = f.quiet(false)
		expect(t, r, ok, 0, 1)
		_, _ = f.quiet(true)
	}
	_, _ = f.row(row(-1, 0), at)
	_, _ = f.row(row(1, 2), at)
	r, ok = f.row(row(-1, 0), at) // two rounds at once
	expect(t, r, ok, 0, 1)
	_, _ = f.row(row(1, 3), at)
	r, ok = f.quiet(false)
	expect(t, r, ok, 0, 1)

	// More rows without an index than a machine has devices are kept in bounds.
	f = gpuFrames{}
	for range 10 * gpuMost {
		if r, ok = f.row(row(-1, 0), at); ok && len(r.Devices) > gpuMost {
			t.Fatalf("%d devices", len(r.Devices))
		}
	}
	if len(f.wrong) > gpuMost+1 {
		t.Errorf("%d reasons", len(f.wrong))
	}
}

func TestGPUUnknownField(t *testing.T) {
	for line, want := range map[string]string{
		`Field "utilization.encoder" is not a valid field to query.`:   "utilization.encoder",
		`x Field "mig.mode.current" is not a valid field to query. y`:  "mig.mode.current",
		`Field "mig.mode.current" is valid`:                            "",
		`Field "mig.mode`:                                              "",
		`NVIDIA-SMI has failed because it couldn't communicate with t`: "",
	} {
		got, ok := gpuUnknownField(line)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, %v", line, got, ok)
		}
	}
}

// gpuCredible complains about readings that no device can have.
func gpuCredible(t *testing.T, g GPU) {
	t.Helper()
	for what, p := range map[string]*float64{"util": g.Util, "enc": g.Enc, "dec": g.Dec} {
		if p != nil && (*p < 0 || *p > 100 || math.IsNaN(*p)) {
			t.Errorf("%s is %v", what, *p)
		}
	}
	if g.MemUsed != nil && g.MemTotal != nil && *g.MemUsed > *g.MemTotal {
		t.Errorf("%d of %d bytes", *g.MemUsed, *g.MemTotal)
	}
	if g.Index < 0 || g.Index >= gpuMost || len(g.Name) > gpuReasonRoom || len(g.UUID) > gpuReasonRoom || len(g.Driver) > gpuReasonRoom {
		t.Errorf("%+v", g)
	}
}

func FuzzGPURow(f *testing.F) {
	for _, o := range gpuOutputs(f) {
		for line := range bytes.Lines(o.output) {
			f.Add(bytes.TrimSpace(line), len(o.fields))
		}
	}
	f.Fuzz(func(t *testing.T, line []byte, n int) {
		fields := gpuFields()
		fields = fields[:1+max(0, n-1)%len(fields)]
		r, err := parseGPURow(line, fields, nil)
		if err != nil {
			return
		}
		gpuCredible(t, r.gpu)
		if !r.placed && r.wrong == "" {
			t.Errorf("a device without index and without fault in %q", line)
		}
		again, err := parseGPURow(line, fields, []GPU{r.gpu})
		if err != nil || !cmp.Equal(r.gpu, again.gpu) {
			t.Errorf("read again: %v %s", err, cmp.Diff(r.gpu, again.gpu))
		}
	})
}

// However a stream is cut into pieces, it says the same.
func FuzzGPUStream(f *testing.F) {
	for _, o := range gpuOutputs(f) {
		f.Add(o.output, 5)
	}
	f.Fuzz(func(t *testing.T, output []byte, piece int) {
		o := gpuOutput{fields: gpuFields(), output: output}
		_, whole := gpuRead(o, len(output)+1)
		s, cut := gpuRead(o, 1+(piece&0xff))
		if !cmp.Equal(whole, cut) {
			t.Error(cmp.Diff(whole, cut))
		}
		if len(cut.Devices) > gpuMost || len(cut.Reason) > 4*gpuReasonRoom || len(s.said) > 4*gpuReasonRoom {
			t.Errorf("%d devices, %q, %q", len(cut.Devices), cut.Reason, s.said)
		}
		for i, g := range cut.Devices {
			gpuCredible(t, g)
			if g.Index != i {
				t.Errorf("device %d is in place %d", g.Index, i)
			}
		}
	})
}

// One reading of eight devices, from bytes to Latest.
func BenchmarkGPUReading(b *testing.B) {
	var o gpuOutput
	for _, o = range gpuOutputs(b) {
		if o.name == "eight-a10g-560" {
			break
		}
	}
	w := NewGPUWatcher(GPUOptions{Now: gpuNoon})
	s := &gpuStream{w: w, fields: o.fields}
	b.ReportAllocs()
	b.SetBytes(int64(len(o.output)))
	for b.Loop() {
		s.lines.feed(o.output, s.line)
		if r, ok := s.frames.quiet(false); ok {
			s.take(r)
		}
	}
	if r := w.Latest(); len(r.Devices) != 8 {
		b.Fatal(strconv.Itoa(len(r.Devices)) + " devices")
	}
}

func BenchmarkGPULatest(b *testing.B) {
	for _, o := range gpuOutputs(b) {
		if o.name != "eight-a10g-560" {
			continue
		}
		s, _ := gpuRead(o, 512)
		b.ReportAllocs()
		for b.Loop() {
			_ = s.w.Latest()
		}
	}
}
