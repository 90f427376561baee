package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fillFile writes a file of size bytes that differs from all others and syncs it. It returns the sum of its contents.
func fillFile(path string, seed uint64, size int) (uint32, error) {
	data := make([]byte, size)
	source := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	source.Read(data)
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return crc32.ChecksumIEEE(data), errors.Join(err, f.Close())
}

// A store of 1 GiB is filled up with large and small files: ENOSPC, nothing lost, and what is freed can be written again.
func TestFull(t *testing.T) {
	d := mounted(t, "1G")
	sums := map[string]uint32{}
	fill := func(generation, size int) (files int) {
		t.Helper()
		for n := 0; ; n++ {
			path := d.path(fmt.Sprintf("%d-%d-%06d", generation, size, n))
			sum, err := fillFile(path, uint64(generation)<<20|uint64(n)<<4|uint64(size&15), size)
			if err == nil {
				sums[path] = sum
				continue
			}
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("%s: %v, want ENOSPC", path, err)
			}
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatalf("removing the file that did not fit: %v", err)
			}
			return n
		}
	}
	verify := func(when string) {
		t.Helper()
		for path, sum := range sums {
			data, err := os.ReadFile(path)
			if err != nil || crc32.ChecksumIEEE(data) != sum {
				t.Fatalf("%s: %s is not as it was written: %d bytes, %v", when, path, len(data), err)
			}
		}
	}
	const large, small = 4 << 20, 3000
	first := fill(1, large)
	tail := fill(1, small)
	if first < 200 {
		t.Errorf("a store of 1 GiB took %d files of %d MiB only", first, large>>20)
	}
	verify("full")
	if _, err := fillFile(d.path("one more"), 1, 1<<20); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a full store took one more file: %v", err)
	}
	os.Remove(d.path("one more"))
	// What needs no room still works.
	victim := d.path(fmt.Sprintf("1-%d-%06d", large, 0))
	for _, err := range []error{os.Rename(victim, victim+"-moved"), os.Rename(victim+"-moved", victim), os.Chmod(victim, 0o600)} {
		if err != nil {
			t.Errorf("on a full store: %v", err)
		}
	}
	// Overwriting in place needs no room for good either.
	f, err := os.OpenFile(victim, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	page := bytes.Repeat([]byte("again"), 1000)[:4096]
	if _, err := f.WriteAt(page, 8192); err != nil {
		t.Errorf("overwriting on a full store: %v", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Errorf("overwriting on a full store: %v", err)
	} else {
		sums[victim] = crc32.ChecksumIEEE(read(t, victim))
	}

	d.remount()
	verify("full, mounted again")
	freed := 0
	for path := range sums {
		if freed%2 == 0 {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			delete(sums, path)
		}
		freed++
	}
	second := fill(2, large)
	if second < first/3 {
		t.Errorf("after removing half of the files there was room for %d of %d", second, first)
	}
	verify("filled again")
	d.remount()
	verify("filled again and mounted again")
	t.Logf("%d files of 4 MiB and %d of 3000 bytes, then %d more", first, tail, second)
	var st unix.Statfs_t
	if err := unix.Statfs(d.mnt, &st); err != nil {
		t.Fatal(err)
	}
	if free := st.Bavail * uint64(st.Frsize); free > 16<<20 {
		t.Errorf("statfs says %d bytes are free on a full store", free)
	}
	d.sh("rm -rf $MNT/*")
}

// On a full store write(2) fails soon after there is no room, though the kernel's cache would take more: dd ends.
func TestFullWriterEnds(t *testing.T) {
	d := mounted(t, "16M")
	f, err := os.Create(d.path("fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := bytes.Repeat([]byte("full"), 64<<10/4)
	for size, end := 0, time.Now().Add(20*time.Second); ; size += len(block) {
		if _, err := f.Write(block); err != nil {
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("%v, want ENOSPC", err)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d bytes were taken by a store of 16 MiB", size)
		}
		if size > 20<<20 {
			// As the kernel does on its own when its cache is full.
			if err := unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	if err := f.Sync(); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("fsync: %v, want ENOSPC", err)
	}
	f.Close() // tells it again, or does not
	if err := os.Remove(d.path("fill")); err != nil {
		t.Fatal(err)
	}
	write(t, d.path("again"), block)
}
