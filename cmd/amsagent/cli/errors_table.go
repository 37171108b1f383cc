// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/lb"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// Ids of errors are an interface: people search for them, and each has a page.
const (
	idFailed       = "AMS-FAILED"
	idUsage        = "AMS-USAGE"
	idConfig       = bootstrap.IDConfig
	idConfigSecret = settings.IDSecret
	idOutput       = "AMS-OUTPUT"
	idInterrupted  = "AMS-INTERRUPTED"
	idTimeout      = "AMS-TIMEOUT"
	idPermission   = "AMS-PERMISSION"
	idDiskFull     = "AMS-DISK-FULL"
	idReadOnly     = "AMS-READ-ONLY"
	idMongoMissing = "AMS-MONGO-MISSING"
	idPreflight    = "AMS-PREFLIGHT"
	idLocked       = "AMS-LOCKED"
	idService      = "AMS-SERVICE"
	idNotSeen      = "AMS-NOT-SEEN"
	idNotServing   = "AMS-NOT-SERVING"
	idNoDaemon     = "AMS-NO-DAEMON"
	idOddDaemon    = "AMS-ODD-DAEMON"
	idLostDaemon   = "AMS-LOST-DAEMON"
	idRefused      = "AMS-REFUSED"
	idUndrained    = "AMS-UNDRAINED"
	idEvent        = "AMS-EVENT"

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

	idMetadataWrongCloud = "AMS-METADATA-WRONG-CLOUD"
	idMetadataNotReady   = "AMS-METADATA-NOT-READY"
	idMetadataNotFound   = "AMS-METADATA-NOT-FOUND"
	idMetadataForbidden  = "AMS-METADATA-FORBIDDEN"
	idMetadataBadAnswer  = "AMS-METADATA-BAD-ANSWER"
	idMetadataUnknown    = "AMS-METADATA-UNKNOWN"
)

// errNoMongo: no setting, no tag and no file says where MongoDB is.
var errNoMongo = errors.New("no MongoDB address is known")

// errorClass maps what a library returns to an id, an exit code and advice.
type errorClass struct {
	id    string
	exit  int
	match func(error) bool
	// hint may look at the error and at the machine to be true; nil means no advice.
	hint func(err error, g *globals) []string
}

