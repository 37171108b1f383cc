// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/amsagent/amsagent/metadata/alibaba"
	"github.com/amsagent/amsagent/metadata/aws"
	"github.com/amsagent/amsagent/metadata/azure"
	"github.com/amsagent/amsagent/metadata/cloud"
	"github.com/amsagent/amsagent/metadata/gcp"
	"github.com/amsagent/amsagent/metadata/generic"
)

// The types that callers and providers share live in package cloud, which the providers can import.
type (
	// Instance is what a cloud, or the machine itself, says about this machine.
	Instance = cloud.Instance
	// Provider reads one cloud's metadata.
	Provider = cloud.Provider
	// TagReader is a Provider that can read tags and group alone.
	TagReader = cloud.TagReader
	// TagSet is the part of Instance that may come later than the rest.
	TagSet = cloud.TagSet
	// Tags are the tags of an instance; printed as a whole they hide what could be a password.
	Tags = cloud.Tags
	// Options are the settings of detection and of every provider.
	Options = cloud.Options
	// Error says what was asked of which service, what came back, and what to do.
	Error = cloud.Error
)

// What a caller may branch on; see package cloud.
var (
	ErrNotThisCloud    = cloud.ErrNotThisCloud
	ErrNotReady        = cloud.ErrNotReady
	ErrNotFound        = cloud.ErrNotFound
	ErrForbidden       = cloud.ErrForbidden
	ErrBadAnswer       = cloud.ErrBadAnswer
	ErrUnknownProvider = cloud.ErrUnknownProvider
)

// The names of the providers, as --provider takes them. Auto is none: Detect finds which.
const (
	AWS     = aws.Name
	Azure   = azure.Name
	Alibaba = alibaba.Name
	GCP     = gcp.Name
	Generic = generic.Name
)

// Names returns the names that Open knows, in the order of help texts.
func Names() []string { return []string{AWS, Azure, Alibaba, GCP, Generic} }

// Open opens a provider by its name. It makes no request.
func Open(provider string, opts Options) (Provider, error) {
	switch provider {
	case AWS:
		return open(aws.New(opts))
	case Azure:
		return open(azure.New(opts))
	case Alibaba:
		return open(alibaba.New(opts))
	case GCP:
		return open(gcp.New(opts))
	case Generic:
		return open(generic.New(opts))
	default:
		return nil, fmt.Errorf("%w: %q is none of %s", ErrUnknownProvider, provider, strings.Join(Names(), ", "))
	}
}

// open keeps a nil pointer of a provider from becoming a Provider that is not nil.
func open[P Provider](p P, err error) (Provider, error) {
	if err != nil {
		return nil, err
	}
	return p, nil
}

// HintOf returns the hint that an error of this package carries, or "".
func HintOf(err error) string { return cloud.HintOf(err) }

// Lookup returns the first of several tags that is set, for those who chose tag names of their own.
func Lookup(tags map[string]string, keys ...string) (value string, ok bool) {
	for _, k := range keys {
		if v := strings.TrimSpace(tags[k]); v != "" {
			return v, true
		}
	}
	return "", false
}

// The bounds of WaitForTags where the caller gives none.
const (
	// defaultTagWait: an Auto Scaling group is known to tag an instance up to about a minute after it boots.
	defaultTagWait = time.Minute
	// defaultTagInterval is kind to a service that throttles.
	defaultTagInterval = 2 * time.Second
)

// TagWait are the settings of WaitForTags; the zero value works.
type TagWait struct {
	// Timeout bounds the whole waiting.
	Timeout time.Duration
	// Interval is the time between two readings.
	Interval time.Duration
	// Log gets a line when the waiting begins.
	Log *slog.Logger
}

// WaitForTags reads tags and group until enough says that they will do. A scaling group tags an instance after it has
// started, so a role read too early is no role. It returns the last set read, with an error that matches ErrNotReady
// when the time was up, and at once when the service refuses or when the provider has no tags to wait for (ErrNotFound).
func WaitForTags(ctx context.Context, p Provider, w TagWait, enough func(TagSet) bool) (TagSet, error) {
	r, ok := p.(TagReader)
	if !ok {
		return TagSet{}, &Error{Provider: p.Name(), Item: "tags", Kind: ErrNotFound, Cause: errors.New("this provider knows no tags")}
	}
	if w.Timeout <= 0 {
		w.Timeout = defaultTagWait
	}
	if w.Interval <= 0 {
		w.Interval = defaultTagInterval
	}
	if w.Log == nil {
		w.Log = slog.New(slog.DiscardHandler)
	}
	bound, cancel := context.WithTimeout(ctx, w.Timeout)
	defer cancel()
	var last TagSet
	for n := 1; ; n++ {
		set, err := r.ReadTags(bound)
		set.Bound()
		last = set
		switch {
		case err == nil && enough(set):
			return set, nil
		case err != nil && bound.Err() == nil && !errors.Is(err, ErrNotReady):
			return set, err
		}
		if n == 1 {
			w.Log.Info("waiting for the instance's tags", "provider", p.Name(), "timeout", w.Timeout, "hint", last.Hint)
		}
		timer := time.NewTimer(w.Interval)
		select {
		case <-bound.Done():
			timer.Stop()
			if err := ctx.Err(); err != nil {
				return last, fmt.Errorf("waiting for the instance's tags: %w", err)
			}
			return last, &Error{
				Provider: p.Name(), Item: "tags", Kind: ErrNotReady, Attempts: n, Hint: last.Hint, Context: bound.Err(),
				Cause: fmt.Errorf("what was waited for is still not there after %v", w.Timeout),
			}
		case <-timer.C:
		}
	}
}
