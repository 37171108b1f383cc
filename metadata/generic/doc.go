// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package generic tells what a machine knows about itself where no cloud's metadata is read: cloud-init's instance data,
// else the machine id, the host name and the address of the default route.
//
// It talks to nobody. The machine id itself never leaves this package: systemd asks that it be kept confidential, so an
// id derived from it by systemd's own method (sd_id128_get_machine_app_specific) takes its place.
//
// The API is not stable yet.
package generic
