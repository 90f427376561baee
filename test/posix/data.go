package posix

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() {
	Operations["Append"] = appendMany
	Operations["Direct"] = direct
	Operations["OpenFlags"] = openFlags
	Operations["WriteOnlyPartial"] = writeOnlyPartial
	Operations["Mmap"] = mmap
	Operations["SparseDirty"] = sparseDirty
	Operations["Fallocate"] = fallocate
	Operations["CopyRange"] = copyRange
	Operations["Random"] = randomIO
	Operations["Times"] = times
	Operations["Exec"] = executable
	Operations["Atime"] = atime
	Operations["LargeOffset"] = largeOffset
}

// ptr is for reading what getdents returns.
func ptr(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }

// appendMany has several files append to one at the same time: nothing may be lost or torn.
func appendMany(t *testing.T, dir string) {
	const writers, records, size = 8, 200, 50
	path := filepath.Join(dir, "log")
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC, 0o644)
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Close(fd)
			for i := range records {
				record := fmt.Appendf(nil, "%d %d", w, i)
				record = append(record, bytes.Repeat([]byte{' '}, size-1-len(record))...)
				if _, err := unix.Write(fd, append(record, '\n')); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	data := []byte(content(t, path))
	equal(t, "size", len(data), writers*records*size)
	next := make([]int, writers)
	for line := range bytes.Lines(data) {
		var w, i int
		if _, err := fmt.Sscanf(string(line), "%d %d", &w, &i); err != nil || len(line) != size || w >= writers || next[w] != i {
			t.Fatalf("unexpected line %q", line)
		}
		next[w]++
	}
	// pwrite to a file that appends goes to the end, as Linux has it.
	fd := open(t, path, unix.O_WRONLY|unix.O_APPEND, 0)
	_, err := unix.Pwrite(fd, []byte("end"), 0)
	must(t, err)
	equal(t, "size after pwrite", lstat(t, path).Size, writers*records*size+3)
}

// aligned is memory as O_DIRECT wants it.
func aligned(t *testing.T, size int) []byte {
	buf, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(t, err)
	t.Cleanup(func() { unix.Munmap(buf) })
	return buf
}

// direct mixes O_DIRECT with the page cache, and looks at size and times.
func direct(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	cached := open(t, path, unix.O_RDWR|unix.O_CREAT, 0o644)
	fd := open(t, path, unix.O_RDWR|unix.O_DIRECT, 0)
	buf := aligned(t, 3*4096)
	for i := range buf {
		buf[i] = byte(i>>4) | 1
	}
	_, err := unix.Pwrite(cached, bytes.Repeat([]byte("c"), 2*4096), 0)
	must(t, err)
	before := lstat(t, path)
	time.Sleep(12 * time.Millisecond)
	n, err := unix.Pwrite(fd, buf, 4096)
	must(t, err)
	equal(t, "written", n, len(buf))
	st := lstat(t, path)
	equal(t, "size", st.Size, 4*4096)
	equal(t, "a newer mtime", st.Mtim.Nano() > before.Mtim.Nano(), true)
	equal(t, "a newer ctime", st.Ctim.Nano() > before.Ctim.Nano(), true)
	got := make([]byte, 4*4096)
	_, err = unix.Pread(cached, got, 0)
	must(t, err)
	equal(t, "seen through the cache", bytes.Equal(got[4096:], buf) && got[0] == 'c', true)
	_, err = unix.Pwrite(cached, []byte("cache"), 4096)
	must(t, err)
	back := aligned(t, 4096)
	_, err = unix.Pread(fd, back, 4096)
	must(t, err)
	equal(t, "cached write seen directly", string(back[:5]), "cache")
	n, err = unix.Pread(fd, back, 4*4096)
	must(t, err)
	equal(t, "read at the end", n, 0)
	// Appending to what is still in the cache.
	more := open(t, path, unix.O_WRONLY|unix.O_APPEND|unix.O_DIRECT, 0)
	_, err = unix.Pwrite(cached, bytes.Repeat([]byte("x"), 4096), 4*4096)
	must(t, err)
	_, err = unix.Write(more, buf[:4096])
	must(t, err)
	equal(t, "size after append", lstat(t, path).Size, 6*4096)
	all := content(t, path)
	equal(t, "order of appends", all[4*4096] == 'x' && all[5*4096] == buf[0], true)
	// O_SYNC together with it.
	synced := open(t, path, unix.O_WRONLY|unix.O_DIRECT|unix.O_SYNC, 0)
	_, err = unix.Pwrite(synced, buf[:4096], 0)
	must(t, err)
}

