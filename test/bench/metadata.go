package main

import (
	"archive/tar"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// step does something with all files of one thread and tells how many operations that were.
type step func(dir string, files int) (int, error)

// metadataLoad runs steps in a number of threads, each in a directory of its own. The last one is measured.
type metadataLoad struct {
	threads  int
	before   []step
	measured step
	drop     bool
}

func metadata(threads int, measured step) metadataLoad {
	return metadataLoad{threads: threads, measured: measured}
}

// after adds steps that are done before, unmeasured.
func (m metadataLoad) after(steps ...step) metadataLoad { m.before = steps; return m }

// cold drops the caches before the measured step.
func (m metadataLoad) cold() metadataLoad { m.drop = true; return m }

func (m metadataLoad) run(o options, dir string) (float64, error) {
	for i := range m.threads {
		if err := os.Mkdir(threadDir(dir, i), 0o755); err != nil {
			return 0, err
		}
	}
	for _, s := range m.before {
		if _, err := m.inThreads(dir, o.files/m.threads, s); err != nil {
			return 0, err
		}
	}
	unix.Sync()
	if m.drop {
		if err := dropCaches(); err != nil {
			return 0, err
		}
	}
	start := time.Now()
	n, err := m.inThreads(dir, o.files/m.threads, m.measured)
	return float64(n) / time.Since(start).Seconds(), err
}

func threadDir(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("thread%d", i)) }

func (m metadataLoad) inThreads(dir string, files int, s step) (total int, err error) {
	var mu sync.Mutex
	var threads sync.WaitGroup
	for i := range m.threads {
		threads.Go(func() {
			n, e := s(threadDir(dir, i), files)
			mu.Lock()
			defer mu.Unlock()
			total += n
			if e != nil {
				err = e
			}
		})
	}
	threads.Wait()
	return total, err
}

func fileName(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("file%06d", i)) }

// each makes a step of what is done with one file.
func each(do func(path string) error) step {
	return func(dir string, files int) (int, error) {
		for i := range files {
			if err := do(fileName(dir, i)); err != nil {
				return i, err
			}
		}
		return files, nil
	}
}

var (
	createFiles = each(func(path string) error {
		fd, err := unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	})
	statFiles = each(func(path string) error {
		var st unix.Stat_t
		return unix.Lstat(path, &st)
	})
	renameFiles = each(func(path string) error { return unix.Rename(path, path+"-renamed") })
	unlinkFiles = each(unix.Unlink)
)

// list reads a directory.
func list(dir string, _ int) (int, error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	return len(names), err
}

// listAgain reads it often enough to be measured.
func listAgain(dir string, files int) (int, error) {
	total := 0
	for range 20 {
		n, err := list(dir, files)
		if err != nil {
			return total, err
		}
		total += n
	}
	return total, nil
}

// listLong is ls -l: names in the order of the directory, and the attributes of each.
func listLong(dir string, _ int) (int, error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	infos, err := f.Readdir(-1)
	return len(infos), err
}

// smallTree writes an archive of small files into a directory of the disk.
func smallTree(o options) (path string, files int, err error) {
	f, err := os.CreateTemp("", "vde-bench-*.tar")
	if err != nil {
		return "", 0, err
	}
	w := tar.NewWriter(f)
	contents := make([]byte, 16<<10)
	for i := range contents {
		contents[i] = byte(i * 7)
	}
	for i := range o.files {
		if i%100 == 0 {
			if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("dir%d/", i/100), Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
				return "", 0, err
			}
		}
		size := 200 + i*37%12000
		h := &tar.Header{Name: fmt.Sprintf("dir%d/file%d", i/100, i), Mode: 0o644, Size: int64(size), ModTime: time.Unix(1_700_000_000, 0), Typeflag: tar.TypeReg}
		if err := w.WriteHeader(h); err != nil {
			return "", 0, err
		}
		if _, err := w.Write(contents[:size]); err != nil {
			return "", 0, err
		}
	}
	if err := w.Close(); err != nil {
		return "", 0, err
	}
	return f.Name(), o.files, f.Close()
}

// untar unpacks an archive of small files.
func untar(o options, dir string) (float64, error) {
	archive, files, err := smallTree(o)
	if err != nil {
		return 0, err
	}
	defer os.Remove(archive)
	start := time.Now()
	err = programInDir(dir, "tar", "xf", archive)
	return float64(files) / time.Since(start).Seconds(), err
}

// removeTree removes what untar unpacked.
func removeTree(o options, dir string) (float64, error) {
	if _, err := untar(o, dir); err != nil {
		return 0, err
	}
	unix.Sync()
	files := 0
	filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			files++
		}
		return nil
	})
	start := time.Now()
	err := programInDir(filepath.Dir(dir), "rm", "-rf", dir)
	return float64(files) / time.Since(start).Seconds(), err
}
