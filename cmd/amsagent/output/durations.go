// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package output

import (
	"fmt"
	"strings"
	"time"

	"github.com/amsagent/amsagent/internal/seconds"
)

// Ago is the time from t to now, such as "12 s ago".
func Ago(now, t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := now.Sub(t)
	switch {
	case d < 0:
		return "in " + Roughly(-d)
	case d < time.Second:
		return "just now"
	}
	return Roughly(d) + " ago"
}

// Ago is [Ago] for the time of the text.
func (w *Text) Ago(t time.Time) string { return Ago(w.Now, t) }

// Roughly rounds a duration to the one unit that matters: 12 s, 5 min, 3 h, 2 d.
func Roughly[D time.Duration | seconds.Duration](duration D) string {
	d := time.Duration(duration)
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Round(time.Second)/time.Second))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d/time.Minute))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d/time.Hour))
	}
	return fmt.Sprintf("%d d", int(d/(24*time.Hour)))
}

// Zoned prints a time with its zone: the reader's need not be the machine's.
func Zoned(t time.Time) string { return t.Format(time.DateTime + " MST") }

// Rounded prints a span with at most two units: 850 ms, 1.2 s, 12 s, 4 min 30 s, 1 h 5 min.
func Rounded[D time.Duration | seconds.Duration](duration D) string {
	d := time.Duration(duration)
	switch {
	case d < 0:
		return "-" + Rounded(-d)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Round(time.Millisecond)/time.Millisecond)
	case d < 10*time.Second:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", d.Seconds()), ".0") + " s"
	case d < time.Minute:
		return fmt.Sprintf("%d s", d.Round(time.Second)/time.Second)
	}
	d = d.Round(time.Second)
	h, m, s := d/time.Hour, d/time.Minute%60, d/time.Second%60
	switch {
	case h > 0 && m > 0:
		return fmt.Sprintf("%d h %d min", h, m)
	case h > 0:
		return fmt.Sprintf("%d h", h)
	case s > 0:
		return fmt.Sprintf("%d min %d s", m, s)
	}
	return fmt.Sprintf("%d min", m)
}
