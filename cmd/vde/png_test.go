package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pkg/xattr"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vdefs/vde"
)

func fatPNG(t *testing.T, size int) []byte {
	t.Helper()
	m := image.NewNRGBA(image.Rect(0, 0, size, size))
	for y := range size {
		for x := range size {
			m.SetNRGBA(x, y, color.NRGBA{uint8(x), uint8(y), uint8(x ^ y), 255})
		}
	}
	var b bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.NoCompression}).Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// runPNG runs `vde png`.
func runPNG(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := newPNGCommand(newApp())
	return runCommand(cmd, args)
}

func runCommand(cmd *cobra.Command, args []string) (string, error) {
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(context.Background())
	return out.String(), err
}

func TestPNGFiles(t *testing.T) {
	dir := t.TempDir()
	data := fatPNG(t, 80)
	files := map[string][]byte{
		"a.png": data, "sub/b.PNG": data, "sub/text.png": []byte("no picture"), "cut.png": data[:len(data)/2], "c.jpg": data,
		".git/d.png": data, "linked.png": data,
	}
	put := func() {
		for name, b := range files {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	put()
	if err := os.Link(filepath.Join(dir, "linked.png"), filepath.Join(dir, "other name")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a.png", filepath.Join(dir, "symlink.png")); err != nil {
		t.Fatal(err)
	}
	a := filepath.Join(dir, "a.png")
	old := time.Unix(1e9, 123456789)
	if err := os.Chtimes(a, old, old); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(a, 0o604); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(a, 1234, 4321); err != nil {
			t.Fatal(err)
		}
	}
	attributes := xattr.Set(a, "user.note", []byte("kept")) == nil
	stat := func() (st unix.Stat_t) {
		if err := unix.Stat(a, &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	before := stat()

	out, err := runPNG(t, "--check", "--json", dir)
	if err != nil {
		t.Fatal(err, out)
	}
	for name, b := range files {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, b) {
			t.Errorf("--check changed %s", name)
		}
	}
	var checked, report pngReport
	if err := json.Unmarshal([]byte(out), &checked); err != nil {
		t.Fatal(err, out)
	}
	out, err = runPNG(t, "--json", dir, a)
	if err != nil {
		t.Fatal(err, out)
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatal(err, out)
	}
	if report.Smaller != 2 || checked.Smaller != 2 || checked.BytesAfter != report.BytesAfter || len(report.Files) != 5 ||
		report.Kept["hard-links"] != 1 || report.Kept["not-png"] != 1 || report.Kept["truncated"] != 1 {
		t.Errorf("checked %+v, done %+v", checked, report)
	}
	for name, b := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		small := name == "a.png" || name == "sub/b.PNG"
		if small != (len(got) < len(b)) || !small && !bytes.Equal(got, b) {
			t.Errorf("%s has %d bytes of %d", name, len(got), len(b))
		}
	}
	after := stat()
	if after.Mtim != before.Mtim || after.Mode != before.Mode || after.Uid != before.Uid || after.Gid != before.Gid {
		t.Errorf("attributes %+v, want %+v", after, before)
	}
	if attributes {
		if value, err := xattr.Get(a, "user.note"); err != nil || string(value) != "kept" {
			t.Errorf("attribute %q, %v", value, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(entries, func(e os.DirEntry) bool { return strings.Contains(e.Name(), ".vde-") }) {
		t.Errorf("temporary files are left: %v", entries)
	}

	// A symbolic link that is named stays one; what it names is done. For people the result is a table.
	if err := os.WriteFile(a, data, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err = runPNG(t, filepath.Join(dir, "symlink.png"))
	if err != nil || !strings.Contains(out, "1 of 1 files: saved") || !strings.Contains(out, "BEFORE") {
		t.Error(err, out)
	}
	if target, err := os.Readlink(filepath.Join(dir, "symlink.png")); err != nil || target != "a.png" {
		t.Errorf("the link is %q, %v", target, err)
	}
	if got, _ := os.ReadFile(a); len(got) >= len(data) {
		t.Error("what the link names was not done")
	}
	// Once more there is nothing to do.
	out, err = runPNG(t, dir)
	if err != nil || !strings.Contains(out, "2 already-done") {
		t.Error(err, out)
	}
	if _, err := runPNG(t, filepath.Join(dir, "missing.png")); err == nil {
		t.Error("a missing file is no error")
	}
	if _, err := runPNG(t); codeOf(err) != exitUsage {
		t.Errorf("without arguments: %v", err)
	}
}

// A file that somebody writes while it is encoded stays as they wrote it.
func TestReplaceFileChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.png")
	if err := os.WriteFile(path, []byte("old contents"), 0o644); err != nil {
		t.Fatal(err)
	}
	var before unix.Stat_t
	if err := unix.Stat(path, &before); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("new contents, longer"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(path, &before, []byte("small")); err != errChanged {
		t.Errorf("got %v, want %v", err, errChanged)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left over: %v, %v", entries, err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "new contents, longer" {
		t.Errorf("%q, %v", got, err)
	}
}

// On a terminal a bar tells how far it is, and is gone at the end; elsewhere there is none.
func TestPNGBar(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("there are no terminals: ", err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("there are no terminals: ", err)
	}
	if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	said := make(chan string)
	go func() {
		var all bytes.Buffer
		all.ReadFrom(master) // ends with an error when the terminal is closed
		said <- all.String()
	}()
	dir := t.TempDir()
	for i := range 3 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.png", i)), fatPNG(t, 40), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := newPNGCommand(newApp())
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(terminal)
	cmd.SetArgs([]string{"--check", dir})
	if err := cmd.ExecuteContext(context.Background()); err != nil {
		t.Fatal(err)
	}
	terminal.Close()
	if bar := <-said; !strings.Contains(bar, "png") || !strings.Contains(bar, "%") {
		t.Errorf("on a terminal: %q", bar)
	}
	if strings.Contains(out.String(), "%  |") || !strings.Contains(out.String(), "3 of 3 files: would save") {
		t.Errorf("the table: %q", out.String())
	}
	if bar := newPNGBar(&out, 100); bar.bar != nil {
		t.Error("there is a bar although it is no terminal")
	}
}

// TestMemoryOfPNGs holds that the option memory= bounds what re-encoding PNG files takes, too.
func TestMemoryOfPNGs(t *testing.T) {
	store := filepath.Join(t.TempDir(), "store")
	if _, err := vde.Format(store, vde.FormatOptions{Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	hold, err := vde.Hold(nil, store)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	for list, want := range map[string]int64{"": 1 << 30 / 3, "memory=300M": 100 << 20} {
		cfg := mountConfig{Store: store, Options: defaultMountOptions(true)}
		if err := parseMountOptions(&cfg.Options, []string{list}); err != nil {
			t.Fatal(err)
		}
		v, err := openVolume(cfg, nil, logrus.StandardLogger())
		if err != nil {
			t.Fatal(err)
		}
		if s := v.PNGStats(); s.MemoryLimit != want || s.Mode != "async" {
			t.Errorf("%q: pictures may take %d bytes, want %d; mode %s", list, s.MemoryLimit, want, s.Mode)
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}
}
