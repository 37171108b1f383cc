// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package fakegpu is a stand-in for nvidia-smi, the program that comes with
// NVIDIA's driver: it answers --query-gpu in CSV, once or in a loop, knows only the
// fields that its driver knows, and fails in the ways in which the real one does.
//
// What it tells and how it fails stands in a file ([State]), which it reads before
// each round: its caller gives it no environment, and a test changes its mind
// while it runs. [Install] makes a machine of a folder: the tool, and what a driver
// leaves in /dev, /proc and /sys; before that, the folder is a machine where the
// driver appears later.
//
// It is written after the tool's documentation and after outputs that people
// quoted, not after a device. The API is not stable.
package fakegpu
