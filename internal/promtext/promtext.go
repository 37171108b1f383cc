// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package promtext writes Prometheus' text format 0.0.4.
//
// It is written by hand: Prometheus' library adds 2.7 MB to the binary, and the small maintained one writes to standard error
// before main on kernels without pressure stall information.
package promtext

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ContentType is that of a [Page].
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Page is an answer to a scrape.
type Page struct{ bytes.Buffer }

// Series is one line of a family.
type Series struct {
	labels string
	value  *float64
}

// Of is a value with the names and values of its labels in turn. An unknown value is nil and has no line: zero would be wrong,
// and NaN breaks sums.
func Of(value *float64, labels ...string) Series {
	var b strings.Builder
	for i := 0; i+1 < len(labels); i += 2 {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(labels[i] + `="` + labelValue.Replace(strings.ToValidUTF8(labels[i+1], "?")) + `"`)
	}
	return Series{b.String(), value}
}

// labelValue escapes as the text format requires.
var labelValue = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// Family writes the series in the order of their labels, and nothing without a known value.
func (p *Page) Family(kind, name, help string, all ...Series) {
	slices.SortStableFunc(all, func(a, b Series) int { return strings.Compare(a.labels, b.labels) })
	head := fmt.Sprintf("# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	for _, s := range all {
		if s.value == nil {
			continue
		}
		labels := s.labels
		if labels != "" {
			labels = "{" + labels + "}"
		}
		p.WriteString(head + name + labels + " " + strconv.FormatFloat(*s.value, 'f', -1, 64) + "\n")
		head = ""
	}
}

// Gauge writes a family of one series without labels.
func (p *Page) Gauge(name, help string, value *float64) {
	p.Family("gauge", name, help, Series{value: value})
}

// Bool returns 1 or 0.
func Bool(is bool) *float64 {
	if is {
		return new(1.0)
	}
	return new(0.0)
}

// Timestamp returns seconds since 1970, or nil for the zero time.
func Timestamp(t time.Time) *float64 {
	if t.IsZero() {
		return nil
	}
	return new(float64(t.UnixMilli()) / 1000)
}
