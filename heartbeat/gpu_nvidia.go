// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// gpuFields are what nvidia-smi is asked for. A driver may know fewer: the
// encoder and the decoder came to this query with the drivers of 2023. One that is not known ends the tool with a message that names
// it, and is left out from then on.
func gpuFields() []string {
	return []string{
		"index", "uuid", "driver_version", "utilization.gpu", "utilization.encoder", "utilization.decoder",
		"memory.used", "memory.total", "name", // last, so that no figure can be cut
	}
}

// gpuLineRoom is the longest line that is read. A row has some 150 bytes.
const gpuLineRoom = 4 << 10

// gpuMost is the most devices that are believed in one reading. The largest
// machines have 16.
const gpuMost = 64

// gpuReasonRoom bounds a reason: it goes into logs and into the registry.
const gpuReasonRoom = 200

// gpuLines cuts a stream into lines, in memory of a fixed size. What is longer
// than a line can be is dropped up to the next line end; what has no line end
// yet is not a line.
type gpuLines struct {
	buf      [gpuLineRoom]byte
	n        int
	skipping bool
}

// feed calls line for each line that p completes. The slice is valid until it
// returns.
func (l *gpuLines) feed(p []byte, line func([]byte)) {
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		part := p
		if i >= 0 {
			part, p = p[:i], p[i+1:]
		} else {
			p = nil
		}
		if l.skipping || l.n+len(part) > len(l.buf) {
			l.skipping, l.n = true, 0
		} else {
			l.n += copy(l.buf[l.n:], part)
		}
		if i < 0 {
			return
		}
		if l.skipping {
			line(nil) // something was there, and it is lost
		} else {
			line(bytes.TrimSpace(l.buf[:l.n]))
		}
		l.skipping, l.n = false, 0
	}
}

// errGPUTorn is a line that began or ended as a row and is none.
var errGPUTorn = errors.New("not a whole row")

// gpuRow is one line about one device.
type gpuRow struct {
	gpu    GPU
	placed bool   // the index is known; it is not of a device that is lost
	values int    // how many readings there are
	wrong  string // what the driver says is wrong with the device
}

// gpuValues holds the readings of a row, in one piece of memory.
type gpuValues struct {
	util, enc, dec float64
	used, total    uint64
}

// parseGPURow reads a row of the query's fields, as --format=csv,noheader,nounits
// prints it. Strings are taken from like where they are the same, since they are
// the same for years.
func parseGPURow(line []byte, fields []string, like []GPU) (gpuRow, error) {
	var r gpuRow
	sep := []byte(",")
	if n := bytes.Count(line, sep) + 1; n != len(fields) {
		// A comma within a number, from a tool that ignores LC_ALL, has no blank
		// behind it.
		if sep = []byte(", "); n < len(fields) || bytes.Count(line, sep)+1 != len(fields) {
			return r, errGPUTorn
		}
	}
	var v gpuValues
	var same GPU
	rest := line
	for _, field := range fields {
		var cell []byte
		cell, rest, _ = bytes.Cut(rest, sep)
		cell = bytes.TrimSpace(cell)
		if len(cell) == 0 { // the tool always says something
			return r, errGPUTorn
		}
		told, wrong := gpuTold(cell)
		if wrong != "" && r.wrong == "" {
			r.wrong = wrong
		}
		var err error
		switch field {
		case "index":
			if !told {
				if wrong == "" {
					return r, errGPUTorn // a device without an index has a fault
				}
				continue
			}
			i, bad := strconv.ParseUint(string(cell), 10, 8)
			if bad != nil || i >= gpuMost {
				return r, errGPUTorn
			}
			r.gpu.Index, r.placed = int(i), true
			if k := slices.IndexFunc(like, func(g GPU) bool { return g.Index == int(i) }); k >= 0 {
				same = like[k]
			}
		case "uuid":
			if told && !bytes.HasPrefix(cell, []byte("GPU-")) {
				return r, errGPUTorn
			}
			r.gpu.UUID = gpuText(cell, told, same.UUID)
		case "name":
			r.gpu.Name = gpuText(cell, told, same.Name)
		case "driver_version":
			if told && (cell[0] < '0' || cell[0] > '9') {
				return r, errGPUTorn
			}
			r.gpu.Driver = gpuText(cell, told, same.Driver)
		case "utilization.gpu":
			r.gpu.Util, err = gpuNumber(cell, told, 100, &v.util)
		case "utilization.encoder":
			r.gpu.Enc, err = gpuNumber(cell, told, 100, &v.enc)
		case "utilization.decoder":
			r.gpu.Dec, err = gpuNumber(cell, told, 100, &v.dec)
		case "memory.used":
			r.gpu.MemUsed, err = gpuMiB(cell, told, &v.used)
		case "memory.total":
			r.gpu.MemTotal, err = gpuMiB(cell, told, &v.total)
		}
		if err != nil {
			return r, err
		}
	}
	if r.gpu.MemUsed != nil && r.gpu.MemTotal != nil && v.used > v.total {
		r.gpu.MemUsed = nil
	}
	// Total memory is known of a device that tells nothing else; it is no sign
	// of life.
	for _, p := range []*float64{r.gpu.Util, r.gpu.Enc, r.gpu.Dec} {
		if p != nil {
			r.values++
		}
	}
	if r.gpu.MemUsed != nil {
		r.values++
	}
	return r, nil
}

