// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package gcp

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// The values of instance/maintenance-event.
const (
	MaintenanceMigrate   = "MIGRATE_ON_HOST_MAINTENANCE"
	MaintenanceTerminate = "TERMINATE_ON_HOST_MAINTENANCE"
)

// Preempted is the value of instance/preempted on a machine that is being taken.
const Preempted = "TRUE"

// PendingStop is the value of instance/shutdown-details/stop-state while the guest is given time.
const PendingStop = "PENDING_STOP"

var signalWord = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`)

// ParseWord reads an item that is one word in capitals, such as TRUE or NONE; an empty one is "".
func ParseWord(body []byte) (string, error) {
	s := strings.ToUpper(strings.TrimSpace(string(body)))
	if s != "" && !signalWord.MatchString(s) {
		return "", errors.New("not a word")
	}
	return s, nil
}

// Shutdown is what instance/shutdown-details/ tells of a graceful shutdown.
type Shutdown struct {
	// State is the stop state, Target what the machine becomes: STOPPED, DELETED, SUSPENDED.
	State, Target string
	// Requested is when it began, Max how long the guest may take; zero is not told.
	Requested time.Time
	Max       time.Duration
	// Unknown are names of fields that this version does not know.
	Unknown []string
}

// Ends is when the machine goes, seen at a moment when it had begun; zero is not told.
func (s Shutdown) Ends(seen time.Time) time.Time {
	if s.Max <= 0 {
		return time.Time{}
	}
	from := s.Requested
	// The cloud's clock against ours: what began later than now, or would be over by now, began now.
	if from.IsZero() || from.After(seen) || !from.Add(s.Max).After(seen) {
		from = seen
	}
	return from.Add(s.Max)
}

// maxShutdown is the longest graceful shutdown that can be asked for, with room for more to come.
const maxShutdown = 24 * time.Hour

// ParseShutdown reads instance/shutdown-details/?recursive=true. Its fields have the names of the API's, which is
// documented; how a duration is written in the metadata is not (UNCONFIRMED), so a number of seconds, one with an s and
// the API's object are all read.
func ParseShutdown(body []byte) (Shutdown, error) {
	fields, err := object(body)
	if err != nil {
		return Shutdown{}, err
	}
	var s Shutdown
	for k, raw := range fields {
		var err error
		switch plainKey(k) {
		case "stopstate":
			s.State, err = text(raw)
		case "targetstate":
			s.Target, err = text(raw)
		case "requesttimestamp":
			s.Requested, err = moment(raw)
		case "maxduration":
			s.Max, err = duration(raw)
		default:
			s.Unknown = append(s.Unknown, k)
		}
		if err != nil {
			return Shutdown{}, fmt.Errorf("field %s: %w", k, err)
		}
	}
	if !plainOrEmpty(s.State) || !plainOrEmpty(s.Target) {
		return Shutdown{}, errors.New("a state is not a word")
	}
	return s, nil
}

func plainOrEmpty(s string) bool { return s == "" || signalWord.MatchString(strings.ToUpper(s)) }

// plainKey makes one of max-duration, max_duration and maxDuration.
func plainKey(k string) string {
	return strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(k))
}

// moment reads a time; an empty one is zero.
func moment(raw json.RawMessage) (time.Time, error) {
	s, err := text(raw)
	if err != nil || s == "" {
		return time.Time{}, err
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, errors.New("not a time")
	}
	return t, nil
}

func duration(raw json.RawMessage) (time.Duration, error) {
	s := string(raw)
	switch {
	case s == "null" || s == "":
		return 0, nil
	case s[0] == '{':
		fields, err := object(raw)
		if err != nil {
			return 0, err
		}
		return duration(fields["seconds"])
	case s[0] == '"':
		var err error
		if s, err = text(raw); err != nil {
			return 0, err
		}
		s = strings.TrimSuffix(s, "s")
	}
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || n < 0 || n > maxShutdown.Seconds() {
		return 0, errors.New("not a number of seconds")
	}
	return time.Duration(n * float64(time.Second)), nil
}

// Maintenance is what instance/upcoming-maintenance tells: nothing, or when the host is to be looked after.
type Maintenance struct {
	// Status is PENDING or ONGOING; "" is that nothing is planned.
	Status, Type string
	// Start is when it begins at the earliest.
	Start time.Time
}

// ParseUpcoming reads instance/upcoming-maintenance?alt=json. Seen in the field are the word NONE, an object with an
// error that says that there is nothing yet, and the fields with and without an object around them, in two spellings.
func ParseUpcoming(body []byte) (Maintenance, error) {
	if word, err := ParseWord([]byte(strings.Trim(strings.TrimSpace(string(body)), `"`))); err == nil {
		switch word {
		case "", "NONE":
			return Maintenance{}, nil
		}
		return Maintenance{}, errors.New("neither NONE nor a JSON object")
	}
	fields, err := object(body)
	if err != nil {
		return Maintenance{}, err
	}
	if len(fields) == 1 {
		for _, raw := range fields {
			if inner, err := object(raw); err == nil {
				fields = inner
			}
		}
	}
	var m Maintenance
	for k, raw := range fields {
		var err error
		switch plainKey(k) {
		case "maintenancestatus":
			m.Status, err = text(raw)
		case "type":
			m.Type, err = text(raw)
		case "windowstarttime":
			m.Start, err = moment(raw)
		case "starttime":
			if m.Start.IsZero() {
				m.Start, err = moment(raw)
			}
		}
		if err != nil {
			return Maintenance{}, fmt.Errorf("field %s: %w", k, err)
		}
	}
	if !plainOrEmpty(m.Status) || !plainOrEmpty(m.Type) {
		return Maintenance{}, errors.New("a status is not a word")
	}
	if m.Start.IsZero() {
		// {"error": "no notifications have been received yet, try again later"}, or nothing that can be acted upon.
		return Maintenance{}, nil
	}
	if m.Status == "" {
		m.Status = "PENDING"
	}
	return m, nil
}
