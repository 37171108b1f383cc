// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams

import (
	"flag"
	"log/slog"
	"time"
)

// Options says how to start. Only Root is needed.
type Options struct {
	// Root is the installation.
	Root string
	// HostAddress is what the environment variable AMS_HOST_ADDRESS says; a release
	// before 2.5 ignores it, as the server does.
	HostAddress string
	// Release replaces what the jar's manifest says.
	Release string
	// HTTPHost is the address to bind, in place of http.host, so that two nodes fit
	// on one machine. Default 127.0.0.1; "file" binds what the file says.
	HTTPHost string
	// HTTPPort replaces http.port; 0 means the file's, -1 any free port.
	HTTPPort int
	// Control is the address of the HTTP control port; empty: none.
	Control string
	// Period is the time between two registrations; default 5 s, as the server's.
	Period time.Duration
	// MongoTimeout bounds the wait for a MongoDB at the start; default 30 s, as the
	// server's.
	MongoTimeout time.Duration
	// RequestTimeout bounds what a request asks MongoDB; default MongoTimeout.
	RequestTimeout time.Duration
	// StreamWait is how long a stop waits for local streams of each application to
	// end; default 5.5 s, as the server's.
	StreamWait time.Duration
	// LocalAddress replaces the address that the server would find by itself when
	// HostAddress is empty.
	LocalAddress string
	// InstanceID replaces the first part of the node's id.
	InstanceID string
	// Stats is a file that always holds the count of sessions, as [Stats]; empty:
	// none.
	Stats string
	// HostsFile, when set, makes liveness answer 500 unless this file names the
	// host, as the server does when it cannot resolve its own name.
	HostsFile string
	// Litter writes into the installation what the server writes besides settings and
	// the marks of starts and stops: instance id, local databases.
	Litter bool
	// Opening is how long after its HTTP port began to answer liveness is 500;
	// default: not at all. After that it is 403 for [Behaviour.SlowStart].
	Opening time.Duration
	// AppStart is how long each application takes for its start, one after the
	// other, LiveApp last, after the server has registered itself; default 20 ms.
	AppStart time.Duration
	// SaveAtStart lets each application but the console save its settings in the
	// course of its start, as the server does in cluster mode; SavePause is the time
	// between the first and the second half of the file.
	SaveAtStart bool
	SavePause   time.Duration
	// Community makes it the Community Edition, as far as that is visible from outside.
	Community bool
	// Behaviour is how it misbehaves.
	Behaviour Behaviour
	// Log gets one line for every step; default none. No password is in it.
	Log *slog.Logger
}

// Behaviour makes the stand-in misbehave. The zero value is a good server.
type Behaviour struct {
	// OnlyIn restricts all of it to "cluster" or "standalone" mode.
	OnlyIn string
	// SlowStart is how long liveness answers 403 and nothing is registered.
	SlowStart time.Duration
	// NeverUp makes that last for ever.
	NeverUp bool
	// FailStart makes the start fail.
	FailStart bool
	// CrashAfter ends the server without any order so long after its HTTP port began to
	// answer, up or not.
	CrashAfter time.Duration
	// RegisterAddress is registered in place of the right address.
	RegisterAddress string
	// Silent sends no heartbeat.
	Silent bool
	// Liveness, when not 0, is the status of every liveness answer.
	Liveness int
	// Statistics, when not 0, is the status of every answer to who asks for them with
	// the right token.
	Statistics int
	// Hang answers nothing and sends no heartbeat, as a process that SIGSTOP has
	// stopped.
	Hang bool
	// Applications, when not 0, is the status of every answer of an application.
	Applications int
	// AppJWT lets an application's REST calls in with a token only, AppIPFilter none
	// of them, PlayToken its players with a token only.
	AppJWT, AppIPFilter, PlayToken bool
	// SlowStop is how long a stop takes, before anything else in it.
	SlowStop time.Duration
	// ClockSkew is added to this machine's clock.
	ClockSkew time.Duration
}

