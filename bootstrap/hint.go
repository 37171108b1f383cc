// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"

	"github.com/amsagent/amsagent/cluster"
)

// MongoHint is the next thing to do about a failure of MongoDB; "" where there
// is nothing better to say than the error itself.
func MongoHint(err error) string {
	var e *cluster.Error
	if !errors.As(err, &e) {
		return ""
	}
	switch e.Kind {
	case cluster.KindDNS:
		return "check the host name, or give the IP address; the name must resolve on this machine"
	case cluster.KindRefused:
		return "check that mongod runs and listens on that address (net.bindIp), and that no firewall rejects the port"
	case cluster.KindUnreachable, cluster.KindTimeout:
		return "the security group of the database must admit its port from this subnet"
	case cluster.KindTLS:
		return "give tls=true exactly where the server wants TLS, and the CA it is signed by in tlsCAFile"
	case cluster.KindAuth:
		return "check user name, password and authSource; special characters in them must be percent-encoded"
	case cluster.KindForbidden:
		return "give the user the role readWrite on the databases amsagent and clusterdb, and on those of the applications"
	case cluster.KindNotPrimary:
		return "the replica set has no primary now: look at rs.status()"
	case cluster.KindConfig:
		return "mend the connection string"
	default:
		return ""
	}
}