// gpuTold says whether a cell holds a value, and if not whether that is a fault:
// what a device does not have is N/A, anything else in brackets is an error.
func gpuTold(cell []byte) (told bool, wrong string) {
	switch {
	case cell[0] == '[' && cell[len(cell)-1] == ']':
		cell = bytes.TrimSpace(cell[1 : len(cell)-1])
	case !bytes.EqualFold(cell, []byte("N/A")) && string(cell) != "ERR!" && !bytes.EqualFold(cell, []byte("Unknown Error")):
		return true, ""
	}
	for _, lacking := range []string{"N/A", "Not Supported", "Not Available", "Not Active"} {
		if strings.EqualFold(string(cell), lacking) {
			return false, ""
		}
	}
	if len(cell) == 0 {
		return false, ""
	}
	return false, gpuReason(cell)
}

func gpuText(cell []byte, told bool, same string) string {
	switch {
	case !told:
		return ""
	case string(cell) == same:
		return same
	}
	return gpuReason(cell)
}

// gpuNumber reads a number into room. One out of its range is not known; what is
// no number at all tells that the line was torn.
func gpuNumber(cell []byte, told bool, highest float64, room *float64) (*float64, error) {
	if !told {
		return nil, nil // nothing told is no error
	}
	// Units, where the tool prints them in spite of nounits.
	number, _, _ := bytes.Cut(cell, []byte(" "))
	if bytes.IndexByte(number, ',') >= 0 {
		number = bytes.ReplaceAll(number, []byte(","), []byte("."))
	}
	for _, c := range number { // ParseFloat knows more: infinity, hexadecimal, 1_000
		if (c < '0' || c > '9') && c != '.' && c != '-' {
			return nil, errGPUTorn
		}
	}
	f, err := strconv.ParseFloat(string(number), 64)
	if err != nil {
		return nil, errGPUTorn
	}
	if f < 0 || f > highest {
		return nil, nil // not credible is not known
	}
	*room = f
	return room, nil
}

func gpuMiB(cell []byte, told bool, room *uint64) (*uint64, error) {
	var mib float64
	p, err := gpuNumber(cell, told, 1<<30, &mib)
	if p == nil || err != nil {
		return nil, err
	}
	*room = uint64(mib * (1 << 20))
	return room, nil
}

// gpuReason makes somebody else's text fit for a log: one line, printable, not
// long.
func gpuReason(b []byte) string {
	if len(b) > gpuReasonRoom {
		b = b[:gpuReasonRoom]
	}
	text := strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, string(b))
	return strings.Join(strings.Fields(text), " ")
}

// gpuUnknownField finds the field that the driver does not know.
func gpuUnknownField(line string) (string, bool) {
	_, rest, ok := strings.Cut(line, `Field "`)
	if !ok {
		return "", false
	}
	field, rest, ok := strings.Cut(rest, `"`)
	return field, ok && strings.Contains(rest, "not a valid field")
}

// gpuComplaint reports whether a line that is no row says that a device, or all
// of them, cannot be read. Other lines are noise: events of the driver, warnings
// of the loader.
func gpuComplaint(line string) bool {
	for _, sign := range []string{
		"Unable to determine the device handle", "GPU is lost", "Unknown Error", "requires reset", "NVIDIA-SMI has failed",
		"Failed to initialize NVML", "No devices were found", "Insufficient Permissions",
	} {
		if strings.Contains(line, sign) {
			return true
		}
	}
	return false
}

