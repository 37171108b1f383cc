// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/metadatatest"
)

func TestParseEvents(t *testing.T) {
	events, err := parseEvents([]byte(metadatatest.Fixture(t, "scheduledevents.json")))
	if err != nil || len(events) != 2 || !cloud.ParseTime(events[0].NotBefore, http.TimeFormat).Equal(time.Date(2026, 11, 20, 8, 5, 0, 0, time.UTC)) || events[0].started() || !events[1].started() {
		t.Errorf("%+v, %v", events, err)
	}
	// A text in the place of a list of one is a name, too.
	if events, err := parseEvents([]byte(`{"Events":[{"Resources":"edge_3"},{"Resources":null},{"Resources":["a","b"]}]}`)); err != nil || len(events) != 3 ||
		!slices.Equal(events[0].Resources, []string{"edge_3"}) || len(events[1].Resources) != 0 || len(events[2].Resources) != 2 {
		t.Errorf("%+v, %v", events, err)
	}
	for _, body := range []string{`{"DocumentIncarnation":1}`, `null`, `{"Events":{}}`, `{"Events":null}`, `<html>`, ``} {
		if events, err := parseEvents([]byte(body)); err == nil {
			t.Errorf("%s: %v", body, events)
		}
	}
}

func seeds(f *testing.F) {
	f.Add([]byte(metadatatest.Fixture(f, "instance.json")))
	f.Add([]byte(metadatatest.Fixture(f, "scheduledevents.json")))
	f.Add([]byte(`{"Events":[{"EventId":"\u001b","EventType":"\u0085","EventStatus":"Scheduled","EventSource":"a\nb","DurationInSeconds":1e300}]}`))
	for _, s := range []string{``, `null`, `{}`, `[]`, `{"compute":null,"network":null}`, `{"Events":null}`, `{"Events":[null]}`, "\xff"} {
		f.Add([]byte(s))
	}
}

func FuzzParseInstance(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMachine(b)
		if err != nil {
			return
		}
		must.Equal(t, fmt.Sprintf("length of the id %q", m.Compute.VMID), len(m.Compute.VMID), 36)
		m.scaleSet()
		for _, n := range m.Network.Interface {
			n.reached()
		}
	})
}

func FuzzParseDocument(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		events, _ := parseEvents(b)
		w := &watch{machine: &machine{}, seen: map[string]time.Time{}}
		for _, e := range events {
			n := w.notice(e)
			if n == nil {
				continue
			}
			text := n.ID + n.Who + n.Reason
			if n.Hook != nil {
				text += n.Hook.Name
			}
			if strings.ContainsFunc(text, unicode.IsControl) || n.Past || n.Hook != nil && n.Kind == cloud.Unknown {
				t.Errorf("%+v", n)
			}
		}
	})
}
