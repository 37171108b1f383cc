// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/metadata"
)

// storedMongo is where join keeps the connection string, for the daemon and for the commands that follow.
const storedMongo = "/etc/amsagent/mongo"

// mongoSource is the cluster's MongoDB with the place it was found in.
type mongoSource struct {
	Target cluster.Target
	Origin settings.Origin
	// File is the file that held the address, "" where the setting itself did.
	File string
}

// mongo returns MongoDB's address by flag, environment, systemd's credential, config.yaml, instance tag (after
// use), or join's file, which only root may read.
func (g *globals) mongo() (mongoSource, error) {
	v := g.settings.Values[settings.KeyMongo]
	if dir := g.env.getenv("CREDENTIALS_DIRECTORY"); dir != "" && v.Origin.Layer < settings.FromCredential {
		// The second is how a machine is given one: names of its credentials begin with whom they are for.
		for _, name := range []string{"mongo", "amsagent.mongo"} {
			path := filepath.Join(dir, name)
			src, err := mongoFile(g, path, settings.Origin{Layer: settings.FromCredential, Name: path})
			if err == nil || !errors.Is(err, fs.ErrNotExist) {
				return src, err
			}
		}
	}
	if v.Text == "" {
		for _, path := range []string{storedMongo, bootstrap.LeftMongoPath} {
			src, err := mongoFile(g, path, settings.Origin{Layer: settings.FromStored, Name: path})
			if err == nil || !errors.Is(err, fs.ErrNotExist) {
				return src, err
			}
		}
		return mongoSource{}, errNoMongo
	}
	if path, ok := settings.FilePath(v.Text); ok {
		if path == settings.PipePath {
			return mongoStdin(g, v.Origin)
		}
		return mongoFile(g, path, v.Origin)
	}
	t, err := cluster.ParseTarget(v.Text)
	if err != nil {
		return mongoSource{}, v.Origin.Fault(err)
	}
	g.out.AddSecrets(t.Secrets()...)
	if len(t.Secrets()) > 0 && (v.Origin.Layer == settings.FromFlag || v.Origin.Layer == settings.FromTag) && g.out.Once("password "+v.Origin.String()) {
		// We cannot take back what ps and the console have shown already, so this is said, not warned of.
		g.out.Log().Info("the MongoDB password came in a place that others can read; file:PATH avoids that", "origin", v.Origin.String())
	}
	return mongoSource{Target: t, Origin: v.Origin}, nil
}

// tagsTime bounds the query for tags of a command that needs no other data of the cloud and may run on a laptop.
const tagsTime = 5 * time.Second

// mongoOrTag is mongo, and asks the cloud for the instance's tags if no other source has the address.
func (g *globals) mongoOrTag(ctx context.Context) (mongoSource, error) {
	if src, err := g.mongo(); !errors.Is(err, errNoMongo) {
		return src, err
	}
	ctx, cancel := context.WithTimeout(ctx, tagsTime)
	defer cancel()
	return g.mongoAfter(g.whoami(ctx))
}

// mongoAfter is mongo after a query for tags: without an address, the error has the reason why there is no tag.
func (g *globals) mongoAfter(inst metadata.Instance, ierr error) (mongoSource, error) {
	src, err := g.mongo()
	switch note := tagsNote(inst); {
	case !errors.Is(err, errNoMongo):
	case ierr != nil:
		err = errors.Join(err, fmt.Errorf("no instance tag could be read: %w", ierr))
	case note != "":
		err = errors.Join(err, errors.New(note))
	}
	return src, err
}

// joinedMongo is mongo for a node as it is: it may have joined elsewhere than its tag says.
func (g *globals) joinedMongo() (mongoSource, error) {
	src, err := g.mongo()
	if err == nil && src.Origin.Layer == settings.FromTag {
		stored, serr := mongoFile(g, storedMongo, settings.Origin{Layer: settings.FromStored, Name: storedMongo})
		if !errors.Is(serr, fs.ErrNotExist) {
			src, err = stored, serr
		}
	}
	return src, err
}

