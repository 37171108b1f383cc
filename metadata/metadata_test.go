// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/metadata/cloud"
)

func TestOpen(t *testing.T) {
	for _, name := range metadata.Names() {
		p, err := metadata.Open(name, metadata.Options{Root: t.TempDir()})
		if err != nil || p == nil || p.Name() != name {
			t.Errorf("Open(%s) = %v, %v", name, p, err)
		}
	}
	p, err := metadata.Open("aws ", metadata.Options{})
	if !errors.Is(err, cloud.ErrUnknownProvider) || p != nil || !strings.Contains(err.Error(), "aws, azure, alibaba, gcp, generic") {
		t.Errorf("Open(\"aws \") = %v, %v", p, err)
	}
	// A nil pointer in an interface is not nil.
	if p, err := metadata.Open("aws", metadata.Options{Endpoints: map[string]string{"aws": "nonsense"}}); err == nil || p != nil {
		t.Errorf("Open with a bad endpoint = %v, %v", p, err)
	}
}
