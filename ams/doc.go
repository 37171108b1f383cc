// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package ams reads an Ant Media Server installation: its tree, release, mode, applications, address and HTTP health. It
// also starts and stops its service.
//
// Every path is below a root directory, also through absolute symbolic links, so a test tree or an image can be read. The
// package writes no file. The API is not stable yet.
package ams
