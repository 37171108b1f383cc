// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"encoding/json"
	"slices"
	"sync"
	"time"
)

// versions is which version of an API is asked for: the newest of those that we know, until the service says that it
// does not have it. What was found out is remembered.
type versions struct {
	mu    sync.Mutex
	known []string // the newest first
	at    string
}

func newVersions(known ...string) *versions { return &versions{known: known, at: known[0]} }

func (v *versions) current() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.at
}

// refused moves on from a version that the service does not have; newest are those that it says it has. It reports
// whether there is another one to try.
func (v *versions) refused(version string, newest []string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.at != version {
		return true // somebody else has moved on already
	}
	if i := slices.Index(v.known, version); i >= 0 {
		for _, older := range v.known[i+1:] {
			// Dates compare as text. A list without order is no help, but no harm either.
			if len(newest) == 0 || older <= slices.Max(newest) {
				v.at = older
				return true
			}
		}
		// A service that has forgotten all that we know: what it has is likely to say the same.
		if len(newest) > 0 && !slices.Contains(v.known, slices.Min(newest)) {
			v.at = slices.Min(newest)
			return true
		}
	}
	// None will do. It may have been the service that was not itself: the next call begins anew.
	v.at = v.known[0]
	return false
}

// ParseNewestVersions reads what a 400 says about the versions that the service has. Not every 400 does.
func ParseNewestVersions(body []byte) []string {
	var doc struct {
		Newest []string `json:"newest-versions"`
	}
	if json.Unmarshal(body, &doc) != nil {
		return nil
	}
	return slices.DeleteFunc(doc.Newest, func(s string) bool {
		_, err := time.Parse(time.DateOnly, s)
		return err != nil
	})
}
