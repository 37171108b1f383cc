// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/amsagent/amsagent/internal/plain"
)

// What the record of a drain may hold. Notices come from a metadata service, and
// from whoever may call the control socket: one that invents a new event at each
// poll must not make a record that the next start of the daemon cannot read.
const (
	maxNotices    = 32
	maxNoticeText = 40 << 10 // bytes of all notices together
	maxHooks      = 32
	maxHookText   = 20 << 10 // bytes of all hooks together
	maxIDText     = 256
	maxWordText   = 512 // of a reason, or of a name of a person, program or source
	maxNameText   = 1 << 10
	maxTokenText  = 4 << 10
	maxOthersText = 8 << 10
	// maxRecord is far more than all of these as JSON, and less than what is read.
	maxRecord = 256 << 10
)

// bounded is a notice whose texts have bounds. A hook that no cloud can have sent
// is left out: a part of its name would be another hook's.
func bounded(n Notice) Notice {
	n.ID = boundedID(n.ID)
	for _, text := range []*string{&n.Source, &n.Reason, &n.Who, &n.By} {
		*text = plain.Truncate(oneLine(plain.Truncate(*text, maxWordText)), maxWordText)
	}
	if h := n.Hook; h != nil && !hookBounded(*h) {
		n.Hook = nil
	}
	return n
}

// boundedID keeps different ids different.
func boundedID(id string) string {
	if id = strings.ToValidUTF8(id, "?"); len(id) <= maxIDText {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return plain.Truncate(id, maxIDText/2) + hex.EncodeToString(sum[:16])
}

func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// hookBounded reports whether the hook is one that a cloud can have sent.
func hookBounded(h Hook) bool {
	plain := func(s string, most int) bool { return len(s) <= most && s == oneLine(s) }
	others := 0
	for _, o := range h.Others {
		if others += len(o); !plain(o, maxNameText) {
			return false
		}
	}
	return plain(h.Provider, maxNameText) && plain(h.Group, maxNameText) && plain(h.Name, maxNameText) && plain(h.ID, maxNameText) && plain(h.Token, maxTokenText) &&
		others <= maxOthersText
}

// hookText is how many bytes of text the hook has.
func hookText(h Hook) int {
	n := len(h.Provider) + len(h.ID) + len(h.Group) + len(h.Name) + len(h.Token)
	for _, o := range h.Others {
		n += len(o)
	}
	return n
}

func (n *Notice) text() int {
	size := len(n.ID) + len(n.Source) + len(n.Reason) + len(n.Who) + len(n.By)
	if n.Hook != nil {
		size += hookText(*n.Hook)
	}
	return size
}

// bound drops the notices that are too many: first those that weigh least, of
// these the ones whose deadline comes last. Those of a person and of the service
// manager stay. dropped tells that there were any.
func (r *record) bound() (dropped bool) {
	own := func(n Notice) bool { return n.Kind == Ask || n.Kind == Shutdown }
	order := make([]int, len(r.Notices))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		a, b := r.Notices[i], r.Notices[j]
		switch {
		case own(a) != own(b):
			return map[bool]int{true: -1, false: 1}[own(a)]
		case goalOf(a.Kind) != goalOf(b.Kind):
			return cmp.Compare(goalOf(b.Kind), goalOf(a.Kind))
		case a.Deadline.IsZero() != b.Deadline.IsZero():
			return map[bool]int{true: 1, false: -1}[a.Deadline.IsZero()]
		}
		return a.Deadline.Compare(b.Deadline)
	})
	keep := make([]bool, len(r.Notices))
	count, size := 0, 0
	for _, i := range order {
		if text := r.Notices[i].text(); count < maxNotices && size+text <= maxNoticeText {
			keep[i] = true
			count, size = count+1, size+text
		}
	}
	kept := make([]Notice, 0, count)
	for i, n := range r.Notices { // in the order in which they came
		if keep[i] {
			kept = append(kept, n)
		}
	}
	dropped = count < len(r.Notices)
	r.Notices = kept
	return dropped
}

// roomFor makes room for one more hook, in place of those that are over or that no
// notice in force names. It reports whether there is any.
func (r *record) roomFor(h Hook) bool {
	for {
		if len(r.Hooks) < maxHooks && hookText(h)+r.hookText() <= maxHookText {
			return true
		}
		i := slices.IndexFunc(r.Hooks, func(a waiter) bool {
			return a.End != "" || !slices.ContainsFunc(r.Notices, func(n Notice) bool { return n.Hook != nil && a.same(*n.Hook) })
		})
		if i < 0 {
			return false
		}
		r.Hooks = slices.Delete(r.Hooks, i, i+1)
	}
}

// hookText is how many bytes of text all hooks have.
func (r *record) hookText() (n int) {
	for i := range r.Hooks {
		n += hookText(r.Hooks[i].Hook)
	}
	return n
}

// manyNotices is from how many notices in force on each new one is no news.
const manyNotices = 8

// noteNotice tells of a notice that came, once a minute where there are many.
func (m *Manager) noteNotice(n Notice, now time.Time) {
	if len(m.r.Notices) > manyNotices && now.Sub(m.noticed) < troubleEvery {
		return
	}
	m.noticed = now
	text := noticeWord(n)
	if n.Kind != Ask {
		text = "notice: " + text
	}
	m.noteLocked(text)
}
