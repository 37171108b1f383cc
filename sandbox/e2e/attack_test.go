// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/tree"
)

// prey is a server's folder that belongs to the hostile user, and files of root that the attack must not reach.
type prey struct {
	// folder and outside are where they are on this machine.
	folder, outside string
	was             []string // what is outside
	marks           string   // the inodes of files that others than the agent made setuid, setgid or capable
	// linkable are the inodes of root's files that the kernel lets the hostile user link to.
	linkable []uint64
	// roots are the inodes of all that is outside.
	roots []uint64
}

// attackOutside is where root's files are, below the agent's root.
const attackOutside = "/etc/outside"

// newPrey puts root's files below a root, and keeps the marks in a file.
func newPrey(t *testing.T, root, folder, marks string) *prey {
	t.Helper()
	p := &prey{folder: folder, outside: filepath.Join(root, attackOutside), marks: marks}
	if err := errors.Join(
		os.WriteFile(p.marks, nil, 0o600), os.MkdirAll(p.outside, 0o755),
		os.WriteFile(filepath.Join(p.outside, "passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o644),
		os.WriteFile(filepath.Join(p.outside, "shadow"), []byte("root:$y$secret:1:0:99999:7:::\n"), 0o600),
		// With fs.protected_hardlinks the hostile user can link only to files that it may write.
		os.WriteFile(filepath.Join(p.outside, "shared"), []byte("root's\n"), 0o600), os.Chmod(filepath.Join(p.outside, "shared"), 0o666),
		// The names that the agent opens when a folder is exchanged.
		os.WriteFile(filepath.Join(p.outside, "red5.properties"), []byte("a=1\n"), 0o644),
		os.WriteFile(filepath.Join(p.outside, "red5-web.properties"), []byte("a=1\n"), 0o644),
		os.CopyFS(filepath.Join(p.outside, "WEB-INF"), os.DirFS(filepath.Join(p.folder, "webapps/LiveApp/WEB-INF"))),
	); err != nil {
		t.Fatal(err)
	}
	for _, name := range sealedNames() {
		must.OK(t, os.WriteFile(filepath.Join(p.outside, name), []byte("root's\n"), 0o644))
	}
	var err error
	if p.was, err = tree.Snapshot(p.outside); err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(p.outside, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			p.roots = append(p.roots, info.Sys().(*syscall.Stat_t).Ino)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	names := []string{"shared"}
	if b, err := os.ReadFile("/proc/sys/fs/protected_hardlinks"); err == nil && strings.TrimSpace(string(b)) == "0" {
		names = append(names, "passwd", "shadow", "red5.properties", "red5-web.properties")
	}
	for _, name := range names {
		info, err := os.Lstat(filepath.Join(p.outside, name))
		must.OK(t, err)
		p.linkable = append(p.linkable, info.Sys().(*syscall.Stat_t).Ino)
	}
	return p
}

// attacked is a machine with prey.
type attacked struct {
	*crashNode
	*prey
}

// newAttacked is the node of this number.
func newAttacked(t *testing.T, number int, variant string, o crashNodeOptions) *attacked {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root and a second user")
	}
	o.tree, o.owner = func(o *tree.Options) { o.Variant = variant }, true
	n := newCrashNode(t, number, o)
	base := filepath.Dir(n.Path("/"))
	if err := errors.Join(
		os.Chmod(base, 0o711), // the hostile user must reach the folder
		os.MkdirAll(filepath.Join(n.StandIn.Tree.Dir, "log"), 0o755), os.Chown(filepath.Join(n.StandIn.Tree.Dir, "log"), amsOwner, amsOwner),
	); err != nil {
		t.Fatal(err)
	}
	return &attacked{n, newPrey(t, n.Path("/"), n.StandIn.Tree.Dir, filepath.Join(base, "marks"))}
}

// sealedNames are files that a seal removes where the server keeps them.
func sealedNames() []string {
	return []string{"instanceId", "SECRET_KEY", ".closed", "liveapp.db", "ant-media-server.log", "key.pem", "red5-web.properties.amsagent-saved"}
}

// litter writes the sealedNames as the server does, through any links that its folders are by now.
func (a *attacked) litter() {
	const line = `for dir in . conf log webapps/LiveApp webapps/LiveApp/WEB-INF; do for name; do echo x >"$dir/$name"; done; done`
	_ = a.shell(line, sealedNames()...).Run() // fails if a folder is not the hostile user's at the moment
}

// shell returns a shell line that runs as the hostile user in the server's folder.
func (a *attacked) shell(line string, args ...string) *exec.Cmd {
	cmd := exec.Command("sh", append([]string{"-c", line, "sh"}, args...)...)
	cmd.Dir = a.StandIn.Tree.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: amsOwner, Gid: amsOwner}}
	return cmd
}