// errorTable gives a library's error its id, exit code and hints. The first row that matches wins.
func errorTable() []errorClass {
	return []errorClass{
		{
			id: idInterrupted, exit: exitInterrupted,
			match: as[*interruptedError],
		},

		// One answer for every command: only root may read the address of MongoDB, which most of them need first.
		{
			id: bootstrap.IDRoot, exit: exitPreflight,
			match: func(err error) bool {
				return settings.Any(err, func(e *settings.Error) bool { return e.ID == bootstrap.IDRoot })
			},
			hint: func(error, *globals) []string { return []string{"run it with sudo, as root"} },
		},

		// Settings.
		{
			id: idConfigSecret, exit: exitUsage,
			match: func(err error) bool {
				return settings.Any(err, func(e *settings.Error) bool { return e.ID == idConfigSecret })
			},
			hint: settingHints,
		},
		{
			id: idUsage, exit: exitUsage,
			match: func(err error) bool {
				return settings.Any(err, func(e *settings.Error) bool { return e.Layer == settings.FromFlag })
			},
			hint: settingHints,
		},
		{
			id: idConfig, exit: exitUsage,
			match: as[*settings.Error],
			hint:  settingHints,
		},
		{
			id: idMongoMissing, exit: exitUsage,
			match: is(errNoMongo),
			hint: func(error, *globals) []string {
				return []string{"give --mongo ADDRESS, or AMSAGENT_MONGO, or mongo: in config.yaml, or the instance tag amsagent:mongo (a join waits for it with --wait-for-tags 5m)"}
			},
		},

		// MongoDB. Each kind of failure wants something else done.
		{
			id: idMongoTooMany, exit: exitFailed,
			match: is(cluster.ErrTooMany),
			hint: func(error, *globals) []string {
				return []string{"delete those that no server writes any more, and find out what wrote them: amsagent doctor --explain " + idMongoTooMany}
			},
		},
		mongoClass(idMongoDNS, exitFailed, cluster.KindDNS,
			"the name must resolve on this machine: check its spelling, and the DNS settings of this network"),
		mongoClass(idMongoRefused, exitFailed, cluster.KindRefused,
			"mongod must run there and listen on that address (net.bindIp), and the security group of the database must admit this subnet"),
		mongoClass(idMongoUnreachable, exitFailed, cluster.KindUnreachable,
			"this machine needs a route to that network: check the subnet, peering and the network's state"),
		mongoClass(idMongoTimeout, exitFailed, cluster.KindTimeout,
			"a firewall or security group that drops packets looks like this: it must admit the port from this subnet"),
		mongoClass(idMongoLost, exitFailed, cluster.KindLost,
			"run the same command again; if it happens each time, look with `journalctl -u mongod` on the database"),
		mongoClass(idMongoTLS, exitFailed, cluster.KindTLS,
			"the certificate must be valid for that name, and its authority known to this machine or named by tlsCAFile in the URI"),
		mongoClass(idMongoAuth, exitFailed, cluster.KindAuth,
			"check user, password and authSource in the URI; @ : / ? # % in a password must be percent-encoded"),
		forbiddenClass(),
		mongoClass(idMongoNotPrimary, exitFailed, cluster.KindNotPrimary,
			"name all members and replicaSet in the URI, or wait until the replica set has a primary"),
		mongoClass(idMongoUnsupported, exitFailed, cluster.KindUnsupported,
			"use MongoDB 4.4 or later, and an authMechanism that this server has"),
		mongoClass(idMongoConfig, exitUsage, cluster.KindConfig,
			"see the cause, and put the MongoDB address right"),
		{
			id: idMongo, exit: exitFailed,
			match: func(err error) bool {
				k := cluster.KindOf(err)
				return k != "" && k != cluster.KindCanceled
			},
		},

		// The result was made and could not be delivered. Stands before the errno that caused it.
		{
			id: idOutput, exit: exitFailed,
			match: as[*outputError],
		},

		// The cloud's metadata. Before the deadlines, which its errors wrap.
		{
			id: idMetadataForbidden, exit: exitFailed,
			match: is(cloud.ErrForbidden), hint: metadataHint,
		},
		{
			id: idMetadataWrongCloud, exit: exitFailed,
			match: is(cloud.ErrNotThisCloud), hint: metadataHint,
		},
		{
			id: idMetadataNotReady, exit: exitFailed,
			match: is(cloud.ErrNotReady), hint: metadataHint,
		},
		{
			id: idMetadataNotFound, exit: exitFailed,
			match: is(cloud.ErrNotFound), hint: metadataHint,
		},
		{
			id: idMetadataBadAnswer, exit: exitFailed,
			match: is(cloud.ErrBadAnswer), hint: metadataHint,
		},
		{
			id: idMetadataUnknown, exit: exitUsage,
			match: is(cloud.ErrUnknownProvider),
			hint: func(error, *globals) []string {
				return []string{"leave --provider to auto, or take generic: the machine's own facts are used"}
			},
		},

		// Load balancers.
		{
			id: idBalanceHeld, exit: exitPreflight,
			match: is(errHeld),
			hint:  func(error, *globals) []string { return []string{"--force accepts the new list"} },
		},
		{
			id: idBalanceSlots, exit: exitFailed,
			match: is(lb.ErrSlotsFull),
			hint: func(error, *globals) []string {
				return []string{"write a server-template for each role, with a number above that of its nodes, and reload HAProxy"}
			},
		},
		{
			id: idBalanceHAProxy, exit: exitFailed,
			match: is(lb.ErrHAProxy),
			hint: func(error, *globals) []string {
				return []string{"HAProxy must run, with a line such as: stats socket /run/haproxy/admin.sock mode 660 level admin"}
			},
		},

		// The other libraries: the particular first, a time that ran out last.
		{
			id: idLocked, exit: exitUnknown,
			match: is(conf.ErrLocked),
			hint: func(error, *globals) []string {
				return []string{"it may still be at work: look with `amsagent status`, or wait longer with --timeout"}
			},
		},
		{
			id: idNotSeen, exit: exitFailed,
			match: as[*bootstrap.NotSeenError],
			hint: func(error, *globals) []string {
				return []string{"/var/log/antmedia/ant-media-server.log says why it did not come up, or did not reach MongoDB"}
			},
		},
		{
			id: idNotServing, exit: exitFailed,
			match: as[*bootstrap.NotServingError],
			hint: func(error, *globals) []string {
				return []string{
					"/var/log/antmedia/ant-media-server.log says why that application does not start; give it more time with --timeout",
					"an application that need not serve is left out by the setting serving: in config.yaml",
				}
			},
		},
		{
			id: idService, exit: exitFailed,
			match: func(err error) bool {
				return as[*ams.JobError](err) || as[*ams.UnstableError](err) || is(ams.ErrNoSystemd, ams.ErrNoUnit, ams.ErrUnitMasked, ams.ErrUnitBroken)(err)
			},
			hint: func(err error, _ *globals) []string { return someHint(ams.Hint(err)) },
		},

		// The daemon, asked over its socket.
		{
			id: idNoDaemon, exit: exitFailed,
			match: as[*noDaemonError],
			hint: func(error, *globals) []string {
				return []string{"systemctl start amsagent", "why it does not run: journalctl -u amsagent"}
			},
		},
		{
			id: idOddDaemon, exit: exitFailed,
			match: as[*oddDaemonError],
			hint: func(error, *globals) []string {
				return []string{"systemctl restart amsagent; that changes nothing in the cluster"}
			},
		},
		{
			id: idLostDaemon, exit: exitUnknown,
			match: as[*lostError],
			hint: func(error, *globals) []string {
				return []string{"look with `systemctl status amsagent`, then run the same command again"}
			},
		},
		{
			id: idRefused, exit: exitFailed,
			match: as[*daemon.Refusal],
		},

		{
			id: idUndrained, exit: exitFailed,
			match: as[*undrainedError],
		},
		{
			id: idEvent, exit: exitUsage,
			match: as[*eventError],
			hint: func(error, *globals) []string {
				return []string{"an event is the JSON of a lifecycle action, without an envelope of SNS or SQS; more: amsagent help event"}
			},
		},

		// This machine.
		{
			id: bootstrap.IDFileLink, exit: exitFailed,
			match: is(files.ErrLink),
			hint: func(error, *globals) []string {
				return []string{"let root make the link, or give the file to the owner of the link or of its folder; or remove it"}
			},
		},
		{
			id: bootstrap.IDFileSize, exit: exitFailed,
			match: is(files.ErrTooLarge, conf.ErrRecordTooLarge),
			hint: func(error, *globals) []string {
				return []string{"a settings file has some kilobytes: take this one from a backup, or remove the application"}
			},
		},
		{
			id: idDiskFull, exit: exitFailed,
			match: is(syscall.ENOSPC, syscall.EDQUOT),
			hint: func(error, *globals) []string {
				return []string{"make room on that file system, then run the same command again"}
			},
		},
		{
			id: idReadOnly, exit: exitFailed,
			match: is(syscall.EROFS),
			hint: func(error, *globals) []string {
				return []string{"mount that file system writable, then run the same command again"}
			},
		},
		{
			id: idPermission, exit: exitFailed,
			match: is(fs.ErrPermission),
			hint: func(_ error, g *globals) []string {
				if g.env.Geteuid() != 0 {
					return []string{"run it as root"}
				}
				return nil
			},
		},
		{
			id: idTimeout, exit: exitUnknown,
			match: is(context.DeadlineExceeded),
		},
	}
}

