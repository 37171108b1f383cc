// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"fmt"
	"strings"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/redact"
)

// formError reports that a release cannot use a connection string.
type formError struct {
	Release ams.Release
	Msg     string
	Hint    string
}

func (e *formError) Error() string {
	return fmt.Sprintf("Ant Media Server %s cannot use this connection string: %s", e.Release, e.Msg)
}

// MongoForm returns the connection string for the files of a release. From the source of AMS:
//
//   - up to 2.4.0 it always prepends mongodb://
//   - 2.4.1 keeps only what begins with mongodb+srv
//   - 2.4.2 keeps what begins with mongodb, even a host of that name
//   - 2.4.3 and later keep mongodb:// and mongodb+srv://
//
// A bare host stays as the vendor's script writes it. An unknown release counts as current. The error is a
// [formError].
func MongoForm(r ams.Release, t cluster.Target) (redact.Secret, error) {
	full := !r.Known() || r.AtLeast(2, 4, 2)
	switch {
	case t.Bare():
		if r.Known() && r.AtLeast(2, 4, 2) && !r.AtLeast(2, 4, 3) && strings.HasPrefix(t.Raw().Reveal(), "mongodb") {
			return t.URI(), nil
		}
		return t.Raw(), nil
	case full:
		return t.URI(), nil
	case t.SRV() && r.AtLeast(2, 4, 1):
		return t.URI(), nil
	case t.SRV():
		return "", &formError{
			Release: r,
			Msg:     "mongodb+srv:// is understood from 2.4.1 on",
			Hint:    "give the hosts themselves, as mongodb://host1,host2/?replicaSet=NAME&tls=true, or upgrade Ant Media Server",
		}
	}
	return t.Schemeless(), nil
}
