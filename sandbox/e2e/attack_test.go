// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/amsagent/amsagent/sandbox/tree"
)

// attacked is a machine whose server's folder belongs to a hostile user, with
// files of root's that he would like to have.
type attacked struct {
	*crashNode
	outside string   // on this machine
	was     []string // what is there
}

// attackOutside is where root's files are, below the agent's root.
const attackOutside = "/etc/outside"

func newAttacked(t *testing.T, variant string) *attacked {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root and a second user")
	}
	a := &attacked{crashNode: newCrashNode(t, 1, crashNodeOptions{shm: true, tree: func(o *tree.Options) { o.Variant = variant }})}
	a.outside = filepath.Join(a.root, attackOutside)
	if err := errors.Join(
		os.Chmod(filepath.Dir(a.root), 0o711), os.MkdirAll(a.outside, 0o755),
		os.WriteFile(filepath.Join(a.outside, "passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o644),
		os.WriteFile(filepath.Join(a.outside, "shadow"), []byte("root:$y$secret:1:0:99999:7:::\n"), 0o600),
		// By the names that the agent looks for, where a folder is exchanged.
		os.WriteFile(filepath.Join(a.outside, "red5.properties"), []byte("a=1\n"), 0o644),
		os.WriteFile(filepath.Join(a.outside, "red5-web.properties"), []byte("a=1\n"), 0o644),
		os.CopyFS(filepath.Join(a.outside, "WEB-INF"), os.DirFS(filepath.Join(a.dir, "webapps/LiveApp/WEB-INF"))),
	); err != nil {
		t.Fatal(err)
	}
	var err error
	if a.was, err = tree.Snapshot(a.outside); err != nil {
		t.Fatal(err)
	}
	return a
}

// as runs a shell line as the hostile user, in the server's folder.
func (a *attacked) as(t *testing.T, line string) {
	t.Helper()
	cmd := exec.Command("sh", "-c", line)
	cmd.Dir = a.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: amsOwner, Gid: amsOwner}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
}

// harmless checks that root's files are as they were, and that nothing in the
// server's folder lends root's rights.
func (a *attacked) harmless() error {
	var errs []error
	now, err := tree.Snapshot(a.outside)
	if err != nil {
		return err
	}
	if !slices.Equal(now, a.was) {
		errs = append(errs, fmt.Errorf("outside the server's folder, now:\n%s\nbefore:\n%s", strings.Join(now, "\n"), strings.Join(a.was, "\n")))
	}
	errs = append(errs, filepath.WalkDir(a.dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return ignoreGone(err)
		}
		info, err := d.Info()
		if err != nil {
			return ignoreGone(err)
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid == 0 {
			return fmt.Errorf("%s belongs to root: %v", name, info.Mode())
		}
		return nil
	}))
	return errors.Join(errs...)
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// TestAttackKept: the container is one of the releases before 1.9.1, replaced as a
// whole. The user edits it, makes it setuid and leaves; the copy that is kept must
// not be root's, nor be written through a link of his.
func TestAttackKept(t *testing.T) {
	for _, link := range []bool{false, true} {
		a := newAttacked(t, "1.9.0")
		a.mustRun(t, "join")
		a.as(t, `echo mine >conf/jee-container.xml; chmod 4755 conf/jee-container.xml`)
		if link {
			a.as(t, `ln -s `+a.outside+`/../made conf/jee-container.xml.amsagent-saved; ln -s /etc/made conf/jee-container.xml.amsagent-saved-1`)
		}
		a.mustRun(t, "leave")
		if err := a.harmless(); err != nil {
			t.Error(err)
		}
		for _, made := range []string{"/etc/made", "/etc/outside/made"} {
			if _, err := os.Lstat(filepath.Join(a.root, made)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", made, err)
			}
		}
		kept, err := filepath.Glob(filepath.Join(a.dir, "conf/jee-container.xml.amsagent-saved*"))
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, name := range kept {
			info, err := os.Lstat(name)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().IsRegular() {
				found = true
				if info.Mode()&(fs.ModeSetuid|0o111) != 0 {
					t.Errorf("%s: %v", name, info.Mode())
				}
			}
		}
		if !found {
			t.Errorf("the edited file is not kept: %v", kept)
		}
	}
}

