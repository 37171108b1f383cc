// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package metadata detects the cloud of this machine and reads what it reports about the machine.
//
//	d, err := metadata.Detect(ctx, opts)          // which cloud, and by what evidence
//	p, err := metadata.Open(d.Provider, opts)     // no request yet
//	inst, err := p.Instance(ctx)                  // id, addresses, tags, group
//
// Detection reads the firmware's strings first and asks the network last, since 169.254.169.254 answers in many places.
// One folder below holds one provider; adding a cloud is a folder and a line in Open.
//
// The id of an Instance names the machine in the registry. Callers keep the one they registered with: a generic id comes
// from cloud-init's instance data where that is there, and early in a boot it is not there yet.
//
// It never asks for credentials or user data, never goes through a proxy, never reads the environment. Tags may hold a
// connection string; see Tags about printing them.
//
// The API is not stable yet.
package metadata
