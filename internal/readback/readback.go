// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package readback

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

//go:embed ReadBack.java
var source []byte

// jarDir is Debian's folder of jars; the package libspring-context-java depends on all of them.
const jarDir = "/usr/share/java"

// answerTimeout bounds one response. A cold JVM on a busy machine needs a second or two for the first.
const answerTimeout = 60 * time.Second

// Error is Java's error for an unreadable file.
type Error struct {
	Message string
	Line    int // 0 if unknown
}

func (e *Error) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("java: line %d: %s", e.Line, e.Message)
	}
	return "java: " + e.Message
}

// Reader is a running JVM that reads files for a test. It may be used by several goroutines; requests run one at a time.
type Reader struct {
	mu     sync.Mutex
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	lines  <-chan []byte
	stderr *bytes.Buffer // valid only after the process has ended
	exited <-chan struct{}
}

// Start starts a JVM that ends with the test. Without Java or Spring it skips the test, or fails it with REQUIRE_JAVA=1
// in the environment.
func Start(tb testing.TB) *Reader {
	tb.Helper()
	java, classpath, err := prepare(tb)
	if err != nil {
		if os.Getenv("REQUIRE_JAVA") == "1" {
			tb.Fatalf("REQUIRE_JAVA=1, but Java cannot read our files back: %v", err)
		}
		tb.Skipf("Java cannot read our files back here: %v (make deps DEPS=install brings it)", err)
	}
	r, err := start(java, classpath)
	if err != nil {
		tb.Fatalf("starting Java: %v", err)
	}
	tb.Cleanup(r.close)
	return r
}

// Properties reads a file with java.util.Properties.load: ISO 8859-1, last duplicate wins. Half of a surrogate pair
// becomes U+FFFD, since a Go string cannot hold it.
func (r *Reader) Properties(path string) (map[string]string, error) {
	var answer struct{ Properties map[string]string }
	err := r.ask(&answer, "properties", path)
	return answer.Properties, err
}

// StoreProperties changes a file as AMS does when a user saves settings in its web panel: load, set these keys,
// Properties.store into the same file, in place and not atomically. Comments and order are lost.
func (r *Reader) StoreProperties(path string, set map[string]string) error {
	words := []string{"store", path}
	for key, value := range set {
		words = append(words, key, value)
	}
	var answer struct{}
	return r.ask(&answer, words...)
}

// Resolve fills in the placeholders of text, as in ${clusterdb.host}, by Spring from a properties file, as for a bean's
// values. A placeholder without a value is an error.
func (r *Reader) Resolve(propertiesPath, text string) (string, error) {
	var answer struct{ Text string }
	err := r.ask(&answer, "resolve", propertiesPath, text)
	return answer.Text, err
}

// Beans reads a file with Spring's XmlBeanDefinitionReader, validated against its schema, without network and without
// loading the classes it names.
func (r *Reader) Beans(path string) (Beans, error) {
	var answer struct{ Beans Beans }
	err := r.ask(&answer, "beans", path)
	return answer.Beans, err
}

// ask sends a request and decodes the response.
func (r *Reader) ask(into any, words ...string) error {
	r.mu.Lock()
	defer r.mu.Unlock()

	request := []byte(words[0])
	for _, word := range words[1:] {
		request = append(request, ' ')
		request = base64.StdEncoding.AppendEncode(request, []byte(word))
	}
	if _, err := r.stdin.Write(append(request, '\n')); err != nil {
		return r.died(err)
	}
	timeout := time.NewTimer(answerTimeout)
	defer timeout.Stop()
	select {
	case line, ok := <-r.lines:
		if !ok {
			return r.died(io.ErrUnexpectedEOF)
		}
		var failed struct {
			Error string
			Line  int
		}
		if err := json.Unmarshal(line, &failed); err != nil {
			return fmt.Errorf("reading Java's answer %q: %w", line, err)
		}
		if failed.Error != "" {
			return &Error{Message: failed.Error, Line: failed.Line}
		}
		if err := json.Unmarshal(line, into); err != nil {
			return fmt.Errorf("reading Java's answer %q: %w", line, err)
		}
		return nil
	case <-timeout.C:
		// A late response would be read as the next one's.
		_ = r.cmd.Process.Kill()
		return r.died(fmt.Errorf("no answer in %s", answerTimeout))
	}
}

