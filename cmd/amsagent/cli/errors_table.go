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

// Ids of errors are an interface, and each has a page.
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

// errNoMongo: no setting, tag or file has the address.
var errNoMongo = daemon.ErrNoMongo

var errHeld = errors.New("servers stay in the list that the cluster has lost")

// errorClass maps what a library returns to an id, an exit code and advice.
type errorClass struct {
	id    string
	exit  int
	match func(error) bool
	// hint may depend on the error and on the machine; nil means no advice.
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
		{idMongoMissing, exitUsage, is(errNoMongo), say("give --mongo ADDRESS, or set AMSAGENT_MONGO, mongo: in config.yaml, or the instance tag amsagent:mongo (join --wait-for-tags 5m waits for it)")},

		// MongoDB. Each kind of failure has another fix.
		{idMongoTooMany, exitFailed, is(cluster.ErrTooMany), say("delete the documents that no server writes any more: amsagent doctor --explain " + idMongoTooMany)},
		{idMongoDNS, exitFailed, ofKind(cluster.KindDNS), mongoHint("check the spelling of the name, and the DNS of this machine and of its network")},
		{idMongoRefused, exitFailed, ofKind(cluster.KindRefused), mongoHint("start mongod there, let it listen on that address (net.bindIp), and admit this subnet in the security group of the database")},
		{idMongoUnreachable, exitFailed, ofKind(cluster.KindUnreachable), mongoHint("check the route to that network: the subnet, its peering, and whether the network is up")},
		{idMongoTimeout, exitFailed, ofKind(cluster.KindTimeout), mongoHint("if a firewall or security group drops packets, admit this subnet and the port there; else look whether mongod hangs")},
		{idMongoLost, exitFailed, ofKind(cluster.KindLost), mongoHint("run the same command again; if it happens each time, look with `journalctl -u mongod` on the database")},
		{idMongoTLS, exitFailed, ofKind(cluster.KindTLS), mongoHint("use a certificate that is valid for that name, and install its authority on this machine or name it by tlsCAFile in the URI")},
		{idMongoAuth, exitFailed, ofKind(cluster.KindAuth), mongoHint("check user, password and authSource in the URI; @ : / ? # % in a password must be percent-encoded")},
		{idMongoForbidden, exitFailed, ofKind(cluster.KindForbidden), forbiddenHint},
		{idMongoNotPrimary, exitFailed, ofKind(cluster.KindNotPrimary), mongoHint("name all members and replicaSet in the URI, or wait until the replica set has a primary")},
		{idMongoUnsupported, exitFailed, ofKind(cluster.KindUnsupported), mongoHint("use MongoDB 4.4 or later, and an authMechanism that this server has")},
		{idMongoConfig, exitUsage, ofKind(cluster.KindConfig), mongoHint("correct the MongoDB address: the cause names the fault")},
		{idMongo, exitFailed, func(err error) bool { k := cluster.KindOf(err); return k != "" && k != cluster.KindCanceled }, nil},

		// The result could not be written. Before the errno that caused it.
		{idOutput, exitFailed, as[*output.Error], nil},

		// The cloud's metadata. Before the deadlines, which its errors wrap.
		{idMetadataForbidden, exitFailed, is(cloud.ErrForbidden), metadataHint},
		{idMetadataWrongCloud, exitFailed, is(cloud.ErrNotThisCloud), metadataHint},
		{idMetadataNotFound, exitFailed, is(cloud.ErrNotFound), metadataHint},
		{idMetadataBadAnswer, exitFailed, is(cloud.ErrBadAnswer), metadataHint},
		{idMetadataUnknown, exitUsage, is(cloud.ErrUnknownProvider), say("set the provider to auto, or to generic, which uses the machine's own facts")},

		// Load balancers.
		{idBalanceHeld, exitPreflight, is(errHeld), say("to accept the new list, run the same command with --force")},
		{idBalanceSlots, exitFailed, is(lb.ErrSlotsFull), say("give the server-template of each role more servers than the role has nodes, and reload HAProxy")},
		{idBalanceHAProxy, exitFailed, is(lb.ErrHAProxy), say("start HAProxy with a line such as: stats socket /run/haproxy/admin.sock mode 660 level admin")},

		// The other libraries: the particular first, a time that ran out last.
		{idLocked, exitUnknown, is(conf.ErrLocked), say("see with `amsagent status` what the other command does, or wait longer with --timeout")},
		{idNotSeen, exitFailed, as[*bootstrap.NotSeenError], say("read in /var/log/antmedia/ant-media-server.log why the server did not start, or did not reach MongoDB")},
		{idNotServing, exitFailed, as[*bootstrap.NotServingError], say(
			"read in /var/log/antmedia/ant-media-server.log why that application does not start, or wait longer with --timeout",
			"if that application need not serve, leave it out of serving: in config.yaml",
		)},
		{idService, exitFailed, func(err error) bool {
			return as[*ams.JobError](err) || as[*ams.UnstableError](err) || is(ams.ErrNoSystemd, ams.ErrNoUnit, ams.ErrUnitMasked, ams.ErrUnitBroken)(err)
		}, func(err error, _ *globals) []string { return someHint(ams.Hint(err)) }},

		// The daemon, asked over its socket.
		{idNoDaemon, exitFailed, is(daemon.ErrDown), say("systemctl start amsagent", "see why it does not run: journalctl -u amsagent")},
		{idOddDaemon, exitFailed, is(daemon.ErrVersion), say("systemctl restart amsagent; that changes nothing in the cluster")},
		{idLostDaemon, exitUnknown, is(daemon.ErrLost), say("look with `systemctl status amsagent`, then run the same command again")},
		{idNotNode, exitNotMember, isNotNode, say("drain another node with `amsagent drain NODE`, or make this machine a node with `amsagent join`")},
		{idRefused, exitFailed, as[*daemon.Refusal], nil},
		{idUndrained, exitFailed, as[*undrainedError], nil},
		{idEvent, exitUsage, as[*eventError], say("send the JSON of a lifecycle action, without an envelope of SNS or SQS: amsagent help event")},

		// This machine.
		{bootstrap.IDFileLink, exitFailed, is(files.ErrLink), say("let root make the link, or give the file to the owner of the link or of its folder; or remove it")},
		{bootstrap.IDFileSize, exitFailed, is(files.ErrTooLarge, conf.ErrRecordTooLarge), say("a settings file has some kilobytes: take this one from a backup, or remove the application")},
		{idDiskFull, exitFailed, is(syscall.ENOSPC, syscall.EDQUOT), say("make room on that file system, then run the same command again")},
		{idReadOnly, exitFailed, is(syscall.EROFS), say("mount that file system writable, then run the same command again")},
		{idPermission, exitFailed, is(fs.ErrPermission), nil},
		{idTimeout, exitUnknown, is(context.DeadlineExceeded), nil},
	}
}

