package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vdefs/vde"
)

// The registry is documented, word for word.
func TestExitCodesAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	row := func(code exitCode, when string) {
		t.Helper()
		if line := fmt.Sprintf("| %d | %s |\n", code, when); !strings.Contains(string(text), line) {
			t.Errorf("docs/operations.md lacks the row %q", line)
		}
	}
	for _, e := range exitCodeTable {
		row(e.code, e.when)
	}
	for _, e := range fsckExitCodeTable {
		row(e.code, e.when)
	}
	if help := exitCodeHelp(); !strings.Contains(help, "fsck(8)") {
		t.Error(help)
	}
}

// No number has two meanings.
func TestExitCodesAreDistinct(t *testing.T) {
	seen := map[exitCode]bool{}
	for _, e := range exitCodeTable {
		if seen[e.code] {
			t.Errorf("code %d is there twice", e.code)
		}
		seen[e.code] = true
	}
}

func TestCodeOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want exitCode
	}{
		{nil, exitOK},
		{fmt.Errorf("anything"), exitFailure},
		{usagef("wrong"), exitUsage},
		{fmt.Errorf("outer: %w", failf(exitBusy, "inner")), exitBusy},
		{failf(exitMountpoint, "outer: %w", vde.ErrDamaged), exitMountpoint},
		{fmt.Errorf("x: %w", vde.ErrStoreInUse), exitStoreInUse},
		{fmt.Errorf("x: %w", vde.ErrTooSmall), exitNoSpace},
		{&os.PathError{Op: "open", Path: "/x", Err: syscall.EACCES}, exitPermission},
		{&os.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}, exitNoSpace},
	} {
		if got := codeOf(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
	for _, s := range slices.Concat(storeErrors, clusterErrors) {
		if got := codeOf(fmt.Errorf("x: %w", s.err)); got != s.code {
			t.Errorf("%v: %d, want %d", s.err, got, s.code)
		}
	}
}
