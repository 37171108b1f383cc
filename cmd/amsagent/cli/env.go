// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/ams"
)

// Env is the environment of the command line. Tests have another; all fields are set.
type Env struct {
	Stdin  io.Reader
	Stdout io.Writer
	// Stderr must be safe for concurrent use: the goroutine that watches signals logs to it, too.
	Stderr io.Writer

	LookupEnv func(name string) (string, bool)
	// Environ lists NAME=value: misspelt AMSAGENT_ variables are found in it, and support passes it on.
	Environ func() []string
	// Clearenv takes the variables from the libraries, too.
	Clearenv func()

	// IsTerminal reports whether one of the three streams above is a terminal.
	IsTerminal func(stream any) bool
	// Size is that of a terminal in columns and rows, 0 if it is not known.
	Size func(stream any) (columns, rows int)
	// IsJournal is true if Stderr is the systemd journal.
	IsJournal bool

	Now     func() time.Time
	Geteuid func() int
	// Executable is the path of this program.
	Executable func() (string, error)
	// Journal writes a line into the journal of a unit. It fails without a journal.
	Journal func(unit, line string) error

	// Signals delivers the signals that mean "stop", until the returned function is called.
	Signals func() (<-chan os.Signal, func())
	// Notify reports a state to the service manager, if one started this process.
	Notify func(state string)
	// Exit ends the process at once; a second signal leads to it.
	Exit func(code int)
}

// OS is the real environment of this process.
func OS() Env {
	isJournal, _ := journal.StderrIsJournalStream() // an invalid JOURNAL_STREAM is no journal
	return Env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		LookupEnv: os.LookupEnv, Environ: os.Environ, Clearenv: os.Clearenv,
		IsTerminal: isTerminal, Size: terminalSize, IsJournal: isJournal,
		Now: time.Now, Geteuid: os.Geteuid, Executable: os.Executable, Journal: journalLine,
		Signals: stopSignals, Notify: notify,
		Exit: os.Exit, // only the second signal calls it below Main
	}
}

// getenv returns a variable. An empty one counts as not set, as `NAME=` in an EnvironmentFile.
func (e Env) getenv(name string) string {
	v, _ := e.LookupEnv(name)
	return v
}

// forget removes the environment of the server's unit, because the server's user may write its EnvironmentFile=. systemd's
// own variables stay; credentials only in the unit's own folder, where only root can write.
func (e *Env) forget() {
	kept := map[string]string{}
	for _, name := range []string{"INVOCATION_ID", "JOURNAL_STREAM", "CREDENTIALS_DIRECTORY"} {
		kept[name] = e.getenv(name)
	}
	if kept["CREDENTIALS_DIRECTORY"] != "/run/credentials/"+ams.DefaultUnit {
		delete(kept, "CREDENTIALS_DIRECTORY")
	}
	e.LookupEnv = func(name string) (string, bool) { v, ok := kept[name]; return v, ok }
	e.Environ = func() []string { return nil }
	e.Clearenv()
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok || f == nil {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// notify implements sd_notify(3). The library's function may block for ever, and heartbeats with it.
func notify(state string) {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return
	}
	if c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"}); err == nil {
		_ = c.SetWriteDeadline(time.Now().Add(notifyTime))
		_, _ = c.Write([]byte(state)) // a failure has no other reader
		_ = c.Close()
	}
}

// notifyTime is how long systemd may take to receive a state.
const notifyTime = 100 * time.Millisecond

func terminalSize(stream any) (columns, rows int) {
	f, ok := stream.(*os.File)
	if !ok || f == nil {
		return 0, 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return int(size.Col), int(size.Row)
}

// stopSignals receives the signals that end a command. A signal that the parent ignores stays ignored, as nohup needs.
//
// It drops SIGPIPE: after `| head`, a join must get a write error instead of its end between two files. Programs that we
// start do not inherit that.
func stopSignals() (<-chan os.Signal, func()) {
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	ch := make(chan os.Signal, 2)
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(sig) {
			signal.Notify(ch, sig)
		}
	}
	return ch, func() {
		signal.Stop(ch)
		signal.Stop(pipe)
	}
}

// errNoJournal: nothing receives lines for the journal of a unit.
var errNoJournal = errors.New("there is no journal")

// journalTime bounds the writing of a line: a stopped journald receives none, and the server's start waits.
const journalTime = 200 * time.Millisecond

// journalLine writes a line into the journal of a unit whose output goes elsewhere: journalctl -u shows what root writes
// about the unit in OBJECT_SYSTEMD_UNIT.
func journalLine(unit, line string) error {
	sent := make(chan error, 1)
	go func() {
		sent <- journal.Send(strings.Join(strings.Fields(line), " "), journal.PriNotice, map[string]string{
			"SYSLOG_IDENTIFIER": "amsagent", "OBJECT_SYSTEMD_UNIT": unit,
		})
	}()
	select {
	case err := <-sent:
		return err
	case <-time.After(journalTime):
		return errNoJournal
	}
}