// as runs a shell line as the hostile user.
func (a *attacked) as(t *testing.T, line string) {
	t.Helper()
	if out, err := a.shell(line).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
}

// capabilities are CAP_DAC_OVERRIDE's, as setcap writes them.
var capabilities = []byte("\x01\x00\x00\x02\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")

const capabilityXattr = "security.capability"

// privilege makes a file setuid, setgid and capable, as an installer may have done, and
// notes its inode.
func (a *attacked) privilege(t *testing.T, name string) {
	t.Helper()
	real := filepath.Join(a.StandIn.Tree.Dir, name)
	info, err := os.Lstat(real)
	must.OK(t, err)
	marks, err := os.OpenFile(a.marks, os.O_WRONLY|os.O_APPEND, 0)
	must.OK(t, err)
	defer marks.Close()
	_, err = fmt.Fprintln(marks, info.Sys().(*syscall.Stat_t).Ino)
	must.OK(t, errors.Join(err, os.Chmod(real, fs.ModeSetuid|fs.ModeSetgid|0o755), unix.Setxattr(real, capabilityXattr, capabilities, 0)))
}

// harmless checks that root's files are as they were, and that what the agent made in the
// server's folder does not belong to root, is not setuid or setgid, and has no
// capabilities.
func (p *prey) harmless() error {
	var errs []error
	now, err := tree.Snapshot(p.outside)
	if err != nil {
		return err
	}
	if !slices.Equal(now, p.was) {
		errs = append(errs, fmt.Errorf("outside the server's folder, now:\n%s\nbefore:\n%s", strings.Join(now, "\n"), strings.Join(p.was, "\n")))
	}
	privileged := map[uint64]string{}
	errs = append(errs, filepath.WalkDir(p.folder, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return ignoreGone(err)
		}
		info, err := d.Info()
		if err != nil {
			return ignoreGone(err)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		// While a folder is a link, the walk itself gets outside, and no file there has a second name.
		astray := ok && slices.Contains(p.roots, st.Ino) && (info.IsDir() || st.Nlink == 1)
		if ok && st.Uid == 0 && !astray && !slices.Contains(p.linkable, st.Ino) {
			return fmt.Errorf("%s belongs to root: %v", name, info.Mode())
		}
		if !ok || !info.Mode().IsRegular() {
			return nil
		}
		n, err := unix.Lgetxattr(name, capabilityXattr, nil)
		if capable := err == nil && n > 0; capable || info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			privileged[st.Ino] = fmt.Sprintf("%s: %v, capabilities: %v", name, info.Mode(), capable)
		}
		return nil
	}))
	// Other processes record the inode of a file before they make it privileged.
	marks, err := os.ReadFile(p.marks)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(marks)) {
		if ino, err := strconv.ParseUint(strings.TrimSpace(line), 10, 64); err == nil {
			delete(privileged, ino)
		}
	}
	for _, text := range privileged {
		errs = append(errs, errors.New(text))
	}
	return errors.Join(errs...)
}

// retry runs a command until it succeeds, and checks after each run that it did no harm. A drain is refused until the daemon
// manages the node, and a join while a file does not belong to the server.
func (p *prey) retry(t *testing.T, args []string, done func() bool) bool {
	t.Helper()
	for deadline := time.Now().Add(patience); ; wait(50 * time.Millisecond) {
		ok := done()
		if err := p.harmless(); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		if ok || time.Now().After(deadline) {
			return ok
		}
	}
}

func ignoreGone(err error) error {
	// A folder may be something else by the time it is opened.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
		return nil
	}
	return err
}

