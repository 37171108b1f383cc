// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package fakeaws is a fake of the metadata service that an EC2 instance sees at
// 169.254.169.254: session tokens with the semantics of IMDSv2, the items an agent
// asks for, tags that the operator may not have switched on, and faults that can
// be switched on and off while it runs.
//
// Beside it stands a fake of the Auto Scaling API with its groups and hooks, see
// [AutoScaling]: it moves instances through their states in time, tells their
// metadata services, and keeps books. It knows nothing of AWS's other services.
//
// Both answer on loopback unless told otherwise. The API is not stable.
package fakeaws
