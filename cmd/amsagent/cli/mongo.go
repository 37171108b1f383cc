// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/files"
)

// storedMongo is where join keeps the connection string, for the daemon and for the commands that follow.
const storedMongo = "/etc/amsagent/mongo"

// mongoSource is the cluster's MongoDB with the place it was found in.
type mongoSource struct {
	Target cluster.Target
	Origin origin
	// File is the file that held the address, "" where the setting itself did.
	File string
}

// filePath takes the path out of file:PATH; file:///PATH, as a URL is written, means the same.
func filePath(v string) (string, bool) {
	path, ok := strings.CutPrefix(v, "file:")
	if !ok {
		return "", false
	}
	if strings.HasPrefix(path, "///") {
		path = path[2:]
	}
	return path, true
}

func hasPassword(v string) bool {
	t, err := cluster.ParseTarget(v)
	if err != nil {
		// What does not parse but has an @ is treated as if it had one: the advice about passwords comes first.
		return strings.Contains(v, "@")
	}
	return len(t.Secrets()) > 0
}

// mongo returns MongoDB's address by flag, environment, systemd's credential, config.yaml, instance tag (after
// useInstance), or join's file, which only root may read.
func (g *globals) mongo() (mongoSource, error) {
	v := g.settings.values[keyMongo]
	if dir := g.env.getenv("CREDENTIALS_DIRECTORY"); dir != "" && v.origin.Layer < layerCredential {
		// The second is how a machine is given one: names of its credentials begin with whom they are for.
		for _, name := range []string{"mongo", "amsagent.mongo"} {
			path := filepath.Join(dir, name)
			src, err := g.mongoFile(path, origin{Layer: layerCredential, Name: path})
			if err == nil || !errors.Is(err, fs.ErrNotExist) {
				return src, err
			}
		}
	}
	if v.text == "" {
		for _, path := range []string{storedMongo, bootstrap.LeftMongoPath} {
			src, err := g.mongoFile(path, origin{Layer: layerStored, Name: path})
			if err == nil || !errors.Is(err, fs.ErrNotExist) {
				return src, err
			}
		}
		return mongoSource{}, errNoMongo
	}
	if path, ok := filePath(v.text); ok {
		if path == pipePath {
			return g.mongoStdin(v.origin)
		}
		return g.mongoFile(path, v.origin)
	}
	t, err := cluster.ParseTarget(v.text)
	if err != nil {
		return mongoSource{}, &settingError{source: v.origin.String(), layer: v.origin.Layer, line: v.origin.Line, err: err}
	}
	g.addSecrets(t.Secrets()...)
	if len(t.Secrets()) > 0 && (v.origin.Layer == layerFlag || v.origin.Layer == layerTag) && g.once("password "+v.origin.String()) {
		// We cannot take back what ps and the console have shown already, so this is said, not warned of.
		g.log().Info("the MongoDB password came in a place that others can read; file:PATH avoids that", "origin", v.origin.String())
	}
	return mongoSource{Target: t, Origin: v.origin}, nil
}

// joinedMongo is mongo for a node as it is: it may have joined elsewhere than its tag says.
func (g *globals) joinedMongo() (mongoSource, error) {
	src, err := g.mongo()
	if err == nil && src.Origin.Layer == layerTag {
		stored, serr := g.mongoFile(storedMongo, origin{Layer: layerStored, Name: storedMongo})
		if !errors.Is(serr, fs.ErrNotExist) {
			src, err = stored, serr
		}
	}
	return src, err
}

// mongoFile reads an address from a file. One newline at its end is what editors and echo leave there.
func (g *globals) mongoFile(path string, o origin) (mongoSource, error) {
	full, err := underRoot(g.settings.Root, path)
	if err != nil {
		return mongoSource{}, fmt.Errorf("reading the MongoDB address: %w", err)
	}
	b, info, err := readSmallFile(full)
	if err != nil {
		return mongoSource{}, &settingError{source: o.String(), layer: o.Layer, line: o.Line, err: fmt.Errorf("reading the MongoDB address: %w", err)}
	}
	fail := func(err error) (mongoSource, error) {
		source := o.String()
		if o.Name != path {
			source += ": " + full
		}
		return mongoSource{}, &settingError{source: source, layer: o.Layer, line: o.Line, err: err}
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if text == "" {
		return fail(errors.New("the file is empty"))
	}
	if _, ok := filePath(text); ok {
		return fail(errors.New("a file: inside a file is not followed"))
	}
	t, err := cluster.ParseTarget(text)
	if err != nil {
		return fail(err)
	}
	g.addSecrets(t.Secrets()...)
	g.warnOwner(path)
	if len(t.Secrets()) > 0 && info.Mode().Perm()&0o004 != 0 && g.once("mode "+path) {
		g.log().Warn("everybody on this machine can read the MongoDB password", "file", full, "fix", "chmod 0600 "+full)
	}
	return mongoSource{Target: t, Origin: o, File: full}, nil
}

// warnOwner warns of a file that another user can change or replace: that user controls where root connects to.
func (g *globals) warnOwner(path string) {
	err := (files.Root{Path: g.settings.Root}).RootsAlone(path)
	if errors.Is(err, files.ErrForeign) && g.once("owner "+path) {
		g.log().Warn("another user can change the file with the MongoDB address", "file", path, "reason", err,
			"fix", "chown root:root and chmod 0600 the file, in a folder that only root may write to, as /etc/amsagent")
	}
}

// pipePath is standard input in the place of a file: a pipe from a cloud's vault shows the password to nobody.
const pipePath = "-"

// mongoStdin reads the address from standard input, once: whoever asks again gets the same.
func (g *globals) mongoStdin(o origin) (mongoSource, error) {
	fail := func(err error) (mongoSource, error) {
		return mongoSource{}, &settingError{source: o.String(), layer: o.Layer, line: o.Line, err: fmt.Errorf("reading the MongoDB address from standard input: %w", err)}
	}
	// The secret may be there later. A loop in user data ends at exit 2.
	notYet := func(err error) (mongoSource, error) {
		return mongoSource{}, &userError{
			Msg: "reading the MongoDB address from standard input", Cause: err, Exit: exitFailed, ID: idMongoMissing, State: stateUntouched,
			Hints: []string{"write the address to standard input and close it, or give --mongo file:PATH"},
		}
	}
	if o.Layer != layerFlag {
		return fail(errors.New("that is for the command line: nobody else knows what standard input will be"))
	}
	if g.piped == nil {
		limit := g.within(pipeTime)
		b, err := g.readStdin(maxSmallFile, limit)
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
	case len(g.piped.text) > maxSmallFile:
		return fail(fmt.Errorf("more than %d KiB came", maxSmallFile>>10))
	case text == "":
		return notYet(errors.New("nothing came: did the command before the pipe fail?"))
	}
	if _, ok := filePath(text); ok {
		return fail(errors.New("a file: inside is not followed"))
	}
	t, err := cluster.ParseTarget(text)
	if err != nil {
		return fail(err)
	}
	g.addSecrets(t.Secrets()...)
	return mongoSource{Target: t, Origin: o}, nil
}

// piped is what came on standard input.
type piped struct {
	text []byte
	err  error
}
