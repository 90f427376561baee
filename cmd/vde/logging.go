package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// logFlags are the flags that every verb has.
type logFlags struct {
	level  string
	format string
	file   string // "" is standard error
}

// logFile is a log that can be closed and opened again under its name, after it has been rotated. Safe for concurrent use.
type logFile struct {
	path  string
	stdio bool // standard output and error lead here too: what the Go runtime prints when it dies must not be lost
	mu    sync.Mutex
	f     *os.File // guarded by mu
}

func openLogFile(path string, stdio bool) (*logFile, error) {
	l := &logFile{path: path, stdio: stdio}
	return l, l.reopen()
}

// reopen opens the path anew; on failure the old file stays in use.
func (l *logFile) reopen() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return fmt.Errorf("log file: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		l.f.Close()
	}
	l.f = f
	if l.stdio {
		for _, fd := range []int{1, 2} {
			if err := unix.Dup3(int(f.Fd()), fd, 0); err != nil {
				return fmt.Errorf("log file %s as standard output: %w", l.path, err)
			}
		}
	}
	return nil
}

func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Write(p)
}

// newLogger makes the logger that the flags ask for, with a level for when they name none. The logFile is nil when the
// log goes to standard error. stdio is explained at logFile.
func (o logFlags) newLogger(defaultLevel logrus.Level, stdio bool) (*logrus.Logger, *logFile, error) {
	log := logrus.New()
	log.SetOutput(os.Stderr)
	log.SetLevel(defaultLevel)
	if o.level != "" {
		level, err := logrus.ParseLevel(o.level)
		if err != nil {
			return nil, nil, usagef("--log-level %q is one of error, warning, info, debug, trace", o.level)
		}
		log.SetLevel(level)
	}
	const stamp = "2006-01-02T15:04:05.000Z07:00"
	switch o.format {
	case "text":
		plain := o.file != "" || !term.IsTerminal(int(os.Stderr.Fd()))
		log.SetFormatter(&logrus.TextFormatter{DisableColors: plain, FullTimestamp: true, TimestampFormat: stamp})
	case "json":
		log.SetFormatter(&logrus.JSONFormatter{TimestampFormat: stamp})
	default:
		return nil, nil, usagef("--log-format %q is one of text, json", o.format)
	}
	if o.file == "" {
		return log, nil, nil
	}
	path, err := filepath.Abs(o.file)
	if err != nil {
		return nil, nil, fmt.Errorf("--log-file %s: %w", o.file, err)
	}
	file, err := openLogFile(path, stdio)
	if err != nil {
		return nil, nil, err
	}
	log.SetOutput(file)
	return log, file, nil
}