func openFlags(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	write(t, path, "content")
	_, err := unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o644)
	want(t, "O_EXCL", err, unix.EEXIST)
	_, err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	want(t, "O_DIRECTORY", err, unix.ENOTDIR)
	_, err = unix.Open(dir, unix.O_RDWR, 0)
	want(t, "write a directory", err, unix.EISDIR)
	before := lstat(t, path)
	time.Sleep(12 * time.Millisecond)
	fd := open(t, path, unix.O_WRONLY|unix.O_TRUNC, 0)
	st := lstat(t, path)
	equal(t, "size", st.Size, 0)
	equal(t, "a newer mtime after O_TRUNC", st.Mtim.Nano() > before.Mtim.Nano(), true)
	_, err = unix.Read(fd, make([]byte, 1))
	want(t, "read of a write-only file", err, unix.EBADF)
	// Mode 0 and still writable by the one who made it.
	private := open(t, filepath.Join(dir, "private"), unix.O_CREAT|unix.O_RDWR, 0)
	_, err = unix.Write(private, []byte("x"))
	must(t, err)
	sync := open(t, path, unix.O_WRONLY|unix.O_SYNC, 0)
	_, err = unix.Write(sync, []byte("synced"))
	must(t, err)
	must(t, unix.Fsync(sync))
	must(t, unix.Fdatasync(sync))
	equal(t, "content", content(t, path), "synced")
}

// writeOnlyPartial writes less than a page into existing data through a write-only file.
func writeOnlyPartial(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	data := bytes.Repeat([]byte("0123456789abcdef"), 1024)
	must(t, os.WriteFile(path, data, 0o644))
	fd := open(t, path, unix.O_WRONLY, 0)
	must(t, unix.Fsync(fd))
	must(t, unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
	_, err := unix.Pwrite(fd, []byte("MIDDLE"), 5001)
	must(t, err)
	copy(data[5001:], "MIDDLE")
	equal(t, "content", content(t, path) == string(data), true)
}

func mmap(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	fd := open(t, path, unix.O_RDWR|unix.O_CREAT, 0o644)
	must(t, unix.Ftruncate(fd, 10000))
	before := lstat(t, path)
	time.Sleep(12 * time.Millisecond)
	m, err := unix.Mmap(fd, 0, 10000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	copy(m[4090:], "across the page")
	must(t, unix.Msync(m, unix.MS_SYNC))
	equal(t, "read sees it", content(t, path)[4090:4105], "across the page")
	equal(t, "a newer mtime", lstat(t, path).Mtim.Nano() > before.Mtim.Nano(), true)
	_, err = unix.Pwrite(fd, []byte("written"), 100)
	must(t, err)
	equal(t, "mapping sees it", string(m[100:107]), "written")
	// The mapping outlives the descriptor and the name.
	shut(t, fd)
	must(t, os.Remove(path))
	m[0] = 'x'
	must(t, unix.Msync(m, unix.MS_SYNC))
	must(t, unix.Munmap(m))
}

// sparseDirty asks for data and holes of a file whose data is not written back yet.
func sparseDirty(t *testing.T, dir string) {
	fd := open(t, filepath.Join(dir, "f"), unix.O_RDWR|unix.O_CREAT, 0o644)
	const mib = 1 << 20
	_, err := unix.Pwrite(fd, []byte("data"), mib)
	must(t, err)
	must(t, unix.Ftruncate(fd, 3*mib))
	for _, c := range []struct {
		off    int64
		whence int
		want   int64
	}{{0, unix.SEEK_DATA, mib}, {mib, unix.SEEK_DATA, mib}, {mib, unix.SEEK_HOLE, mib + 4096}, {0, unix.SEEK_HOLE, 0}, {2 * mib, unix.SEEK_HOLE, 2 * mib}} {
		got, err := unix.Seek(fd, c.off, c.whence)
		must(t, err)
		equal(t, fmt.Sprintf("seek %d from %d", c.whence, c.off), got, c.want)
	}
	_, err = unix.Seek(fd, 2*mib, unix.SEEK_DATA)
	want(t, "no more data", err, unix.ENXIO)
	_, err = unix.Seek(fd, 3*mib, unix.SEEK_HOLE)
	want(t, "beyond the end", err, unix.ENXIO)
	must(t, unix.Fsync(fd))
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	if st.Blocks < 8 || st.Blocks > 64 {
		t.Errorf("a sparse file uses %d blocks of 512 bytes", st.Blocks)
	}
	equal(t, "st_blksize", st.Blksize, 4096)
}

func fallocate(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	fd := open(t, path, unix.O_RDWR|unix.O_CREAT, 0o644)
	want(t, "allocate", unix.Fallocate(fd, 0, 0, 100000), 0)
	equal(t, "size", lstat(t, path).Size, 100000)
	want(t, "keep size", unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 100000, 100000), 0)
	equal(t, "size", lstat(t, path).Size, 100000)
	data := bytes.Repeat([]byte("d"), 100000)
	_, err := unix.Pwrite(fd, data, 0)
	must(t, err)
	want(t, "punch", unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 5000, 20000), 0)
	clear(data[5000:25000])
	equal(t, "punched", content(t, path) == string(data), true)
	want(t, "zero", unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 90000, 20000), 0)
	clear(data[90000:])
	data = append(data, make([]byte, 10000)...)
	equal(t, "zeroed", content(t, path) == string(data), true)
	want(t, "punch without keep", unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE, 0, 4096), unix.EOPNOTSUPP)
	want(t, "nothing", unix.Fallocate(fd, 0, 0, 0), unix.EINVAL)
}

