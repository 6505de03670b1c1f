package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A target is one fuzz function.
type target struct {
	name   string
	dir    string // of its package: testdata is found there
	binary string
	cache  string // of inputs that reach something new
}

type limits struct {
	total time.Duration // of fuzzing
	stall time.Duration // without an input that ends
}

// run runs the target and reports what it finds. Go's fuzzing has no limit for a
// single input: it would wait in one that hangs until its time is over, and then
// pass.
func (t target) run(ctx context.Context, limits limits) error {
	cmd := exec.Command(t.binary, "-test.run=^$", "-test.fuzz=^"+t.name+"$", "-test.parallel=1",
		"-test.fuzztime="+limits.total.String(), "-test.fuzzcachedir="+t.cache,
		// Otherwise each input that reaches something new is made smaller for a
		// minute, and hardly any other is run: one a second in place of 3,000.
		"-test.fuzzminimizetime=1x")
	cmd.Dir = t.dir
	// A group of its own, to end the workers too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return err
	}
	defer syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	said, hang := t.watch(ctx, cmd.Process.Pid, out, limits)
	err = cmd.Wait()
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", t.name, context.Cause(ctx))
	}
	if onlyTimeIsOver(said) {
		err = nil
	}
	if err := errors.Join(hang, err); err != nil {
		return fmt.Errorf("%s in %s: %w\n%s%s", t.name, t.dir, err, said, t.input(said))
	}
	log.Printf("%s: %s", t.name, strings.TrimPrefix(lastProgress(said), "fuzz: "))
	return nil
}

// watch reads what the target prints to its end. One that is in the same place
// for too long has its worker killed in a way that makes the coordinator keep
// the input, and is itself killed when that does not help.
func (t target) watch(ctx context.Context, pid int, out io.Reader, limits limits) (said string, hang error) {
	lines := make(chan string)
	go func() {
		defer close(lines)
		for in := bufio.NewReader(out); ; {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			lines <- line
		}
	}()
	var all strings.Builder
	var last string
	stalled := time.NewTimer(limits.stall)
	end := time.After(limits.total + 2*limits.stall)
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				return all.String(), hang
			}
			all.WriteString(line)
			if now := place(line); now != last {
				last = now
				stalled.Reset(limits.stall)
			}
		case <-stalled.C:
			if hang == nil {
				hang = fmt.Errorf("one input has run for %v", limits.stall)
				quitWorkers(pid)
				stalled.Reset(limits.stall)
			} else {
				syscall.Kill(-pid, syscall.SIGKILL)
			}
		case <-end:
			hang = errors.Join(hang, fmt.Errorf("did not end within %v", limits.total+2*limits.stall))
			syscall.Kill(-pid, syscall.SIGKILL)
		case <-ctx.Done():
			syscall.Kill(-pid, syscall.SIGKILL)
			ctx = context.WithoutCancel(ctx)
		}
	}
}

var timeIsOver = regexp.MustCompile(`(?m)^--- FAIL: \S+ \(\S+\)\n +context deadline exceeded\nFAIL$`)

// onlyTimeIsOver says whether Go has taken the end of the time for a failure, as it does
// now and then before Go 1.27 (golang/go#75804). What it finds it writes to a file.
func onlyTimeIsOver(said string) bool {
	return timeIsOver.MatchString(said) && !written.MatchString(said)
}

var written = regexp.MustCompile(`Failing input written to (\S+)`)

// input returns the input that failed, since the machine of a log may be gone.
func (t target) input(said string) string {
	file := written.FindStringSubmatch(said)
	if file == nil {
		return ""
	}
	content, err := os.ReadFile(filepath.Join(t.dir, file[1]))
	if err != nil {
		return err.Error()
	}
	const most = 64 << 10 // bytes
	return string(content[:min(len(content), most)])
}

var clock = regexp.MustCompile(`elapsed: \S+|\(\d+/sec\)`)

// place is a line of progress without the time.
func place(line string) string { return clock.ReplaceAllString(line, "") }

func lastProgress(said string) (last string) {
	for line := range strings.Lines(said) {
		if strings.HasPrefix(line, "fuzz: ") {
			last = strings.TrimSpace(line)
		}
	}
	return last
}

// quitWorkers makes the Go programs that the coordinator has started end with an
// exit code, which it takes for a crash in the input at hand.
func quitWorkers(coordinator int) {
	processes, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return
	}
	for _, file := range processes {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // It has ended.
		}
		// The name may hold anything: pid (name) state parent group ...
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err == nil && len(fields) > 2 && fields[1] == strconv.Itoa(coordinator) {
			syscall.Kill(pid, syscall.SIGQUIT)
		}
	}
}
