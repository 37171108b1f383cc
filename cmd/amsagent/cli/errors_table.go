// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"slices"
	"syscall"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/output"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/lb"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// Ids of errors are an interface: people search for them, and each has a page.
const (
	idFailed       = "AGENT-FAILED"
	idUsage        = "AGENT-USAGE"
	idConfig       = bootstrap.IDConfig
	idConfigSecret = settings.IDSecret
	idOutput       = "AGENT-OUTPUT"
	idInterrupted  = "AGENT-INTERRUPTED"
	idTimeout      = "AGENT-TIMEOUT"
	idPermission   = "AMS-PERMISSION"
	idDiskFull     = "AMS-DISK-FULL"
	idReadOnly     = "AMS-READ-ONLY"
	idMongoMissing = "AMS-MONGO-MISSING"
	idPreflight    = "AGENT-PREFLIGHT"
	idLocked       = "AGENT-LOCKED"
	idService      = "AMS-SERVICE"
	idNotSeen      = "AMS-NOT-SEEN"
	idNotServing   = "AMS-NOT-SERVING"
	idNoDaemon     = "AGENT-DAEMON-DOWN"
	idOddDaemon    = "AGENT-DAEMON-VERSION"
	idLostDaemon   = "AGENT-DAEMON-LOST"
	idRefused      = "AGENT-REFUSED"
	idUndrained    = "AGENT-DRAIN-CANCELLED"
	idNotNode      = "AGENT-NOT-NODE"
	idEvent        = "AGENT-EVENT"

	idRemoteDrain    = "AGENT-REMOTE-DRAIN"
	idBalanceHeld    = "AGENT-BALANCE-HELD"
	idBalanceSlots   = "AGENT-BALANCE-SLOTS"
	idBalanceHAProxy = "AGENT-BALANCE-HAPROXY"

	idMongo            = "AMS-MONGO"
	idMongoDNS         = "AMS-MONGO-DNS"
	idMongoRefused     = "AMS-MONGO-REFUSED"
	idMongoUnreachable = "AMS-MONGO-UNREACHABLE"
	idMongoTimeout     = "AMS-MONGO-TIMEOUT"
	idMongoLost        = "AMS-MONGO-LOST"
	idMongoTLS         = "AMS-MONGO-TLS"
	idMongoAuth        = "AMS-MONGO-AUTH"
	idMongoForbidden   = "AMS-MONGO-FORBIDDEN"
	idMongoNotPrimary  = "AMS-MONGO-NOT-PRIMARY"
	idMongoUnsupported = "AMS-MONGO-UNSUPPORTED"
	idMongoConfig      = "AMS-MONGO-CONFIG"
	idMongoTooMany     = "AMS-MONGO-TOO-MANY"

	idMetadataWrongCloud = "AGENT-METADATA-WRONG-CLOUD"
	idMetadataNotReady   = "AGENT-METADATA-NOT-READY"
	idMetadataNotFound   = "AGENT-METADATA-NOT-FOUND"
	idMetadataForbidden  = "AGENT-METADATA-FORBIDDEN"
	idMetadataBadAnswer  = "AGENT-METADATA-BAD-ANSWER"
	idMetadataUnknown    = "AGENT-METADATA-UNKNOWN"
)

// errNoMongo: no setting, no tag and no file says where MongoDB is.
var errNoMongo = errors.New("no MongoDB address is known")

var errHeld = errors.New("servers stay in the list that the cluster has lost")

// errorClass maps what a library returns to an id, an exit code and advice.
type errorClass struct {
	id    string
	exit  int
	match func(error) bool
	// hint may look at the error and at the machine to be true; nil means no advice.
	hint func(err error, g *globals) []string
}