func copyRange(t *testing.T, dir string) {
	from := open(t, filepath.Join(dir, "from"), unix.O_RDWR|unix.O_CREAT, 0o644)
	to := open(t, filepath.Join(dir, "to"), unix.O_RDWR|unix.O_CREAT, 0o644)
	data := make([]byte, 300000)
	rand.NewChaCha8([32]byte{}).Read(data)
	_, err := unix.Write(from, data) // still dirty
	must(t, err)
	_, err = unix.Write(to, []byte("before"))
	must(t, err)
	in, out := int64(1000), int64(6)
	total := 0
	for {
		n, err := unix.CopyFileRange(from, &in, to, &out, 1<<20, 0)
		must(t, err)
		if n == 0 {
			break
		}
		total += n
	}
	equal(t, "copied", total, len(data)-1000)
	equal(t, "content", content(t, filepath.Join(dir, "to")) == "before"+string(data[1000:]), true)
}

// randomIO compares a file with an array through random reads, writes, truncations and holes.
func randomIO(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	const limit = 600000
	model := []byte{}
	fds := []int{open(t, path, unix.O_RDWR|unix.O_CREAT, 0o644), open(t, path, unix.O_RDWR, 0)}
	random := rand.New(rand.NewPCG(1, 2))
	for step := range 600 {
		fd := fds[random.IntN(2)]
		off, length := random.IntN(limit), 1+random.IntN(70000)
		switch random.IntN(8) {
		case 0, 1, 2:
			data := bytes.Repeat([]byte{byte(step), byte(step >> 8), 1}, length/3+1)[:length]
			n, err := unix.Pwrite(fd, data, int64(off))
			must(t, err)
			equal(t, "written", n, length)
			if off+length > len(model) {
				model = append(model, make([]byte, off+length-len(model))...)
			}
			copy(model[off:], data)
		case 3, 4, 5:
			buf := make([]byte, length)
			n, err := unix.Pread(fd, buf, int64(off))
			must(t, err)
			expected := model[min(off, len(model)):min(off+length, len(model))]
			if !bytes.Equal(buf[:n], expected) {
				t.Fatalf("step %d: read of %d at %d is wrong (%d bytes, expected %d)", step, length, off, n, len(expected))
			}
		case 6:
			size := random.IntN(limit)
			must(t, unix.Ftruncate(fd, int64(size)))
			if size <= len(model) {
				model = model[:size]
			}
			model = append(model, make([]byte, size-len(model))...)
		case 7:
			must(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(length)))
			clear(model[min(off, len(model)):min(off+length, len(model))])
		}
		var st unix.Stat_t
		must(t, unix.Fstat(fd, &st))
		if st.Size != int64(len(model)) {
			t.Fatalf("step %d: size is %d, expected %d", step, st.Size, len(model))
		}
	}
	must(t, unix.Fsync(fds[0]))
	equal(t, "content", content(t, path) == string(model), true)
}

