// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"fmt"
	"strings"

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

// The names of the providers, as --provider takes them. Auto is not one of them: Detect finds the provider.
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
		return nil, fmt.Errorf("%w: %q is not one of %s", ErrUnknownProvider, provider, strings.Join(Names(), ", "))
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
