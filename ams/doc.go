// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package ams shows an Ant Media Server installation as a node agent needs to
// see it: the tree on disk, its release, its mode and applications, the address
// under which it registers in a cluster, the service that runs it, and whether
// its HTTP side answers.
//
//	inst, err := ams.Open("", ams.DefaultDir)
//	if err != nil { … }
//	svc := ams.NewSystemd(ams.DefaultUnit)
//	if err := svc.Restart(ctx); err != nil { … }
//	if _, err := ams.WaitStable(ctx, svc, 5*time.Second); err != nil { … }
//	live := ams.CheckLiveness(ctx, nil, inst.BaseURL())
//
// Every path is taken below a root directory, also through absolute symbolic
// links, so that a test or an image being built can be looked at like a running
// machine.
//
// The package only looks, except for the services, which start and stop what
// they are told to. It never writes a file: [DropIn] returns bytes, and whoever
// calls it writes these. It knows no cloud and no database, never reads the
// environment, and what it cannot find out it reports as unknown instead of
// guessing. D-Bus is spoken in one file, systemd.go. Its API is not stable
// yet.
package ams