func times(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	write(t, path, "x")
	for _, ts := range []unix.Timespec{{Sec: 1, Nsec: 1}, {Sec: 1 << 33, Nsec: 999999999}, {Sec: -5, Nsec: 250}} {
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, 0))
		st := lstat(t, path)
		equal(t, "atime", st.Atim, ts)
		equal(t, "mtime", st.Mtim, ts)
	}
	before := lstat(t, path)
	omit := unix.Timespec{Nsec: unix.UTIME_OMIT}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{omit, {Nsec: unix.UTIME_NOW}}, 0))
	st := lstat(t, path)
	equal(t, "omitted atime", st.Atim, before.Atim)
	if age := time.Since(time.Unix(st.Mtim.Unix())); age < -time.Second || age > 5*time.Second {
		t.Errorf("UTIME_NOW set %v", st.Mtim)
	}
	var sx unix.Statx_t
	must(t, unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BTIME|unix.STATX_BASIC_STATS, &sx))
	equal(t, "birth time is known", sx.Mask&unix.STATX_BTIME != 0, true)
	if age := time.Since(time.Unix(sx.Btime.Sec, int64(sx.Btime.Nsec))); age < -time.Second || age > time.Minute {
		t.Errorf("birth time is %v", sx.Btime)
	}
	// Times that were set stay when data that was written before is only written back afterwards.
	fd := open(t, path, unix.O_WRONLY, 0)
	_, err := unix.Write(fd, []byte("late"))
	must(t, err)
	set := unix.Timespec{Sec: 77777, Nsec: 7}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{set, set}, 0))
	shut(t, fd)
	must(t, syncPath(path))
	equal(t, "mtime after write back", lstat(t, path).Mtim, set)
	// Files made one after the other are not older, whatever makes them.
	var last int64
	for i := range 20 {
		name := filepath.Join(dir, fmt.Sprint(i))
		switch i % 3 {
		case 0:
			write(t, name, "data")
		case 1:
			write(t, name, "")
		case 2:
			must(t, os.Mkdir(name, 0o755))
		}
		mtime := lstat(t, name).Mtim.Nano()
		if mtime < last {
			t.Errorf("file %d is older than the one before by %v", i, time.Duration(last-mtime))
		}
		last = mtime
	}
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func executable(t *testing.T, dir string) {
	path := filepath.Join(dir, "true")
	data, err := os.ReadFile("/bin/true")
	must(t, err)
	must(t, os.WriteFile(path, data, 0o755))
	must(t, command(dir, path).Run())
	fd := open(t, path, unix.O_WRONLY, 0)
	output, err := command(dir, path).CombinedOutput()
	equal(t, "running what is open for writing is refused", err != nil && bytes.Contains(output, []byte("busy")), true)
	shut(t, fd)
	write(t, filepath.Join(dir, "script"), "#!/bin/sh\nexit 7\n")
	must(t, os.Chmod(filepath.Join(dir, "script"), 0o755))
	equal(t, "exit of a script", fmt.Sprint(command(dir, filepath.Join(dir, "script")).Run()), "exit status 7")
}

// atime is relatime: a read after a change is noted, further ones are not (for a day), O_NOATIME never.
func atime(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	write(t, path, "content")
	fd := open(t, path, unix.O_RDONLY|unix.O_NOATIME, 0)
	must(t, unix.Fsync(fd))
	must(t, unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
	start := lstat(t, path)
	time.Sleep(12 * time.Millisecond)
	buf := make([]byte, 10)
	_, err := unix.Pread(fd, buf, 0)
	must(t, err)
	equal(t, "atime after O_NOATIME", lstat(t, path).Atim, start.Atim)
	must(t, unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
	content(t, path)
	first := lstat(t, path)
	equal(t, "a newer atime after a read", first.Atim.Nano() > start.Atim.Nano(), true)
	equal(t, "ctime after a read", first.Ctim, start.Ctim)
	time.Sleep(12 * time.Millisecond)
	must(t, unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
	content(t, path)
	equal(t, "atime after a second read", lstat(t, path).Atim, first.Atim)
}

func largeOffset(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	fd := open(t, path, unix.O_RDWR|unix.O_CREAT, 0o644)
	const far = 1 << 40
	_, err := unix.Pwrite(fd, []byte("far"), far)
	must(t, err)
	equal(t, "size", lstat(t, path).Size, far+3)
	buf := make([]byte, 5)
	n, err := unix.Pread(fd, buf, far-2)
	must(t, err)
	equal(t, "content", string(buf[:n]), "\x00\x00far")
	must(t, unix.Fsync(fd))
}
