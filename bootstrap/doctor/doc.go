// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package doctor checks a machine before or after a join, and while an image is built: all checks of a join and more, in
// parallel, each within its time limit. It changes nothing.
//
// A check that cannot be made is neither good nor bad, and has the reason.
//
// The package prints nothing and reads neither flags nor the environment. Its API is not stable yet.
package doctor