// errorTable gives a library's error its id, exit code and hints. The first row that matches wins.
func errorTable(euid int) []errorClass {
	return []errorClass{
		{idInterrupted, exitInterrupted, as[*interruptedError], nil},
		// One answer for every command, and before the settings: only root may read the address of MongoDB.
		{bootstrap.IDRoot, exitPreflight, needsRoot(euid), say(bootstrap.RootHint)},

		// Settings.
		{idConfigSecret, exitUsage, settingThat(func(e *settings.Error) bool { return e.ID == idConfigSecret }), settingHints},
		{idUsage, exitUsage, settingThat(func(e *settings.Error) bool { return e.Layer == settings.FromFlag }), settingHints},
		{idConfig, exitUsage, as[*settings.Error], settingHints},
		// Before the missing address: a tag may have it.
		{idMetadataNotReady, exitFailed, is(cloud.ErrNotReady), metadataHint},
		{idMongoMissing, exitUsage, is(errNoMongo), say("give --mongo ADDRESS, or AMSAGENT_MONGO, or mongo: in config.yaml, or the instance tag amsagent:mongo (a join waits for it with --wait-for-tags 5m)")},

		// MongoDB. Each kind of failure wants something else done.
		{idMongoTooMany, exitFailed, is(cluster.ErrTooMany), say("delete those that no server writes any more, and find out what wrote them: amsagent doctor --explain " + idMongoTooMany)},
		{idMongoDNS, exitFailed, ofKind(cluster.KindDNS), mongoHint("the name must resolve on this machine: check its spelling, and the DNS settings of this network")},
		{idMongoRefused, exitFailed, ofKind(cluster.KindRefused), mongoHint("mongod must run there and listen on that address (net.bindIp), and the security group of the database must admit this subnet")},
		{idMongoUnreachable, exitFailed, ofKind(cluster.KindUnreachable), mongoHint("this machine needs a route to that network: check the subnet, peering and the network's state")},
		{idMongoTimeout, exitFailed, ofKind(cluster.KindTimeout), mongoHint("a firewall or security group that drops packets looks like this: it must admit the port from this subnet")},
		{idMongoLost, exitFailed, ofKind(cluster.KindLost), mongoHint("run the same command again; if it happens each time, look with `journalctl -u mongod` on the database")},
		{idMongoTLS, exitFailed, ofKind(cluster.KindTLS), mongoHint("the certificate must be valid for that name, and its authority known to this machine or named by tlsCAFile in the URI")},
		{idMongoAuth, exitFailed, ofKind(cluster.KindAuth), mongoHint("check user, password and authSource in the URI; @ : / ? # % in a password must be percent-encoded")},
		{idMongoForbidden, exitFailed, ofKind(cluster.KindForbidden), forbiddenHint},
		{idMongoNotPrimary, exitFailed, ofKind(cluster.KindNotPrimary), mongoHint("name all members and replicaSet in the URI, or wait until the replica set has a primary")},
		{idMongoUnsupported, exitFailed, ofKind(cluster.KindUnsupported), mongoHint("use MongoDB 4.4 or later, and an authMechanism that this server has")},
		{idMongoConfig, exitUsage, ofKind(cluster.KindConfig), mongoHint("see the cause, and put the MongoDB address right")},
		{idMongo, exitFailed, func(err error) bool { k := cluster.KindOf(err); return k != "" && k != cluster.KindCanceled }, nil},

		// The result was made and could not be delivered. Stands before the errno that caused it.
		{idOutput, exitFailed, as[*output.Error], nil},

		// The cloud's metadata. Before the deadlines, which its errors wrap.
		{idMetadataForbidden, exitFailed, is(cloud.ErrForbidden), metadataHint},
		{idMetadataWrongCloud, exitFailed, is(cloud.ErrNotThisCloud), metadataHint},
		{idMetadataNotFound, exitFailed, is(cloud.ErrNotFound), metadataHint},
		{idMetadataBadAnswer, exitFailed, is(cloud.ErrBadAnswer), metadataHint},
		{idMetadataUnknown, exitUsage, is(cloud.ErrUnknownProvider), say("leave --provider to auto, or take generic: the machine's own facts are used")},

		// Load balancers.
		{idBalanceHeld, exitPreflight, is(errHeld), say("--force accepts the new list")},
		{idBalanceSlots, exitFailed, is(lb.ErrSlotsFull), say("write a server-template for each role, with a number above that of its nodes, and reload HAProxy")},
		{idBalanceHAProxy, exitFailed, is(lb.ErrHAProxy), say("HAProxy must run, with a line such as: stats socket /run/haproxy/admin.sock mode 660 level admin")},

		// The other libraries: the particular first, a time that ran out last.
		{idLocked, exitUnknown, is(conf.ErrLocked), say("it may still be at work: look with `amsagent status`, or wait longer with --timeout")},
		{idNotSeen, exitFailed, as[*bootstrap.NotSeenError], say("/var/log/antmedia/ant-media-server.log says why it did not come up, or did not reach MongoDB")},
		{idNotServing, exitFailed, as[*bootstrap.NotServingError], say(
			"/var/log/antmedia/ant-media-server.log says why that application does not start; give it more time with --timeout",
			"an application that need not serve is left out by the setting serving: in config.yaml",
		)},
		{idService, exitFailed, func(err error) bool {
			return as[*ams.JobError](err) || as[*ams.UnstableError](err) || is(ams.ErrNoSystemd, ams.ErrNoUnit, ams.ErrUnitMasked, ams.ErrUnitBroken)(err)
		}, func(err error, _ *globals) []string { return someHint(ams.Hint(err)) }},

		// The daemon, asked over its socket.
		{idNoDaemon, exitFailed, is(daemon.ErrDown), say("systemctl start amsagent", "why it does not run: journalctl -u amsagent")},
		{idOddDaemon, exitFailed, is(daemon.ErrVersion), say("systemctl restart amsagent; that changes nothing in the cluster")},
		{idLostDaemon, exitUnknown, is(daemon.ErrLost), say("look with `systemctl status amsagent`, then run the same command again")},
		{idNotNode, exitNotMember, isNotNode, say("`amsagent drain NODE` drains another node; `amsagent join` makes this machine one")},
		{idRefused, exitFailed, as[*daemon.Refusal], nil},
		{idUndrained, exitFailed, as[*undrainedError], nil},
		{idEvent, exitUsage, as[*eventError], say("an event is the JSON of a lifecycle action, without an envelope of SNS or SQS; more: amsagent help event")},

		// This machine.
		{bootstrap.IDFileLink, exitFailed, is(files.ErrLink), say("let root make the link, or give the file to the owner of the link or of its folder; or remove it")},
		{bootstrap.IDFileSize, exitFailed, is(files.ErrTooLarge, conf.ErrRecordTooLarge), say("a settings file has some kilobytes: take this one from a backup, or remove the application")},
		{idDiskFull, exitFailed, is(syscall.ENOSPC, syscall.EDQUOT), say("make room on that file system, then run the same command again")},
		{idReadOnly, exitFailed, is(syscall.EROFS), say("mount that file system writable, then run the same command again")},
		{idPermission, exitFailed, is(fs.ErrPermission), nil},
		{idTimeout, exitUnknown, is(context.DeadlineExceeded), nil},
	}
}