// TestAttackLinks: what a join refuses, and a leave leaves alone.
func TestAttackLinks(t *testing.T) {
	const app = "webapps/LiveApp/WEB-INF/red5-web.properties"
	for name, tt := range map[string]struct{ line, id string }{
		"a link to root's file":       {"rm " + app + "; ln -s /etc/outside/passwd " + app, "AMS-FILE-LINK"},
		"a link to root's secret":     {"rm " + app + "; ln -s /etc/outside/shadow " + app, "AMS-FILE-LINK"},
		"a link to a folder of roots": {"mv webapps/LiveApp/WEB-INF webapps/old; ln -s /etc/outside webapps/LiveApp/WEB-INF; mv webapps/old webapps/.old", "AMS-FILE-LINK"},
		"a fifo":                      {"rm " + app + "; mkfifo " + app, "AMS-FILE"},
		"an endless file":             {"truncate -s 1G " + app, "AMS-FILE-SIZE"},
		"a link to itself":            {"ln -sf red5-web.properties " + app, "AMS-FILE"},
		"a link without end":          {"ln -sf $(printf '%0300d' 0) " + app, "AMS-FILE"},
		"a file as a folder":          {"mv webapps/LiveApp/WEB-INF webapps/.old; : >webapps/LiveApp/WEB-INF", "AMS-FILE"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttacked(t, "3.0")
			a.mustRun(t, "join")
			a.mustRun(t, "leave")
			a.as(t, "cp -p "+app+" conf/.app")
			a.as(t, tt.line)
			join := a.agent("join")
			if join.Exit != 3 || !strings.Contains(join.Err, tt.id) {
				t.Errorf("join: exit %d\n%s", join.Exit, join.Err)
			}
			if err := a.harmless(); err != nil {
				t.Error(err)
			}
			// It is so after a join: the rest is given back all the same.
			a.as(t, "rm -rf webapps/LiveApp/WEB-INF/red5-web.properties; [ -d webapps/LiveApp/WEB-INF -a ! -L webapps/LiveApp/WEB-INF ] || { rm webapps/LiveApp/WEB-INF; mv webapps/.old webapps/LiveApp/WEB-INF; }; cp -p conf/.app "+app)
			a.mustRun(t, "join")
			a.as(t, tt.line)
			leave := a.agent("leave")
			if leave.Exit != 0 || !strings.Contains(leave.Out+leave.Err, "LiveApp") {
				t.Errorf("leave: exit %d\n%s%s", leave.Exit, leave.Out, leave.Err)
			}
			if err := a.harmless(); err != nil {
				t.Error(err)
			}
			b, err := os.ReadFile(filepath.Join(a.dir, "conf/red5.properties"))
			if err != nil || strings.Contains(string(b), "mongodb://") {
				t.Errorf("red5.properties was not given back: %v", err)
			}
		})
	}
}

// TestAttack runs joins, leaves, convergences and seals while a process of the
// hostile user exchanges files and folders under them. AMSAGENT_ATTACKS says how
// many; 100 is the default. An agent that opens files by their paths, as the agent
// once did, falls within some dozen rounds.
func TestAttack(t *testing.T) {
	a := newAttacked(t, "3.0")
	rounds := 100
	if s := os.Getenv("AMSAGENT_ATTACKS"); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(filepath.Dir(a.root), "adversary")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", program, "../adversary")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, a.root, a.dir, attackOutside, "1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: amsOwner, Gid: amsOwner}, Pdeathsig: syscall.SIGKILL}
	var errs strings.Builder
	cmd.Stderr = &errs
	stop, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(out)
	if line, err := said.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the adversary: %q, %v\n%s", line, err, errs.String())
	}
	commands := [][]string{{"join"}, {"join"}, {"leave"}, {"converge"}, {"join"}, {"seal", "--yes", "--joined"}, {"leave"}}
	exits := map[string]int{}
	for n := range rounds {
		args := commands[n%len(commands)]
		r := a.agent(args...)
		exits[fmt.Sprintf("%s: exit %d", args[0], r.Exit)]++
		if r.Exit != 0 && r.Exit != 1 && r.Exit != 3 || strings.Contains(r.Err, "panic") {
			t.Errorf("%v: exit %d\n%s", args, r.Exit, r.Err)
		}
		if strings.Contains(r.Out+r.Err, "$y$secret") {
			t.Errorf("%v shows root's secret:\n%s%s", args, r.Out, r.Err)
		}
		if err := a.harmless(); err != nil {
			t.Fatalf("%v, round %d: %v", args, n, err)
		}
	}
	if err := stop.Close(); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(said)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the adversary: %v\n%s", err, errs.String())
	}
	t.Logf("%s%v", rest, exits)
	if exits["join: exit 0"] == 0 {
		t.Error("no join came through: nothing was tried")
	}
	// He is gone, and the way back is open.
	a.mustRun(t, "leave")
	a.mustRun(t, "join")
	a.mustRun(t, "leave")
	if err := a.harmless(); err != nil {
		t.Error(err)
	}
	files, err := filepath.Glob(filepath.Join(a.dir, "*/*/*.properties"))
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob(filepath.Join(a.dir, "conf/*.properties"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(files, more...) {
		if b, err := os.ReadFile(name); err != nil || strings.Contains(string(b), "mongodb://") {
			t.Errorf("%s still names the cluster: %v", name, err)
		}
	}
}