// say is the same advice for each error.
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

// mongoHint is the library's advice, which has the answer of the server, else hint.
func mongoHint(hint string) func(error, *globals) []string {
	return func(err error, _ *globals) []string {
		if e, ok := errors.AsType[*cluster.Error](err); ok && e.Hint != "" {
			return []string{e.Hint}
		}
		return []string{hint}
	}
}

// forbiddenHint: MongoDB has one error for a user without the right and for no user at all.
func forbiddenHint(_ error, g *globals) []string {
	if src, err := g.mongo(); err == nil && !src.Target.HasCredentials() {
		return []string{"put the login into the address: mongodb://USER:PASSWORD@HOST/, best in a file that only root can read: --mongo file:/etc/amsagent/mongo"}
	}
	return []string{"grant the user readWrite on the databases amsagent and clusterdb, and read on that of each application (db.name); " + bootstrap.WriteHint}
}

// needsRoot matches errors that root would not get. The permissions of MongoDB, of the network and of standard output do not
// depend on the user.
func needsRoot(euid int) func(error) bool {
	return func(err error) bool {
		bind, is := errors.AsType[*net.OpError](err)
		return euid != 0 && errors.Is(err, fs.ErrPermission) && !(is && bind.Op == "listen") && cluster.KindOf(err) == "" && !as[*output.Error](err) && !errors.Is(err, lb.ErrHAProxy)
	}
}

// isNotNode matches the answer of the state file, or of the daemon, for a machine that never joined.
func isNotNode(err error) bool {
	r, ok := errors.AsType[*daemon.Refusal](err)
	return ok && r.Code == daemon.RefusedNotMember || errors.Is(err, bootstrap.ErrNotMember)
}

func settingThat(cond func(*settings.Error) bool) func(error) bool {
	return func(err error) bool { return settings.Any(err, cond) }
}

// settingHints are the hints of each cause, without repetition.
func settingHints(err error, _ *globals) (hints []string) {
	for _, cause := range settings.Flatten(err) {
		for _, h := range ownHints(cause) {
			if !slices.Contains(hints, h) {
				hints = append(hints, h)
			}
		}
	}
	return hints
}

// metadataHint is the library's advice.
func metadataHint(err error, _ *globals) []string { return someHint(cloud.HintOf(err)) }

// eventError: the input is no event that the agent knows.
type eventError struct{ err error }

func (e *eventError) Error() string { return e.err.Error() }
func (e *eventError) Unwrap() error { return e.err }

// undrainedError: the drain was cancelled; by is empty if the daemon does not report its source.
type undrainedError struct{ by string }

func (e *undrainedError) Error() string {
	if e.by == "" {
		return "this node serves again"
	}
	return "cancelled by " + e.by
}
