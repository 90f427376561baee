package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// gitFiles is how many files the repository has that is cloned, twenty in a directory.
const gitFiles = 600

// gitClone clones a repository of the disk.
func gitClone(_ options, dir string) (float64, error) {
	repository, err := os.MkdirTemp("", "vde-bench-git-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(repository)
	if err := gitRepository(repository); err != nil {
		return 0, err
	}
	start := time.Now()
	if err := programInDir(dir, "git", "clone", "--quiet", repository, "clone"); err != nil {
		return 0, err
	}
	return gitFiles / time.Since(start).Seconds(), nil
}

// gitRepository makes a repository of small files in an empty directory, all in one commit.
func gitRepository(dir string) error {
	for i := range gitFiles {
		sub := filepath.Join(dir, fmt.Sprint("dir", i/20))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
		// No two the same, as git would keep one copy of them.
		content := bytes.Repeat(fmt.Appendf(nil, "line of file %d\n", i), 20+i*37%400)
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprint("file", i)), content, 0o644); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"init", "--quiet"}, {"add", "."}, {"-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "--quiet", "-m", "files"}} {
		if err := programInDir(dir, "git", args...); err != nil {
			return err
		}
	}
	return nil
}
