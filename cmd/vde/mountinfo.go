package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fsType is how a mount of ours is called in /proc/self/mountinfo.
const fsType = "fuse.vde"

// mountEntry is one line of /proc/self/mountinfo.
type mountEntry struct {
	Device     string // major:minor
	Mountpoint string
	Options    string // of this mount
	Type       string
	Source     string // of our mounts: the store
}

// mounts lists what is mounted in this process's mount namespace, in mount order: of several at one place the last one is seen.
func mounts() ([]mountEntry, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list of mounts: %w", err)
	}
	defer f.Close()
	return parseMountinfo(f)
}

// parseMountinfo reads the format of proc_pid_mountinfo(5):
//
//	36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
func parseMountinfo(r io.Reader) ([]mountEntry, error) {
	var list []mountEntry
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		front, back, ok := strings.Cut(lines.Text(), " - ")
		a, b := strings.Fields(front), strings.Fields(back)
		if !ok || len(a) < 6 || len(b) < 2 {
			return nil, fmt.Errorf("list of mounts: line %q is not as expected", lines.Text())
		}
		list = append(list, mountEntry{Device: a[2], Mountpoint: unescapeMount(a[4]), Options: a[5], Type: b[0], Source: unescapeMount(b[1])})
	}
	return list, lines.Err()
}

// unescapeMount undoes the kernel's \ooo for space, tab, newline, backslash and '#'.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if code, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(code))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// vdeMounts lists the mounted vde filesystems.
func vdeMounts() ([]mountEntry, error) {
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	var ours []mountEntry
	for _, m := range all {
		if m.Type == fsType {
			ours = append(ours, m)
		}
	}
	return ours, nil
}

// mountedAt finds what is seen at a mount point; nil if nothing is mounted there. The path must be as from resolvePath.
func mountedAt(mountpoint string) (*mountEntry, error) {
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].Mountpoint == mountpoint {
			return &all[i], nil
		}
	}
	return nil, nil
}

// mountOf finds the mount of a store; nil if it is not mounted here. The path must be as from resolvePath.
func mountOf(store string) (*mountEntry, error) {
	ours, err := vdeMounts()
	if err != nil {
		return nil, err
	}
	for i := len(ours) - 1; i >= 0; i-- {
		if ours[i].Source == store {
			return &ours[i], nil
		}
	}
	return nil, nil
}

// resolvePath makes a path absolute and free of symlinks. It does not touch what the last component leads to unless that is a
// symlink, because a mount whose daemon is dead or stuck answers nothing.
func resolvePath(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	full := filepath.Join(parent, filepath.Base(abs))
	if m, err := mountedAt(full); err == nil && m != nil {
		return full, nil
	}
	resolved, err := filepath.EvalSymlinks(full)
	if errors.Is(err, unix.ENOENT) {
		return full, nil // for the caller to complain about, or to create
	}
	return resolved, err
}

// holder is a process that keeps a mount busy.
type holder struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	Path    string `json:"path"` // what it has open
}

func (h holder) String() string { return fmt.Sprintf("%s (pid %d) with %s", h.Command, h.PID, h.Path) }

// holdersOf looks through /proc for processes that use files below a mount point: open files, working and root directories, programs,
// mapped files. Processes of others are seen by root only. It reads links only, so it cannot hang on a dead mount.
func holdersOf(mountpoint string) []holder {
	below := func(path string) bool { return path == mountpoint || strings.HasPrefix(path, mountpoint+"/") }
	procs, _ := filepath.Glob("/proc/[0-9]*")
	var found []holder
	for _, proc := range procs {
		path := usedBelow(proc, below)
		if path == "" {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(proc))
		command, _ := os.ReadFile(proc + "/comm")
		found = append(found, holder{pid, strings.TrimSpace(string(command)), path})
	}
	return found
}

// usedBelow returns one path that a process uses and that below accepts, or "".
func usedBelow(proc string, below func(string) bool) string {
	links := []string{proc + "/cwd", proc + "/root", proc + "/exe"}
	for _, dir := range []string{proc + "/fd", proc + "/map_files"} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			links = append(links, dir+"/"+e.Name())
		}
	}
	for _, link := range links {
		if path, err := os.Readlink(link); err == nil && below(path) {
			return path
		}
	}
	return ""
}

// describeHolders says in one line who keeps a mount busy.
func describeHolders(mountpoint string) string {
	if all, err := mounts(); err == nil {
		for _, m := range all {
			if strings.HasPrefix(m.Mountpoint, mountpoint+"/") {
				return fmt.Sprintf("%s is mounted inside it", m.Mountpoint)
			}
		}
	}
	holders := holdersOf(mountpoint)
	const show = 3
	switch {
	case len(holders) == 0:
		return "no process was found that uses it (a loop device, a nested mount namespace or another user's process may)"
	case len(holders) > show:
		return fmt.Sprintf("used by %s and %d more", joinHolders(holders[:show]), len(holders)-show)
	default:
		return "used by " + joinHolders(holders)
	}
}

func joinHolders(holders []holder) string {
	words := make([]string, len(holders))
	for i, h := range holders {
		words[i] = h.String()
	}
	return strings.Join(words, ", ")
}
