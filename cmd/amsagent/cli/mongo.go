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

// mongoSource is the address of MongoDB and the place that has it.
type mongoSource struct {
	Target cluster.Target
	Origin settings.Origin
	// File has the address; "" if the setting itself has it.
	File string
}

// mongo returns MongoDB's address by flag, environment, systemd's credential, config.yaml, instance tag (after
// use), or join's file, which only root may read.
func (g *globals) mongo() (mongoSource, error) {
	v := g.settings.Values[settings.KeyMongo]
	if dir := g.env.getenv("CREDENTIALS_DIRECTORY"); dir != "" && v.Origin.Layer < settings.FromCredential {
		// A credential of the whole machine has the second name: it begins with the program that it is for.
		src, err := g.mongoIn(settings.FromCredential, filepath.Join(dir, "mongo"), filepath.Join(dir, "amsagent.mongo"))
		if !errors.Is(err, fs.ErrNotExist) {
			return src, err
		}
	}
	if v.Text == "" {
		src, err := g.mongoIn(settings.FromStored, bootstrap.MongoPath)
		if errors.Is(err, fs.ErrNotExist) {
			err = errNoMongo
		}
		return src, err
	}
	if path, ok := settings.FilePath(v.Text); ok {
		if path == settings.PipePath {
			return mongoStdin(g, v.Origin)
		}
		return mongoFile(g, path, v.Origin)
	}
	t, err := g.parseMongo(v.Text)
	if err != nil {
		return mongoSource{}, v.Origin.Fault(err)
	}
	if len(t.Secrets()) > 0 && (v.Origin.Layer == settings.FromFlag || v.Origin.Layer == settings.FromTag) && g.out.Once("password "+v.Origin.String()) {
		// ps and the console have shown it already, so this is no warning.
		g.out.Log().Info("other users can read the MongoDB password", "origin", v.Origin.String(), "fix", "give file:PATH")
	}
	return mongoSource{Target: t, Origin: v.Origin}, nil
}

// mongoIn reads the first of these files that exists.
func (g *globals) mongoIn(layer settings.Layer, paths ...string) (src mongoSource, err error) {
	for _, path := range paths {
		src, err = mongoFile(g, path, settings.Origin{Layer: layer, Name: path})
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return src, err
}

// parseMongo reads an address, and keeps its password out of all output.
func (g *globals) parseMongo(text string) (cluster.Target, error) {
	if _, ok := settings.FilePath(text); ok {
		return cluster.Target{}, errors.New("a file: inside is not followed")
	}
	t, err := cluster.ParseTarget(text)
	if err == nil {
		g.out.AddSecrets(t.Secrets()...)
	}
	return t, err
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

// joinedMongo is mongo for a node as it is: its tag may name another MongoDB by now.
func (g *globals) joinedMongo() (mongoSource, error) {
	src, err := g.mongo()
	if err == nil && src.Origin.Layer == settings.FromTag {
		if stored, serr := g.mongoIn(settings.FromStored, bootstrap.MongoPath); !errors.Is(serr, fs.ErrNotExist) {
			return stored, serr
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
	text := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	t, err := g.parseMongo(text)
	if text == "" {
		err = errors.New("the file is empty")
	}
	if err != nil {
		e := o.Fault(err)
		if o.Name != path {
			e.Source += ": " + full
		}
		return mongoSource{}, e
	}
	// A user who can change or replace the file decides which MongoDB root connects to.
	if err := (files.Root{Path: g.settings.Root}).RootsAlone(path); errors.Is(err, files.ErrForeign) && g.out.Once("owner "+path) {
		g.out.Log().Warn("another user can change the file with the MongoDB address", "file", path, "reason", err,
			"fix", "chown root:root and chmod 0600 the file, in a folder that only root may write to, as /etc/amsagent")
	}
	if len(t.Secrets()) > 0 && info.Mode().Perm()&0o004 != 0 && g.out.Once("mode "+path) {
		g.out.Log().Warn("every user can read the MongoDB password", "file", full, "fix", "chmod 0600 "+full)
	}
	return mongoSource{Target: t, Origin: o, File: full}, nil
}

// mongoStdin is the address that standard input had. It is read once.
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
		return fail(errors.New("file:- works only on the command line"))
	}
	b, err := g.piped()
	text := strings.TrimSpace(string(b))
	switch {
	case errors.Is(err, errOpenInput):
		return notYet(err)
	case err != nil && g.ctx.Err() != nil:
		return mongoSource{}, &userError{Msg: "waiting for the MongoDB address on standard input", Cause: err, State: stateUntouched}
	case err != nil:
		return fail(err)
	case len(b) > settings.MaxSmallFile:
		return fail(fmt.Errorf("it has more than %d KiB", settings.MaxSmallFile>>10))
	case text == "":
		return notYet(errors.New("standard input is empty: look whether the command before the pipe failed"))
	}
	t, err := g.parseMongo(text)
	if err != nil {
		return fail(err)
	}
	return mongoSource{Target: t, Origin: o}, nil
}
