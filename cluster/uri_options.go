// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"strconv"
	"strings"
)

// valueKind says what the value of an option has to look like.
type valueKind int

const (
	anyValue valueKind = iota
	boolValue
	intValue
	emptyOK // may be empty: readPreferenceTags= means "any"
)

// uriOption is what we know of one option of a connection string. Two drivers
// read the string, AMS's (Java) and ours (Go), and they do not know the same
// options: an operator must hear of a difference before it surprises him.
type uriOption struct {
	kind    valueKind
	secret  bool   // the value is never shown
	srvOnly bool   // refused by both drivers without mongodb+srv://
	warning string // shown when the option is used
}

const (
	warnJVMTrust = "AMS's Java driver ignores it and uses the trust and key stores of its JVM"
	warnGoOnly   = "AMS's Java driver ignores it"
	warnNoProxy  = "amsagent connects without the proxy"
)

// uriOptionByName returns what is known of an option; names have no case.
func uriOptionByName(name string) (uriOption, bool) {
	switch strings.ToLower(name) {
	case "appname", "authmechanism", "authsource", "compressors", "readconcernlevel", "readpreference",
		"replicaset", "servermonitoringmode", "uuidrepresentation", "w", "gssapiservicename":
		return uriOption{}, true
	case "authmechanismproperties":
		return uriOption{secret: true}, true
	case "readpreferencetags":
		return uriOption{kind: emptyOK}, true
	case "directconnection", "loadbalanced", "journal", "retryreads", "retrywrites", "ssl", "tls",
		"tlsinsecure", "tlsallowinvalidhostnames", "sslinvalidhostnameallowed":
		return uriOption{kind: boolValue}, true
	case "connecttimeoutms", "heartbeatfrequencyms", "localthresholdms", "maxconnecting", "maxidletimems",
		"maxlifetimems", "maxpoolsize", "maxstalenessseconds", "minpoolsize", "serverselectiontimeoutms",
		"sockettimeoutms", "timeoutms", "waitqueuetimeoutms", "wtimeoutms", "zlibcompressionlevel":
		return uriOption{kind: intValue}, true
	case "srvmaxhosts":
		return uriOption{kind: intValue, srvOnly: true}, true
	case "srvservicename":
		return uriOption{srvOnly: true}, true
	case "tlscafile", "sslcertificateauthorityfile", "tlscertificatekeyfile", "sslclientcertificatekeyfile",
		"tlscertificatefile", "tlsprivatekeyfile":
		return uriOption{warning: warnJVMTrust}, true
	case "tlscertificatekeyfilepassword", "sslclientcertificatekeypassword":
		return uriOption{secret: true, warning: warnJVMTrust}, true
	case "tlsdisablecertificaterevocationcheck", "tlsdisableocspendpointcheck", "sslinsecure":
		return uriOption{kind: boolValue, warning: warnGoOnly}, true
	case "zstdcompressionlevel", "maxadaptiveretries":
		return uriOption{kind: intValue, warning: warnGoOnly}, true
	case "connect", "heartbeatintervalms", "maxstaleness", "enableoverloadretargeting":
		return uriOption{warning: warnGoOnly}, true
	case "proxyhost", "proxyusername":
		return uriOption{warning: warnNoProxy}, true
	case "proxyport":
		return uriOption{kind: intValue, warning: warnNoProxy}, true
	case "proxypassword":
		return uriOption{secret: true, warning: warnNoProxy}, true
	case "safe", "j", "fsync", "wtimeout", "slaveok", "waitqueuemultiple":
		return uriOption{warning: "it was removed from MongoDB's drivers long ago"}, true
	}
	return uriOption{}, false
}

// wrongValue says what the value of an option should have been, or "".
func (o uriOption) wrongValue(value string) string {
	switch o.kind {
	case boolValue:
		if value != "true" && value != "false" {
			return "has to be true or false"
		}
	case intValue:
		if _, err := strconv.ParseInt(value, 10, 32); err != nil {
			return "has to be a whole number"
		}
	case anyValue:
		if value == "" {
			return "has no value"
		}
	case emptyOK:
	}
	return ""
}

// needsNoPassword are the mechanisms for which a user name alone is enough.
func needsNoPassword(mechanism string) bool {
	switch strings.ToUpper(mechanism) {
	case "MONGODB-X509", "GSSAPI", "MONGODB-OIDC":
		return true
	}
	return false
}
