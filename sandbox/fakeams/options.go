// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package fakeams

import (
	"flag"
	"log/slog"
	"time"
)

// Options says how to start. Only Root is needed; AddFlags explains each.
type Options struct {
	Root         string // the installation
	HostAddress  string // a release before 2.5 ignores it, as the server does
	Release      string
	HTTPHost     string // two nodes fit on one machine
	HTTPPort     int
	Control      string
	Period       time.Duration
	MongoTimeout time.Duration
	// RequestTimeout bounds what a request asks MongoDB.
	RequestTimeout time.Duration
	// StreamWait is how long a stop waits for local streams of each application to end.
	StreamWait   time.Duration
	LocalAddress string
	InstanceID   string
	Stats        string // a file that always holds the count of sessions, as [Stats]
	HostsFile    string // the server resolves its own name
	// Litter is what the server writes besides settings and the marks of starts and stops: instance id, local databases.
	Litter bool
	// Opening is how long after its HTTP port began to answer liveness is 500. After that it is 403 for [Behaviour.SlowStart].
	Opening time.Duration
	// AppStart is for one application after the other, LiveApp last, after the server has registered itself.
	AppStart    time.Duration
	SaveAtStart bool // of each application but the console
	SavePause   time.Duration
	Community   bool
	Behaviour   Behaviour
	// Log gets one line for every step; default none. No password is in it.
	Log *slog.Logger
}

// Behaviour makes the stand-in misbehave; AddFlags explains how. The zero value is a good server.
type Behaviour struct {
	OnlyIn          string
	SlowStart       time.Duration // nothing is registered meanwhile
	NeverUp         bool
	FailStart       bool
	CrashAfter      time.Duration // since its HTTP port began to answer, up or not
	RegisterAddress string
	Silent          bool
	Liveness        int
	Statistics      int  // of calls with the right token
	Hang            bool // as a process that SIGSTOP has stopped
	Applications    int
	AppJWT          bool
	AppIPFilter     bool
	PlayToken       bool
	SlowStop        time.Duration // before anything else of a stop
	ClockSkew       time.Duration
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
