// Package e2e drives the real program on real mounts, with the tools that people use.
//
// The tests need root and /dev/fuse and are skipped without. Each makes a store of its own, and the store is checked by
// `vde fsck --data` when the test ends. VDE_E2E_BINARY names a program to test instead of one built from the source;
// VDE_E2E_RACE=1 builds it with the race detector.
package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// program is the path of the vde binary that is tested.
var program string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if reason := cannotMount(); reason != "" {
		fmt.Fprintf(os.Stderr, "\n*** the end-to-end tests are SKIPPED: %s ***\n\n", reason)
		return 0
	}
	program = os.Getenv("VDE_E2E_BINARY")
	if program == "" {
		dir, err := os.MkdirTemp("", "vde-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "vde")
		args := []string{"build", "-o", program}
		if os.Getenv("VDE_E2E_RACE") != "" {
			args = append(args, "-race")
		}
		build := exec.Command("go", append(args, "vdefs/cmd/vde")...)
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if os.Getenv("VDE_E2E_RACE") == "" {
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
		}
		if err := build.Run(); err != nil {
			fmt.Fprintf(os.Stderr, "go build vdefs/cmd/vde: %v\n", err)
			return 1
		}
	}
	return m.Run()
}

// cannotMount says why this process cannot mount, "" if it can.
func cannotMount() string {
	if os.Geteuid() != 0 {
		return "they need root"
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Sprintf("they need /dev/fuse: %v", err)
	}
	f.Close()
	return ""
}
