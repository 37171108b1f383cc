// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package metadata detects the cloud of this machine and opens its provider. Each provider has a subfolder.
//
// The API, with that of the subpackages, is not stable yet.
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

// The types are in package cloud, which providers can import.
type (
	// Instance describes this machine.
	Instance = cloud.Instance
	// Provider reads one cloud's metadata.
	Provider = cloud.Provider
	// Tags redact secrets when printed.
	Tags = cloud.Tags
	// Options configure detection and providers.
	Options = cloud.Options
	// Error describes a failed metadata request.
	Error = cloud.Error
)

// Provider names, as in --provider, which also takes auto.
const (
	AWS     = aws.Name
	Azure   = azure.Name
	Alibaba = alibaba.Name
	GCP     = gcp.Name
	Generic = generic.Name
)

// Names returns the names in the order of help texts.
func Names() []string { return []string{AWS, Azure, Alibaba, GCP, Generic} }

// Open opens a provider without a request, or returns [cloud.ErrUnknownProvider].
func Open(provider string, opts Options) (p Provider, err error) {
	switch provider {
	case AWS:
		p, err = aws.New(opts)
	case Azure:
		p, err = azure.New(opts)
	case Alibaba:
		p, err = alibaba.New(opts)
	case GCP:
		p, err = gcp.New(opts)
	case Generic:
		p, err = generic.New(opts)
	default:
		err = fmt.Errorf("%w: %q is not one of %s", cloud.ErrUnknownProvider, provider, strings.Join(Names(), ", "))
	}
	if err != nil {
		return nil, err // p may hold a nil pointer
	}
	return p, nil
}
