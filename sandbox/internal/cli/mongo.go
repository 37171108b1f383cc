// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/amsagent/amsagent/sandbox/mongod"
	"github.com/amsagent/amsagent/sandbox/realmongo"
)

func runMongo(ctx context.Context, env Env, args []string) error {
	fs := newFlags(env, "mongo", "[flags]")
	var l life
	l.addFlags(fs)
	var o mongod.Options
	var tlsDir string
	fs.StringVar(&o.Dir, "dir", "", "keep the data in this `folder` (default: a temporary one)")
	fs.StringVar(&o.Listen, "listen", "127.0.0.1:0", "`address` for clients")
	fs.StringVar(&o.Control, "control", "127.0.0.1:0", "`address` of the HTTP control port; empty: none")
	fs.StringVar(&o.AuthDB, "auth-db", "admin", "`database` the users belong to")
	fs.StringVar(&o.ReplicaSet, "replica-set", "", "be a replica set of one member, of this `name`")
	fs.StringVar(&tlsDir, "tls", "", "speak TLS; write the authority's certificate to `folder`/ca.pem")
	fs.Func("user", "let this `name:password` in, and no client without one (may be repeated)", func(s string) error {
		name, password, ok := strings.Cut(s, ":")
		if !ok || name == "" {
			return fmt.Errorf("want name:password")
		}
		if o.Users == nil {
			o.Users = map[string]string{}
		}
		o.Users[name] = password
		return nil
	})
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	ctx, stop, err := l.context(ctx)
	if err != nil {
		return err
	}
	defer stop()
	o.Log = l.log(env)
	if tlsDir != "" {
		if o.TLS, err = mongod.SelfSigned(filepath.Join(tlsDir, "ca.pem")); err != nil {
			return err
		}
	}
	if o.Binary, err = realmongo.Fetch(ctx, env.Stderr); err != nil {
		return exitError{1, "there is no mongod: " + err.Error()}
	}
	s, err := mongod.Start(context.WithoutCancel(ctx), o)
	if err != nil {
		return err
	}
	err = announce(env.Stdout, map[string]string{"addr": s.Addr(), "control": s.ControlAddr(), "uri": s.URI()})
	if err != nil {
		_ = s.Close()
		return err
	}
	<-ctx.Done()
	return s.Close()
}