// say gives the same advice for each error.
func say(hints ...string) func(error, *globals) []string {
	return func(error, *globals) []string { return hints }
}

func someHint(hint string) []string {
	if hint == "" {
		return nil
	}
	return []string{hint}
}

func is(targets ...error) func(error) bool {
	return func(err error) bool {
		return slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) })
	}
}

func as[T error](err error) bool {
	var t T
	return errors.As(err, &t)
}

func ofKind(k cluster.Kind) func(error) bool {
	return func(err error) bool { return cluster.KindOf(err) == k }
}

// mongoHint is the library's own advice, which knows the answer of the server, else hint.
func mongoHint(hint string) func(error, *globals) []string {
	return func(err error, _ *globals) []string {
		if e, ok := errors.AsType[*cluster.Error](err); ok && e.Hint != "" {
			return []string{e.Hint}
		}
		return []string{hint}
	}
}

// forbiddenHint: MongoDB says the same to a user without the right and to no user at all.
func forbiddenHint(_ error, g *globals) []string {
	if src, err := g.mongo(); err == nil && !src.Target.HasCredentials() {
		return []string{"put the login into the address: mongodb://USER:PASSWORD@HOST/, best in a file that only root can read: --mongo file:/etc/amsagent/mongo"}
	}
	return []string{"the user needs readWrite on the databases amsagent and clusterdb, and read on that of each application (db.name), where its streams are counted; " + bootstrap.WriteHint}
}

// needsRoot matches what root may do and the user who runs this may not. The permissions that MongoDB and the network
// give, and those of standard output, do not depend on it.
func needsRoot(euid int) func(error) bool {
	return func(err error) bool {
		bind, is := errors.AsType[*net.OpError](err)
		return euid != 0 && errors.Is(err, fs.ErrPermission) && !(is && bind.Op == "listen") && cluster.KindOf(err) == "" && !as[*output.Error](err) && !errors.Is(err, lb.ErrHAProxy)
	}
}

// isNotNode matches what the state file, or the daemon, reports about a machine that never joined.
func isNotNode(err error) bool {
	r, ok := errors.AsType[*daemon.Refusal](err)
	return ok && r.Code == daemon.RefusedNotMember || errors.Is(err, bootstrap.ErrNotMember)
}

func settingThat(cond func(*settings.Error) bool) func(error) bool {
	return func(err error) bool { return settings.Any(err, cond) }
}

func settingHints(err error, _ *globals) []string {
	var hints []string
	for _, e := range settings.Flatten(err) {
		var se *settings.Error
		if !errors.As(e, &se) {
			continue
		}
		for _, h := range se.AllHints() {
			if !slices.Contains(hints, h) {
				hints = append(hints, h)
			}
		}
	}
	return hints
}

// metadataHint is the library's own, which knows what it asked.
func metadataHint(err error, _ *globals) []string { return someHint(cloud.HintOf(err)) }

// eventError: what was read is no event that we know.
type eventError struct{ err error }

func (e *eventError) Error() string { return e.err.Error() }
func (e *eventError) Unwrap() error { return e.err }

// undrainedError: the drain that was followed was cancelled; by is empty where the daemon does not name anybody.
type undrainedError struct{ by string }

func (e *undrainedError) Error() string {
	if e.by == "" {
		return "this node serves again"
	}
	return "cancelled by " + e.by
}