// mongoFile reads an address from a file. One newline at its end is what editors and echo leave there.
func mongoFile(g *globals, path string, o settings.Origin) (mongoSource, error) {
	full, err := settings.UnderRoot(g.settings.Root, path)
	if err != nil {
		return mongoSource{}, fmt.Errorf("reading the MongoDB address: %w", err)
	}
	b, info, err := settings.ReadSmallFile(full)
	if err != nil {
		return mongoSource{}, o.Fault(fmt.Errorf("reading the MongoDB address: %w", err))
	}
	fail := func(err error) (mongoSource, error) {
		e := o.Fault(err)
		if o.Name != path {
			e.Source += ": " + full
		}
		return mongoSource{}, e
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if text == "" {
		return fail(errors.New("the file is empty"))
	}
	if _, ok := settings.FilePath(text); ok {
		return fail(errors.New("a file: inside a file is not followed"))
	}
	t, err := cluster.ParseTarget(text)
	if err != nil {
		return fail(err)
	}
	g.out.AddSecrets(t.Secrets()...)
	warnOwner(g, path)
	if len(t.Secrets()) > 0 && info.Mode().Perm()&0o004 != 0 && g.out.Once("mode "+path) {
		g.out.Log().Warn("everybody on this machine can read the MongoDB password", "file", full, "fix", "chmod 0600 "+full)
	}
	return mongoSource{Target: t, Origin: o, File: full}, nil
}

// warnOwner warns of a file that another user can change or replace: that user controls where root connects to.
func warnOwner(g *globals, path string) {
	err := (files.Root{Path: g.settings.Root}).RootsAlone(path)
	if errors.Is(err, files.ErrForeign) && g.out.Once("owner "+path) {
		g.out.Log().Warn("another user can change the file with the MongoDB address", "file", path, "reason", err,
			"fix", "chown root:root and chmod 0600 the file, in a folder that only root may write to, as /etc/amsagent")
	}
}

// mongoStdin reads the address from standard input, once: whoever asks again gets the same.
func mongoStdin(g *globals, o settings.Origin) (mongoSource, error) {
	fail := func(err error) (mongoSource, error) {
		return mongoSource{}, o.Fault(fmt.Errorf("reading the MongoDB address from standard input: %w", err))
	}
	// The secret may be there later. A loop in user data ends at exit 2.
	notYet := func(err error) (mongoSource, error) {
		return mongoSource{}, &userError{
			Msg: "reading the MongoDB address from standard input", Cause: err, Exit: exitFailed, ID: idMongoMissing, State: stateUntouched,
			Hints: []string{"write the address to standard input and close it, or give --mongo file:PATH"},
		}
	}
	if o.Layer != settings.FromFlag {
		return fail(errors.New("that is for the command line: nobody else knows what standard input will be"))
	}
	if g.piped == nil {
		limit := within(g.settings.Timeout, pipeTime)
		b, err := g.readStdin(settings.MaxSmallFile, limit)
		switch {
		case errors.Is(err, errTerminal):
			return fail(errors.New("it is a terminal"))
		case errors.Is(err, errOpenInput):
			return notYet(fmt.Errorf("it was not closed within %s", limit))
		case err != nil && g.ctx.Err() != nil:
			return mongoSource{}, &userError{Msg: "waiting for the MongoDB address on standard input", Cause: err, State: stateUntouched}
		}
		g.piped = &piped{b, err}
	}
	text := strings.TrimSpace(string(g.piped.text))
	switch {
	case g.piped.err != nil:
		return fail(g.piped.err)
	case len(g.piped.text) > settings.MaxSmallFile:
		return fail(fmt.Errorf("more than %d KiB came", settings.MaxSmallFile>>10))
	case text == "":
		return notYet(errors.New("nothing came: did the command before the pipe fail?"))
	}
	if _, ok := settings.FilePath(text); ok {
		return fail(errors.New("a file: inside is not followed"))
	}
	t, err := cluster.ParseTarget(text)
	if err != nil {
		return fail(err)
	}
	g.out.AddSecrets(t.Secrets()...)
	return mongoSource{Target: t, Origin: o}, nil
}
