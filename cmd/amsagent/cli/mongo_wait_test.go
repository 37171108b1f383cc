// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/settings"
	"github.com/amsagent/amsagent/internal/must"
)

// open is a standard input without data that is not closed.
type open struct{ end chan struct{} }

func (o open) Read([]byte) (int, error) {
	<-o.end
	return 0, io.EOF
}

// The first signal and --timeout end the wait for standard input.
func TestMongoStdinWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stdin := open{make(chan struct{})}
		defer close(stdin.end)
		command := func(g *globals) error {
			_, err := mongoStdin(g, settings.Origin{Layer: settings.FromFlag, Name: "--mongo"})
			return err
		}
		source := func(ctx context.Context, timeout time.Duration) (time.Duration, error) {
			e := &testEnv{stdin: stdin}
			g := globalsOf(e.env())
			g.out.SetForm("text", "never", 0)
			g.ctx, g.settings.Timeout = ctx, timeout
			begin := time.Now()
			err := command(g)
			return time.Since(begin), err
		}
		if took, err := source(t.Context(), 3*time.Second); took != 3*time.Second || err == nil || !strings.Contains(err.Error(), "within 3s") {
			t.Errorf("--timeout 3s: after %s: %v", took, err)
		}
		if took, err := source(t.Context(), time.Hour); took != pipeTime || err == nil {
			t.Errorf("without a signal: after %s: %v", took, err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(&interruptedError{syscall.SIGTERM}) })
		var sig *interruptedError
		if took, err := source(ctx, time.Hour); took != time.Second || !errors.As(err, &sig) {
			t.Errorf("with a signal: after %s: %v", took, err)
		}
		command = func(g *globals) error { return runLint(doctorOptions{userData: []string{"-"}}, g) }
		if took, err := source(t.Context(), 3*time.Second); took != 3*time.Second || !errors.Is(err, errOpenInput) {
			t.Errorf("user data, --timeout 3s: after %s: %v", took, err)
		}
		ctx, cancel = context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(&interruptedError{syscall.SIGTERM}) })
		if took, err := source(ctx, time.Hour); took != time.Second || !errors.As(err, &sig) {
			t.Errorf("user data, with a signal: after %s: %v", took, err)
		}
	})
}

// A daemon that drains because the machine shuts down connects after the signal, too.
func TestMongoFileAfterSignal(t *testing.T) {
	g := globalsOf((&testEnv{}).env())
	must.OK(t, os.WriteFile(filepath.Join(g.settings.Root, "mongo"), []byte("10.0.2.4\n"), 0o600))
	g.out.SetForm("text", "never", 0)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(&interruptedError{syscall.SIGTERM})
	g.ctx = ctx
	g.signals.onHangup()
	g.settings.Values[settings.KeyMongo] = settings.Value{Text: "file:/mongo", Origin: settings.Origin{Layer: settings.FromFlag, Name: "--mongo"}}
	if target, err := (&daemonAdapter{g: g}).mongo(context.WithoutCancel(ctx)); err != nil || !strings.Contains(target.String(), "10.0.2.4") {
		t.Errorf("MongoDB is at %v: %v", target, err)
	}
}

// If another user can change the file, that user decides where root connects to.
func TestMongoFileOwner(t *testing.T) {
	for mode, want := range map[os.FileMode]string{0o600: "", 0o644: "", 0o646: "may write to"} {
		e := &testEnv{tty: true}
		g := globalsOf(e.env())
		g.out.SetForm("text", "never", 0)
		path := filepath.Join(g.settings.Root, "mongo")
		must.OK(t, errors.Join(os.WriteFile(path, []byte("10.0.2.4\n"), 0o600), os.Chmod(path, mode)))
		_, err := mongoFile(g, "/mongo", settings.Origin{Layer: settings.FromFlag, Name: "--mongo"})
		must.OK(t, err)
		got := e.stderr.String()
		if want == "" && got != "" || want != "" && (!strings.Contains(got, want) || !strings.Contains(got, "another user can change")) {
			t.Errorf("%04o: %q", mode, got)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file to another user")
	}
	for _, foreign := range []string{"a/b/mongo", "a/b", "a"} {
		e := &testEnv{}
		g := globalsOf(e.env())
		g.out.SetForm("text", "never", 0)
		top := g.settings.Root
		path := filepath.Join(top, "a/b/mongo")
		must.OK(t, errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("10.0.2.4\n"), 0o600), os.Chown(filepath.Join(top, foreign), 12345, 0)))
		if _, err := mongoFile(g, "/a/b/mongo", settings.Origin{Layer: settings.FromFlag, Name: "--mongo"}); err != nil || !strings.Contains(e.stderr.String(), foreign+" belongs to uid 12345") {
			t.Errorf("%s: %v, %q", foreign, err, e.stderr.String())
		}
	}
}

// MongoDB has one error for a user without the right and for no user at all; the hints differ.
func TestForbiddenHint(t *testing.T) {
	for address, want := range map[string]string{
		"10.0.2.4":                 "put the login into the address",
		"mongodb://u:pw@10.0.2.4/": "grant the user readWrite",
	} {
		e := &testEnv{}
		g := globalsOf(e.env())
		g.out.SetForm("text", "never", 0)
		g.settings.Values[settings.KeyMongo] = settings.Value{Text: address, Origin: settings.Origin{Layer: settings.FromEnv, Name: "AMSAGENT_MONGO"}}
		u := g.explain(&cluster.Error{Op: "reading", Kind: cluster.KindForbidden, Err: errors.New("code 13")})
		if len(u.Hints) != 1 || !strings.Contains(u.Hints[0], want) || strings.Contains(u.Hints[0], "pw") {
			t.Errorf("%s: %q", address, u.Hints)
		}
	}
}
