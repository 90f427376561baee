package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"

	"vdefs/media/png"
)

// Reasons why `vde png` leaves a file, beside those of package png.
const (
	pngHardLinks png.Reason = "hard-links" // other names of it would keep the old contents
	pngChanged   png.Reason = "changed"    // it was written meanwhile
)

// pngFile is a file to be done.
type pngFile struct {
	path string
	size int64
}

// versionControl are directories that are not walked into: what is in them belongs to the program that made them.
var versionControl = map[string]bool{".git": true, ".hg": true, ".svn": true, ".jj": true}

// findPNGs lists the files that the arguments name, each once.
func findPNGs(ctx context.Context, args []string) ([]pngFile, error) {
	type identity struct{ dev, ino uint64 }
	seen := map[identity]bool{}
	var files []pngFile
	add := func(path string) error {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if id := (identity{uint64(st.Dev), st.Ino}); !seen[id] {
			seen[id] = true
			files = append(files, pngFile{path, st.Size})
		}
		return nil
	}
	for _, arg := range args {
		path, err := filepath.EvalSymlinks(arg)
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		switch {
		case info.Mode().IsRegular():
			err = add(path)
		case info.IsDir():
			err = filepath.WalkDir(path, func(path string, entry fs.DirEntry, err error) error {
				switch {
				case err != nil:
					return err
				case ctx.Err() != nil:
					return ctx.Err()
				case entry.IsDir() && versionControl[entry.Name()]:
					return fs.SkipDir
				case entry.Type().IsRegular() && strings.EqualFold(filepath.Ext(entry.Name()), ".png"):
					err := add(path)
					if errors.Is(err, fs.ErrNotExist) {
						return nil // removed meanwhile
					}
					return err
				}
				return nil
			})
		default:
			err = fmt.Errorf("%s: it is neither a file nor a directory", path)
		}
		if err != nil {
			return nil, err
		}
	}
	return files, nil
}

// recodePNG encodes a file again and puts the result in its place, unless check is set.
func recodePNG(ctx context.Context, path string, data []byte, options png.Options, check bool) (png.Report, error) {
	var before unix.Stat_t
	if err := unix.Lstat(path, &before); err != nil {
		return png.Report{Kept: true}, fmt.Errorf("%s: %w", path, err)
	}
	kept := png.Report{Kept: true, InBytes: before.Size, OutBytes: before.Size, Level: options.Level, Version: png.Version}
	if before.Nlink > 1 {
		kept.Reason = pngHardLinks
		return kept, nil
	}
	if before.Size != int64(len(data)) {
		kept.Reason = pngChanged
		return kept, nil
	}
	made, report, err := png.Reencode(ctx, data, options)
	if err != nil || made == nil || check {
		return report, err
	}
	err = replaceFile(path, &before, made)
	if errors.Is(err, errChanged) {
		kept.Reason = pngChanged
		return kept, nil
	}
	if err != nil {
		kept.Detail = err.Error()
		return kept, err
	}
	return report, nil
}

// errChanged: a file is not as it was when it was read.
var errChanged = errors.New("the file was changed meanwhile")

// replaceFile gives a file other contents in one step, by a rename: whoever opens it sees all of the old or all of the new, also after a
// crash. Mode, owner, times and attributes are those of before; what cannot be kept is an error, and the file stays.
func replaceFile(path string, before *unix.Stat_t, contents []byte) (err error) {
	dir, name := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	// Not named *.png, and hidden: nobody should take it for a picture.
	temporary, err := os.CreateTemp(dir, "."+name+".vde-*")
	if err != nil {
		return err
	}
	defer func() {
		temporary.Close()
		if err != nil {
			os.Remove(temporary.Name())
		}
	}()
	if _, err := temporary.Write(contents); err != nil {
		return err
	}
	if err := keepAttributes(path, temporary, before); err != nil {
		return err
	}
	if err := temporary.Sync(); err != nil {
		return err
	}
	// The last moment to see that somebody writes it. A change between this and the rename is lost, as with any program
	// that saves by renaming.
	var now unix.Stat_t
	if err := unix.Lstat(path, &now); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if now.Dev != before.Dev || now.Ino != before.Ino || now.Size != before.Size || now.Mtim != before.Mtim || now.Ctim != before.Ctim {
		return errChanged
	}
	if err := os.Rename(temporary.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil // renamed all the same; in a directory that may not be read nothing more can be done
	}
	defer d.Close()
	return d.Sync()
}

// keepAttributes gives a new file the owner, mode, attributes and times of another.
func keepAttributes(from string, to *os.File, before *unix.Stat_t) error {
	fd := int(to.Fd())
	var made unix.Stat_t
	if err := unix.Fstat(fd, &made); err != nil {
		return fmt.Errorf("%s: %w", to.Name(), err)
	}
	// The owner first: changing it clears the set-id bits.
	if made.Uid != before.Uid || made.Gid != before.Gid {
		if err := unix.Fchown(fd, int(before.Uid), int(before.Gid)); err != nil {
			return fmt.Errorf("%s: its owner %d:%d cannot be kept: %w", from, before.Uid, before.Gid, err)
		}
	}
	if err := unix.Fchmod(fd, before.Mode&0o7777); err != nil {
		return fmt.Errorf("%s: its mode cannot be kept: %w", from, err)
	}
	names, err := xattr.LList(from)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("%s: its attributes cannot be listed: %w", from, err)
	}
	for _, name := range names {
		value, err := xattr.LGet(from, name)
		if err != nil {
			return fmt.Errorf("%s: its attribute %s cannot be read: %w", from, name, err)
		}
		if there, err := xattr.FGet(to, name); err == nil && bytes.Equal(there, value) {
			continue // what a security module gave it by itself may not be for us to set
		}
		if err := xattr.FSet(to, name, value); err != nil {
			return fmt.Errorf("%s: its attribute %s cannot be kept: %w", from, name, err)
		}
	}
	times := []unix.Timespec{before.Atim, before.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), times, 0); err != nil {
		return fmt.Errorf("%s: its times cannot be kept: %w", from, err)
	}
	return nil
}