// TestAttackKept: a join replaces the whole container of releases before 1.9.1. The hostile user edits it and makes it setuid.
// The copy that a leave keeps must not belong to root, nor be written through a link of that user.
func TestAttackKept(t *testing.T) {
	for _, link := range []bool{false, true} {
		a := newAttacked(t, 1, "1.9.0", crashNodeOptions{shm: true})
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
			if _, err := os.Lstat(a.Path(made)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", made, err)
			}
		}
		kept, err := filepath.Glob(filepath.Join(a.StandIn.Tree.Dir, "conf/jee-container.xml.amsagent-saved*"))
		must.OK(t, err)
		found := false
		for _, name := range kept {
			info, err := os.Lstat(name)
			must.OK(t, err)
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

// TestAttackLinks: files that a join refuses and a leave ignores.
func TestAttackLinks(t *testing.T) {
	const app = "webapps/LiveApp/WEB-INF/red5-web.properties"
	for name, tt := range map[string]struct{ line, id string }{
		"a link to root's file":       {"rm " + app + "; ln -s /etc/outside/passwd " + app, "AMS-FILE-LINK"},
		"a link up to root's file":    {"rm " + app + "; ln -s ../../../../../../etc/outside/passwd " + app, "AMS-FILE-LINK"},
		"a link to root's secret":     {"rm " + app + "; ln -s /etc/outside/shadow " + app, "AMS-FILE-LINK"},
		"a link to a folder of roots": {"mv webapps/LiveApp/WEB-INF webapps/old; ln -s /etc/outside webapps/LiveApp/WEB-INF; mv webapps/old webapps/.old", "AMS-FILE-LINK"},
		"a fifo":                      {"rm " + app + "; mkfifo " + app, "AMS-FILE"},
		"an endless file":             {"truncate -s 1G " + app, "AMS-FILE-SIZE"},
		"a link to itself":            {"ln -sf red5-web.properties " + app, "AMS-FILE"},
		"a link without end":          {"ln -sf $(printf '%0300d' 0) " + app, "AMS-FILE"},
		"a file as a folder":          {"mv webapps/LiveApp/WEB-INF webapps/.old; : >webapps/LiveApp/WEB-INF", "AMS-FILE"},
		"a malformed line":            {`printf 'x=\\uZZZZ\n' >>` + app, "AMS-FILE"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttacked(t, 1, "3.0", crashNodeOptions{shm: true})
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
			b, err := os.ReadFile(filepath.Join(a.StandIn.Tree.Dir, "conf/red5.properties"))
			if err != nil || strings.Contains(string(b), "mongodb://") {
				t.Errorf("red5.properties was not given back: %v", err)
			}
		})
	}
}

// TestAttackManyLinks: a file has as many names as the file system allows, so that its
// backup cannot be one more.
func TestAttackManyLinks(t *testing.T) {
	a := newAttacked(t, 1, "3.0", crashNodeOptions{}) // on a disk: a file in memory has any number
	first := filepath.Join(a.StandIn.Tree.Dir, "conf/red5.properties")
	dir := filepath.Join(a.StandIn.Tree.Dir, "links")
	must.OK(t, os.Mkdir(dir, 0o755))
	must.OK(t, os.Chown(dir, amsOwner, amsOwner))
	const more = 66_000 // than ext4 and btrfs allow
	for i := range more {
		err := os.Link(first, filepath.Join(dir, strconv.Itoa(i)))
		if errors.Is(err, unix.EMLINK) {
			break
		}
		must.OK(t, err)
		if i == more-1 {
			t.Skip("this file system allows any number of names")
		}
	}
	was, err := os.ReadFile(first)
	must.OK(t, err)
	a.mustRun(t, "join")
	if b, err := os.ReadFile(first); err != nil || !strings.Contains(string(b), "mongodb://") {
		t.Errorf("it was not written: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "0")); err != nil || string(b) != string(was) {
		t.Errorf("its other names were written: %v", err)
	}
	if err := a.harmless(); err != nil {
		t.Error(err)
	}
	a.mustRun(t, "leave")
	if b, err := os.ReadFile(first); err != nil || string(b) != string(was) {
		t.Errorf("it was not given back: %v", err)
	}
	if err := a.harmless(); err != nil {
		t.Error(err)
	}
}

// adversary begins the attack; calm ends it, and returns how often each kind of attack
// was in place. all is closed once each was.
func (a *attacked) adversary(t *testing.T) (all <-chan struct{}, calm func() string) {
	t.Helper()
	program := filepath.Join(filepath.Dir(a.Path("/")), "adversary")
	buildAdversary(t, program)
	cmd := exec.Command(program, a.Path("/"), a.StandIn.Tree.Dir, attackOutside, attackSeed(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: amsOwner, Gid: amsOwner}, Pdeathsig: syscall.SIGKILL}
	return a.attack(t, cmd)
}

func buildAdversary(t *testing.T, program string) {
	t.Helper()
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", program, "../adversary")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	must.OK(t, os.Chmod(program, 0o755))
}

// attackSeed is what AMSAGENT_ATTACK_SEED says, to repeat an attack, or another one each time.
func attackSeed(t *testing.T) string {
	t.Helper()
	seed := os.Getenv("AMSAGENT_ATTACK_SEED")
	if seed == "" {
		seed = strconv.FormatInt(time.Now().UnixNano(), 10)
	}
	t.Logf("AMSAGENT_ATTACK_SEED=%s", seed)
	return seed
}

// attack is adversary by a command.
func (p *prey) attack(t *testing.T, cmd *exec.Cmd) (all <-chan struct{}, calm func() string) {
	t.Helper()
	marks, err := os.OpenFile(p.marks, os.O_WRONLY|os.O_APPEND, 0)
	must.OK(t, err)
	defer marks.Close()
	cmd.ExtraFiles = []*os.File{marks}
	h, err := hold(t, cmd)
	must.OK(t, err)
	t.Cleanup(func() { _ = h.end() }) // a machine that it is in cannot end before
	if line := h.line(); line != "ready\n" {
		t.Fatalf("the adversary: %q, %v\n%s", line, h.end(), h.said)
	}
	each, rest := make(chan struct{}), make(chan string, 1)
	go func() {
		var text strings.Builder
		for line := h.line(); line != ""; line = h.line() {
			if line == "all\n" {
				close(each)
				continue
			}
			text.WriteString(line)
		}
		rest <- text.String()
	}()
	return each, func() string {
		t.Helper()
		must.OK(t, h.in.Close())
		text := <-rest
		if err := h.end(); err != nil {
			t.Fatalf("the adversary: %v\n%s", err, h.said)
		}
		return text
	}
}

// rounds calls f that many times, and on until each kind of attack was in place and enough
// says so: a busy machine lets few commands come through.
func rounds(least int, all <-chan struct{}, enough func() bool, f func(n int)) {
	begin := time.Now()
	for n := 0; ; n++ {
		if n >= least {
			select {
			case <-all:
				if enough() {
					return
				}
			default:
			}
			if time.Since(begin) > patience {
				return
			}
		}
		f(n)
	}
}

// try runs a command under attack. It may fail, and must do no harm.
func (a *attacked) try(t *testing.T, args ...string) ran {
	t.Helper()
	r := a.agent(args...)
	if r.Exit != 0 && r.Exit != 1 && r.Exit != 3 || strings.Contains(r.Err, "panic") {
		t.Errorf("%v: exit %d\n%s", args, r.Exit, r.Err)
	}
	if strings.Contains(r.Out+r.Err, "$y$secret") {
		t.Errorf("%v shows root's secret:\n%s%s", args, r.Out, r.Err)
	}
	if err := a.harmless(); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return r
}

// besideAttack is a kind of attack that needs the agent to be writing.
const besideAttack = "what the agent has beside a file"

// struck checks that each kind of attack but those of chance was in place.
func struck(t *testing.T, said string, chance ...string) {
	t.Helper()
	t.Log(said)
	kinds := 0
	for line := range strings.Lines(said) {
		name, count, ok := strings.Cut(line, ": ")
		if done, _, of := strings.Cut(count, " of "); ok && of {
			kinds++
			if done == "0" && !slices.Contains(chance, name) {
				t.Errorf("%s: the adversary never brought it about", name)
			}
		}
	}
	if kinds == 0 {
		t.Error("the adversary reports no kind of attack")
	}
}

// wayBack checks that the adversary has not closed it.
func (a *attacked) wayBack(t *testing.T) {
	t.Helper()
	a.mustRun(t, "leave")
	a.mustRun(t, "join")
	a.mustRun(t, "leave")
	if err := a.harmless(); err != nil {
		t.Error(err)
	}
	// The hostile user may spoil the rest of its own files: a leave restores the content that the join found.
	in, err := ams.Open(a.Path("/"), "")
	must.OK(t, err)
	if mode, err := in.Mode(); err != nil || mode != conf.ModeStandalone {
		t.Errorf("the server is in mode %v, %v", mode, err)
	}
	for _, pattern := range []string{"conf/*.properties", "*/*/*.properties", "*/*/*/*.properties"} {
		files, err := filepath.Glob(filepath.Join(a.StandIn.Tree.Dir, pattern))
		must.OK(t, err)
		for _, name := range files {
			if b, err := os.ReadFile(name); err != nil || strings.Contains(string(b), "mongodb://") {
				t.Errorf("%s still names the cluster: %v", name, err)
			}
		}
	}
}

// attackRounds is how many commands TestAttack runs: they take 10 s, with some 300
// attacks.
const attackRounds = 500

// attackNumber is how much of something is done; AMSAGENT_ATTACKS is another number.
func attackNumber(t *testing.T, usual int) int {
	t.Helper()
	s := os.Getenv("AMSAGENT_ATTACKS")
	if s == "" {
		return usual
	}
	n, err := strconv.Atoi(s)
	must.OK(t, err)
	return n
}

// TestAttack runs joins, leaves and seals while a process of the hostile user exchanges
// files and folders under them. An agent that opens files by their paths, as the agent once
// did, falls within some dozen rounds.
func TestAttack(t *testing.T) {
	a := newAttacked(t, 1, "3.0", crashNodeOptions{shm: true})
	for _, name := range []string{"conf/jee-container.xml", "conf/red5.properties", "webapps/LiveApp/WEB-INF/red5-web.properties"} {
		a.privilege(t, name)
	}
	all, calm := a.adversary(t)
	commands := [][]string{{"join"}, {"join"}, {"leave"}, {"join"}, {"leave"}, {"seal", "--yes"}}
	exits := map[string]int{}
	enough := func() bool {
		return exits["join: exit 0"] > 0 && exits["leave: exit 0"] > 0 && exits["seal: exit 0"] > 0
	}
	rounds(attackNumber(t, attackRounds), all, enough, func(n int) {
		args := commands[n%len(commands)]
		if args[0] == "seal" {
			a.litter()
		}
		r := a.try(t, args...)
		exits[fmt.Sprintf("%s: exit %d", args[0], r.Exit)]++
	})
	struck(t, calm())
	t.Log(exits)
	for _, name := range []string{"join", "leave", "seal"} {
		if exits[name+": exit 0"] == 0 {
			t.Errorf("no %s came through: nothing was tried", name)
		}
	}
	a.wayBack(t)
}

// TestAttackConverge: the connection string is another one each time, so that a convergence
// rewrites the server's files, while they are attacked. Before a start of the server root
// does that unattended, and never fails.
func TestAttackConverge(t *testing.T) {
	a := newAttacked(t, 1, "3.0", crashNodeOptions{shm: true, mongo: startCrashMongo(t)})
	a.mustRun(t, "join")
	where := a.Path("etc/amsagent/mongo")
	secret, err := os.ReadFile(where)
	must.OK(t, err)
	all, calm := a.adversary(t)
	before := []string{"converge", "--before-start", "--root", a.Path("/"), "--service-command", a.wrap} // no variable counts
	byHand := []string{"converge", "--timeout", "5s"}                                                    // while the server runs, it only reads
	commands := [][]string{before, before, byHand}
	written := map[string]int{}
	rounds(attackRounds, all, func() bool { return len(written) == 1 }, func(n int) {
		must.OK(t, os.WriteFile(where, fmt.Appendf(nil, "%s&appName=round%d\n", strings.TrimSpace(string(secret)), n), 0o600))
		args := commands[n%len(commands)]
		r := a.try(t, args...)
		if n%len(commands) < 2 && r.Exit != 0 {
			t.Errorf("%v keeps the server from starting: exit %d\n%s", args, r.Exit, r.Err)
		}
		if strings.Contains(r.Out+r.Err, "written again: /usr/local/antmedia/") {
			written[strings.Join(args, " ")]++
		}
	})
	struck(t, calm())
	t.Log(written)
	if written[strings.Join(before, " ")] == 0 || len(written) != 1 {
		t.Errorf("written by %v; want by the one before a start", written)
	}
	must.OK(t, os.WriteFile(where, secret, 0o600))
	a.wayBack(t)
}

// attackDrains is how many drains TestAttackDrain makes, of attackedNodes nodes at the same time: with the join after it one
// takes 12 s, most of it in waiting. `make prove-attack` makes more.
const attackDrains, attackedNodes = 40, 8

// TestAttackDrain lets daemons drain their nodes while the files of these are attacked: each drain
// comes to its end, and the node can join again.
func TestAttackDrain(t *testing.T) {
	mongo := startCrashMongo(t)
	drains := (attackNumber(t, attackDrains) + attackedNodes - 1) / attackedNodes
	var all sync.WaitGroup // and not t.Parallel, which runs as many as there are processors: these wait
	for number := range attackedNodes {
		all.Go(func() {
			t.Run(strconv.Itoa(number), func(t *testing.T) {
				newAttacked(t, number, "3.0", crashNodeOptions{shm: true, mongo: mongo}).drains(t, drains)
			})
		})
	}
	all.Wait()
}

func (a *attacked) drains(t *testing.T, times int) {
	t.Helper()
	a.mustRun(t, "join")
	a.Daemon()
	_, calm := a.adversary(t)
	for range times {
		for _, args := range [][]string{{"drain", "--now"}, {"join"}} {
			var r ran
			done := a.retry(t, args, func() bool {
				r = a.agent(args...)
				return r.Exit == 0
			})
			if !done || strings.Contains(r.Out+r.Err, "$y$secret") {
				t.Fatalf("%v: exit %d\n%s%s", args, r.Exit, r.Out, r.Err)
			}
		}
	}
	struck(t, calm(), besideAttack)
	a.wayBack(t)
}