// AddFlags declares a flag for each option.
func (o *Options) AddFlags(fs *flag.FlagSet) {
	fs.StringVar(&o.Root, "root", o.Root, "the `folder` of the installation")
	fs.StringVar(&o.HostAddress, "host-address", o.HostAddress, "the node's `address` (default: $AMS_HOST_ADDRESS)")
	fs.StringVar(&o.Release, "release", o.Release, "behave as this `version`, whatever the jar says")
	fs.StringVar(&o.HTTPHost, "http-host", o.HTTPHost, "bind this `address` in place of http.host (default 127.0.0.1; \"file\": obey the file)")
	fs.IntVar(&o.HTTPPort, "http-port", o.HTTPPort, "listen on this `port` in place of http.port (-1: any)")
	fs.StringVar(&o.Control, "control", o.Control, "`address` of the HTTP control port")
	fs.DurationVar(&o.Period, "period", o.Period, "time between two heartbeats (default 5s)")
	fs.DurationVar(&o.MongoTimeout, "mongo-timeout", o.MongoTimeout, "how long to wait for MongoDB at the start (default 30s)")
	fs.DurationVar(&o.RequestTimeout, "request-timeout", o.RequestTimeout, "how long a request waits for MongoDB (default: --mongo-timeout)")
	fs.DurationVar(&o.StreamWait, "stream-wait", o.StreamWait, "how long a stop waits for streams (default 5.5s)")
	fs.StringVar(&o.LocalAddress, "local-address", o.LocalAddress, "the `address` found without AMS_HOST_ADDRESS")
	fs.StringVar(&o.InstanceID, "instance-id", o.InstanceID, "first part of the node's `id`")
	fs.StringVar(&o.Stats, "stats", o.Stats, "keep the count of sessions, served and cut, in this `file`")
	fs.StringVar(&o.HostsFile, "hosts-file", o.HostsFile, "answer 500 unless this `file` names the host")
	fs.BoolVar(&o.Litter, "litter", o.Litter, "write into the installation what the server writes")
	fs.DurationVar(&o.Opening, "opening", o.Opening, "answer liveness with 500 for so long, before 403")
	fs.DurationVar(&o.AppStart, "app-start", o.AppStart, "how long each application takes for its start (default 20ms)")
	fs.BoolVar(&o.SaveAtStart, "save-at-start", o.SaveAtStart, "in cluster mode, save each application's settings at its start")
	fs.DurationVar(&o.SavePause, "save-pause", o.SavePause, "how long a file of settings is half written")
	fs.BoolVar(&o.Community, "community", o.Community, "be the Community Edition, as far as that is visible")
	b := &o.Behaviour
	fs.StringVar(&b.OnlyIn, "only-in", b.OnlyIn, "misbehave only in this `mode`: cluster or standalone")
	fs.DurationVar(&b.SlowStart, "slow-start", b.SlowStart, "answer 403 for so long")
	fs.BoolVar(&b.NeverUp, "never-up", b.NeverUp, "answer 403 for ever")
	fs.BoolVar(&b.FailStart, "fail-start", b.FailStart, "fail to start")
	fs.DurationVar(&b.CrashAfter, "crash-after", b.CrashAfter, "crash so long after the start")
	fs.StringVar(&b.RegisterAddress, "register-address", b.RegisterAddress, "register this wrong `address`")
	fs.BoolVar(&b.Silent, "silent", b.Silent, "send no heartbeat")
	fs.IntVar(&b.Liveness, "liveness", b.Liveness, "answer liveness with this `status`")
	fs.IntVar(&b.Statistics, "statistics", b.Statistics, "answer system-resources with this `status`")
	fs.BoolVar(&b.Hang, "hang", b.Hang, "answer nothing and send no heartbeat")
	fs.IntVar(&b.Applications, "applications", b.Applications, "answer every call to an application with this `status`")
	fs.BoolVar(&b.AppJWT, "app-jwt", b.AppJWT, "refuse REST calls of applications for want of a token")
	fs.BoolVar(&b.AppIPFilter, "app-ip-filter", b.AppIPFilter, "refuse REST calls of applications for their address")
	fs.BoolVar(&b.PlayToken, "play-token", b.PlayToken, "refuse players for want of a token")
	fs.DurationVar(&b.SlowStop, "slow-stop", b.SlowStop, "take so long to stop")
	fs.DurationVar(&b.ClockSkew, "clock-skew", b.ClockSkew, "be so far ahead of the clock")
}
