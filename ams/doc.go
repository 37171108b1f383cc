// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package ams reads an Ant Media Server installation for a node agent: the tree on disk, its release, mode and
// applications, its node address, the service that runs it, and whether its HTTP side responds.
//
//	inst, err := ams.Open("", ams.DefaultDir)
//	if err != nil { … }
//	svc := ams.NewSystemd(ams.DefaultUnit)
//	if err := svc.Restart(ctx); err != nil { … }
//	if _, err := ams.WaitStable(ctx, svc, 5*time.Second); err != nil { … }
//	live := ams.CheckLiveness(ctx, nil, inst.BaseURL())
//
// Every path is below a root directory, also through absolute symbolic links, so that a test tree or an image can be read
// like a running machine.
//
// The package only reads, except for the services, which start and stop the server. It never writes a file: the caller
// writes the bytes of [DropIn]. It uses no cloud, no database and no environment variable, and reports as unknown what it
// cannot find out. Only systemd.go uses D-Bus. The API is not stable yet.
package ams