func someHint(text string) []string {
	if text == "" {
		return nil
	}
	return []string{text}
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

func mongoClass(id string, exit int, kind cluster.Kind, hint string) errorClass {
	return errorClass{
		id: id, exit: exit,
		match: func(err error) bool { return cluster.KindOf(err) == kind },
		hint: func(err error, _ *globals) []string {
			if e, ok := errors.AsType[*cluster.Error](err); ok && e.Hint != "" {
				return []string{e.Hint}
			}
			return someHint(hint)
		},
	}
}

// forbiddenClass: MongoDB says the same to a user without the right and to no user at all.
func forbiddenClass() errorClass {
	c := mongoClass(idMongoForbidden, exitFailed, cluster.KindForbidden, "")
	c.hint = func(_ error, g *globals) []string {
		if src, err := g.mongo(); err == nil && !src.Target.HasCredentials() {
			return []string{"put the login into the address: mongodb://USER:PASSWORD@HOST/, best in a file that only root can read: --mongo file:/etc/amsagent/mongo"}
		}
		return []string{"the user needs readWrite on the databases amsagent and clusterdb, and read on that of each application (db.name), where its streams are counted; " + bootstrap.WriteHint}
	}
	return c
}

func settingHints(err error, g *globals) []string {
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
		if errors.Is(e, fs.ErrPermission) && g.env.Geteuid() != 0 && !slices.Contains(hints, "run it as root") {
			hints = append(hints, "run it as root")
		}
	}
	return hints
}

// metadataHint is the library's own, which knows what it asked.
func metadataHint(err error, _ *globals) []string {
	if h := cloud.HintOf(err); h != "" {
		return []string{h}
	}
	return nil
}

// usageError is an error in what stands on the command line.
func usageError(hints []string, format string, args ...any) *userError {
	return &userError{Msg: fmt.Sprintf(format, args...), Hints: hints, Exit: exitUsage, ID: idUsage}
}
