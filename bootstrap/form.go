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

// FormError says why a release of AMS cannot use a connection string.
type FormError struct {
	Release ams.Release
	Msg     string
	Hint    string
}

func (e *FormError) Error() string {
	return fmt.Sprintf("Ant Media Server %s cannot use this connection string: %s", e.Release, e.Msg)
}

// MongoForm gives the connection string as this release of AMS must find it in
// its files. What AMS does with it, read in its source:
//
//   - up to 2.4.0 it always puts mongodb:// in front, so a URI becomes two;
//   - 2.4.1 passes what begins with mongodb+srv unchanged, nothing else;
//   - 2.4.2 passes whatever begins with the word mongodb unchanged, a bare host
//     of that name too;
//   - from 2.4.3 on it passes mongodb:// and mongodb+srv:// unchanged.
//
// A bare host is written as AMS's own script writes it. An unknown release is
// taken for a current one.
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
		return "", &FormError{
			Release: r,
			Msg:     "mongodb+srv:// is understood from 2.4.1 on",
			Hint:    "give the hosts themselves, as mongodb://host1,host2/?replicaSet=NAME&tls=true, or upgrade Ant Media Server",
		}
	}
	return t.Schemeless(), nil
}
