// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/fakes"
	"github.com/amsagent/amsagent/internal/fakes/replay"
	"github.com/amsagent/amsagent/internal/must"
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

// The whole story on a machine that says by its firmware that it is EC2.
func TestDetectOpenInstance(t *testing.T) {
	f := replay.New(t, replay.Protocol{Token: [2]string{"X-Aws-Ec2-Metadata-Token", "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"}}, map[string]string{
		"/latest/dynamic/instance-identity/document":    `{"accountId":"111122223333","instanceId":"i-0abc1234567890def","region":"eu-west-1","privateIp":"10.0.1.23"}`,
		"/latest/meta-data/tags/instance":               "amsagent:role",
		"/latest/meta-data/tags/instance/amsagent:role": "edge",
	})
	opts := metadata.Options{Root: tree(t, dmi("board_asset_tag=i-0abc1234567890def")), Transport: fakes.Transport{Handler: f}}
	d, err := metadata.Detect(opts)
	must.OK(t, err)
	p, err := metadata.Open(d.Provider, opts)
	must.OK(t, err)
	inst, err := p.Instance(t.Context())
	must.OK(t, err)
	if inst.ID != "i-0abc1234567890def" || inst.Address != netip.MustParseAddr("10.0.1.23") || inst.Tags["amsagent:role"] != "edge" {
		t.Errorf("instance: %+v", inst)
	}
}
