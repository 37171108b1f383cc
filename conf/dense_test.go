// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/beevik/etree"
)

// TestDenseFiles parses settings files of the largest size that is read, each as dense as its format allows: the server's
// user decides what is in them, and at most four parsed files are held at a time ([FileRecord.Undo]). They, what a plan and
// the undo record hold, and garbage of the same size have to fit into the 256 MB of the daemon's unit.
func TestDenseFiles(t *testing.T) {
	const most = 12 << 20
	xml := func(piece string) []byte {
		const head, tail = "<beans>", "</beans>"
		return []byte(head + strings.Repeat(piece, (MaxSettings-len(head+tail))/len(piece)) + tail)
	}
	var keys bytes.Buffer
	for i := 0; keys.Len() < MaxSettings-4; i++ {
		fmt.Fprintf(&keys, "%03x\n", i%(1<<12))
	}
	for name, tt := range map[string]struct {
		src   []byte
		parse func(src []byte) (any, error)
	}{
		"properties, one letter a line": {bytes.Repeat([]byte("a\n"), MaxSettings/2), parseProperties},
		"properties, many keys":         {keys.Bytes(), parseProperties},
		"properties, an escape each":    {bytes.Repeat([]byte("\\a\n"), MaxSettings/3), parseProperties},
		"container, empty elements":     {xml("<a/>"), parseContainer},
		"container, elements and text":  {xml("<a/>x"), parseContainer},
		"container, elements in turn":   {xml("<a></a>"), parseContainer},
		"container, comments":           {xml("<!---->"), parseContainer},
		"container, attributes":         {[]byte("<beans" + strings.Repeat(" a=''", (MaxSettings-20)/5) + "></beans>"), parseContainer},
		"lines":                         {bytes.Repeat([]byte{'\n'}, MaxSettings), splitLines},
	} {
		before := heap()
		parsed, err := tt.parse(tt.src)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		used := heap() - before
		runtime.KeepAlive(parsed)
		t.Logf("%s: %d kB", name, used>>10)
		if used > most {
			t.Errorf("%s: %d bytes take %d kB, want at most %d", name, len(tt.src), used>>10, most>>10)
		}
	}
}

func parseProperties(src []byte) (any, error) { return ParseProperties(src) }

// parseContainer gives all that [ParseContainer] and the proof of an edit hold of a file.
func parseContainer(src []byte) (any, error) {
	c, err := ParseContainer(src)
	if err != nil {
		return nil, err
	}
	doc := etree.NewDocument()
	if err := doc.ReadFromBytes(src); err != nil {
		return nil, err
	}
	tokens, err := flatten(nil, doc.Child, "")
	return []any{c, doc, tokens}, err
}

func splitLines(src []byte) (any, error) { return bytes.SplitAfter(src, []byte{'\n'}), nil }

// heap is how much memory is in use.
func heap() int64 {
	runtime.GC()
	runtime.GC() // the first one may have ended a cycle that was under way
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