// died adds the process's standard error.
func (r *Reader) died(err error) error {
	select {
	case <-r.exited:
		return fmt.Errorf("java ended: %w\n%s", err, r.stderr)
	case <-time.After(answerTimeout):
		return fmt.Errorf("java does not listen: %w", err)
	}
}

func (r *Reader) close() {
	_ = r.stdin.Close() // the process ends at the end of its input
	select {
	case <-r.exited:
	case <-time.After(10 * time.Second):
		_ = r.cmd.Process.Kill()
		<-r.exited
	}
}

func start(java, classpath string) (*Reader, error) {
	// Fast start is more important than speed.
	cmd := exec.CommandContext(context.Background(), java,
		"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m", "-Duser.language=en", "-Duser.timezone=UTC",
		"-cp", classpath, "ReadBack")
	// In the C locale Java cannot open a path with a letter beyond ASCII.
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	stderr := new(bytes.Buffer)
	cmd.Stderr = stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	lines, exited := make(chan []byte, 1), make(chan struct{})
	go func() {
		defer close(exited)
		out := bufio.NewReader(stdout)
		for {
			line, err := out.ReadBytes('\n')
			if err != nil {
				break
			}
			lines <- line
		}
		close(lines)
		_ = cmd.Wait() // only after the pipe was read to its end
	}()
	return &Reader{cmd: cmd, stdin: stdin, lines: lines, stderr: stderr, exited: exited}, nil
}

// prepare finds Java and Spring and compiles ReadBack.java once: the class files stay in the user's cache folder under a
// hash of their sources.
func prepare(tb testing.TB) (java, classpath string, err error) {
	tb.Helper()
	var missing []string
	find := func(command string) string {
		if home := os.Getenv("JAVA_HOME"); home != "" {
			if path := filepath.Join(home, "bin", command); isFile(path) {
				return path
			}
		}
		path, err := exec.LookPath(command)
		if err != nil {
			missing = append(missing, command)
		}
		return path
	}
	java, javac := find("java"), find("javac")
	var jars []string
	for _, name := range []string{"spring3-core", "spring3-beans", "spring3-context", "spring3-expression", "spring3-aop", "commons-logging"} {
		jar := filepath.Join(jarDir, name+".jar")
		if !isFile(jar) {
			missing = append(missing, jar)
		}
		jars = append(jars, jar)
	}
	if len(missing) > 0 {
		return "", "", errors.New("there is no " + strings.Join(missing, ", "))
	}
	classpath = strings.Join(jars, ":")

	key := sha256.Sum256(slices.Concat(source, []byte("\x00"+javac+"\x00"+classpath)))
	parent := tb.TempDir()
	if cache, err := os.UserCacheDir(); err == nil {
		dir := filepath.Join(cache, "amsagent-readback")
		if os.MkdirAll(dir, 0o700) == nil {
			parent = dir
		}
	}
	classes := filepath.Join(parent, fmt.Sprintf("%x", key[:12]))
	if !isFile(filepath.Join(classes, "ReadBack.class")) {
		if err := compile(tb.Context(), javac, classpath, parent, classes); err != nil {
			tb.Fatal(err) // our fault, not a missing dependency
		}
	}
	return java, classes + ":" + classpath, nil
}

// compile creates the folder classes atomically. Another test may do the same meanwhile.
func compile(ctx context.Context, javac, classpath, parent, classes string) error {
	work, err := os.MkdirTemp(parent, "compile-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	file, out := filepath.Join(work, "ReadBack.java"), filepath.Join(work, "classes")
	if err := os.WriteFile(file, source, 0o600); err != nil {
		return err
	}
	if said, err := exec.CommandContext(ctx, javac, "-encoding", "UTF-8", "-cp", classpath, "-d", out, file).CombinedOutput(); err != nil {
		return fmt.Errorf("compiling ReadBack.java: %w\n%s", err, said)
	}
	if err := os.Rename(out, classes); err != nil && !isFile(filepath.Join(classes, "ReadBack.class")) {
		return err
	}
	return nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
