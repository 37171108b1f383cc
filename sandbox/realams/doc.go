// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package realams runs real Ant Media Servers for tests: the Community Edition that
// tools/scripts/real.sh fetches (`make real-fetch`), in cluster mode, with a real mongod.
//
// A [World] is a network namespace with a bridge, a MongoDB, publishers and viewers.
// A [Node] is a machine of it: namespaces of its own for network, mounts, processes
// and host name, and an installation in /usr/local/antmedia as the vendor's installer
// leaves it. An agent in it runs as on a machine of an operator, without --root. There
// is no systemd: the service command is [Service].
//
//	w := realams.New(t, realams.Options{Users: map[string]string{"cluster": "secret"}})
//	n := w.Node(t, "2.17.1")
//	n.MustRun(t, agent, "join", "--mongo", w.URI(), "--service-command", realams.Service)
//	n.WaitServed(t, "LiveApp")
//
// THIS IS NOT THE ENTERPRISE EDITION. The three closed beans that cluster mode needs
// are replaced by beans of our own (folder java, compiled at test time against the
// server's jars). They write the node's document and the applications' settings, by
// the server's own code; what Enterprise nodes say to each other is not there.
//
// It needs root, Linux and overlayfs. Everything it starts ends with the test
// process, however that ends. The API is not stable.
package realams
