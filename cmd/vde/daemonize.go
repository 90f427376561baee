package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// readyEnv names the environment variable that tells a daemon on which descriptor its parent waits to hear that it is ready.
const readyEnv = "VDE_READY_FD"

// readyMessage is what a daemon tells its parent, once: the mount answers, or the error that ended it.
type readyMessage struct {
	Error string   `json:"error,omitempty"`
	Code  exitCode `json:"code,omitempty"`
}

// readyPipe is the daemon's end of the pipe to its parent; nil when nobody waits.
type readyPipe struct{ f *os.File }

// inheritReadyPipe takes over the pipe from the environment.
func inheritReadyPipe() (*readyPipe, error) {
	text, ok := os.LookupEnv(readyEnv)
	if !ok {
		return nil, nil
	}
	os.Unsetenv(readyEnv)
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 3 {
		return nil, usagef("%s=%s is no file descriptor: unset it", readyEnv, text)
	}
	unix.CloseOnExec(fd)
	return &readyPipe{os.NewFile(uintptr(fd), "ready pipe")}, nil
}

// tell reports the outcome of mounting; later calls do nothing.
func (p *readyPipe) tell(err error) {
	if p == nil || p.f == nil {
		return
	}
	var m readyMessage
	if err != nil {
		m = readyMessage{err.Error(), codeOf(err)}
	}
	// A parent that has gone away does not matter to the mount.
	json.NewEncoder(p.f).Encode(m)
	p.f.Close()
	p.f = nil
}

// startDaemon runs this program again with the arguments, detached from the terminal and with its standard output and error
// in the log file, and returns when that process says that it is ready. A process that fails has its error and exit code returned. When ctx
// ends (the user interrupts) it is told to stop.
func startDaemon(ctx context.Context, args []string, logPath string) (pid int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("daemon: %w", err)
	}
	log, err := os.OpenFile(logPath, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return 0, fmt.Errorf("log file: %w; name another with --log-file", err)
	}
	defer log.Close()
	ready, theirs, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("daemon: %w", err)
	}
	defer ready.Close()

	cmd := exec.Command(self, args...)
	cmd.Args[0] = "vde"
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = append(os.Environ(), readyEnv+"=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return 0, fmt.Errorf("daemon: %w", err)
	}

	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	line, err := bufio.NewReader(ready).ReadBytes('\n')
	var m readyMessage
	if err == io.EOF || err == nil && json.Unmarshal(line, &m) != nil {
		// It died without a word: killed, or by a panic, which is in the log.
		return 0, failf(exitDaemonDied, "the daemon ended before the mount was ready (%v): see %s", describeEnd(cmd.Wait()), logPath)
	}
	if err != nil {
		return 0, fmt.Errorf("daemon: %w", err)
	}
	if m.Code != exitOK {
		cmd.Wait()
		return 0, failf(m.Code, "%s", m.Error)
	}
	return cmd.Process.Pid, nil
}

func describeEnd(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}