// gpuFrames puts rows together into readings of all devices. The tool marks
// neither their beginning nor their end: a reading is over when a device comes
// that it has already, or when nothing comes for some time.
type gpuFrames struct {
	cur    []GPU
	values int
	wrong  []string
	torn   bool
	at     time.Time
	told   bool // it was given out as it is now
	over   bool // so much time passed that it cannot go on

	ahead  []string // said between two readings, and about the next one
	before []GPU    // of the reading before
}

// row takes a row. What comes back is the reading that it ended, if any.
func (f *gpuFrames) row(r gpuRow, at time.Time) (done GPUReading, ok bool) {
	next := 0
	if n := len(f.cur); n > 0 {
		next = f.cur[n-1].Index + 1
	}
	ends := f.over || len(f.before) > 0 && len(f.cur) >= len(f.before) // a device that does not know its own index
	if r.placed {
		ends = r.gpu.Index < next
	}
	if (ends || next >= gpuMost) && len(f.cur) > 0 {
		if !f.told {
			done, ok = f.take()
		}
		f.begin()
		next = 0
	}
	if !r.placed {
		r.gpu.Index = next
	}
	if r.wrong != "" {
		f.wrong = append(f.wrong, "GPU "+strconv.Itoa(r.gpu.Index)+": "+r.wrong)
	}
	f.cur = append(f.cur, r.gpu)
	f.values += r.values
	f.at, f.told, f.over = at, false, false
	return done, ok
}

func (f *gpuFrames) begin() {
	f.cur, f.values, f.torn = f.cur[:0], 0, false
	f.wrong, f.ahead = append(f.wrong[:0], f.ahead...), f.ahead[:0]
	f.told, f.over = false, false
}

// complain takes a line that says what is wrong.
func (f *gpuFrames) complain(reason string) {
	list := &f.wrong
	if f.over {
		list = &f.ahead
	}
	if len(*list) < gpuMost && !slices.Contains(*list, reason) {
		*list = append(*list, reason)
	}
}

// tear takes a line that nobody understands.
func (f *gpuFrames) tear() { f.torn = f.torn || !f.over }

// quiet takes the word that nothing came for a while; long: for so long that the
// next row can only be of the next reading. After a short while only what has
// the devices of the reading before is given out: the others may be on their
// way.
func (f *gpuFrames) quiet(long bool) (done GPUReading, ok bool) {
	if len(f.cur) == 0 {
		return GPUReading{}, false
	}
	if long {
		f.over = true
	}
	if f.told {
		return GPUReading{}, false
	}
	if !long {
		for _, b := range f.before {
			if !slices.ContainsFunc(f.cur, func(g GPU) bool { return g.Index == b.Index }) {
				return GPUReading{}, false
			}
		}
	}
	return f.take()
}

// take makes a reading of what there is.
func (f *gpuFrames) take() (GPUReading, bool) {
	devices := make([]GPU, 0, max(len(f.cur), len(f.before)))
	for _, g := range f.cur {
		// An index that is left out is a device that does not answer. The others
		// keep their places.
		for i := len(devices); i < g.Index; i++ {
			devices = append(devices, f.silent(i))
		}
		devices = append(devices, g)
	}
	if n := len(devices); n < len(f.before) && (f.torn || len(f.wrong) > 0) {
		if len(f.wrong) == 0 {
			f.wrong = append(f.wrong, "rows of nvidia-smi are not whole")
		}
		for i := n; i < len(f.before); i++ {
			devices = append(devices, f.silent(i))
		}
	}
	f.before, f.told = devices, true
	r := GPUReading{State: GPUReady, At: f.at, Devices: devices, Reason: gpuReason([]byte(strings.Join(f.wrong, "; ")))}
	if f.values == 0 && r.Reason != "" {
		r.State, r.Devices = GPUFailing, nil
	}
	return r, true
}

// silent is a device of which nothing is known now but that it is there.
func (f *gpuFrames) silent(i int) GPU {
	g := GPU{Index: i}
	if i < len(f.before) {
		g.Name, g.UUID, g.Driver = f.before[i].Name, f.before[i].UUID, f.before[i].Driver
	}
	return g
}
