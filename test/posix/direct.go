package posix

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() {
	Operations["MixedDirect"] = mixedDirect
}

// iocb is struct iocb of linux/aio_abi.h on a machine with the low byte first.
type iocb struct {
	_      uint64 // data
	_      [2]uint32
	opcode uint16
	_      int16 // priority
	fd     uint32
	buf    uint64
	nbytes uint64
	offset int64
	_      uint64
	_      [2]uint32 // flags, and a descriptor for results
}

const iocbCmdPwrite = 1

// ioEvent is struct io_event.
type ioEvent struct {
	_   [2]uint64 // data, and the iocb
	res int64
	_   int64
}

// mixedDirect writes with O_DIRECT, waited for and submitted, while others read through the cache: what is read after a write has
// ended is what was written.
func mixedDirect(t *testing.T, dir string) {
	const size, piece = 640 << 10, 64 << 10
	path := filepath.Join(dir, "f")
	write(t, path, string(make([]byte, size)))
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT, 0)
	must(t, err)
	defer unix.Close(fd)
	buf, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(t, err)
	defer unix.Munmap(buf)
	var ring uintptr
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, size/piece, uintptr(unsafe.Pointer(&ring)), 0); errno != 0 {
		t.Skip("no io_setup: ", errno)
	}
	defer unix.Syscall(unix.SYS_IO_DESTROY, ring, 0, 0)
	submitted := func() {
		blocks := make([]iocb, size/piece)
		pointers := make([]*iocb, len(blocks))
		for i := range blocks {
			at := i * piece
			blocks[i] = iocb{opcode: iocbCmdPwrite, fd: uint32(fd), buf: uint64(uintptr(unsafe.Pointer(&buf[at]))), nbytes: piece, offset: int64(at)}
			pointers[i] = &blocks[i]
		}
		n, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, ring, uintptr(len(pointers)), uintptr(unsafe.Pointer(&pointers[0])))
		if errno != 0 || int(n) != len(pointers) {
			t.Fatalf("io_submit: %d, %v", n, errno)
		}
		events := make([]ioEvent, len(blocks))
		for have := 0; have < len(events); have += int(n) {
			n, _, errno = unix.Syscall6(unix.SYS_IO_GETEVENTS, ring, 1, uintptr(len(events)-have), uintptr(unsafe.Pointer(&events[have])), 0, 0)
			if errno == unix.EINTR { // the runtime's signals
				n, errno = 0, 0
			}
			if errno != 0 {
				t.Fatalf("io_getevents: %v", errno)
			}
		}
		for _, e := range events {
			equal(t, "bytes written", e.res, piece)
		}
	}
	waited := func() {
		n, err := unix.Pwrite(fd, buf, 0)
		must(t, err)
		equal(t, "bytes written", n, size)
	}

	var stop atomic.Bool
	var readers sync.WaitGroup
	defer readers.Wait()
	defer stop.Store(true)
	for range 3 {
		readers.Go(func() {
			b := make([]byte, size)
			for !stop.Load() {
				if f, err := os.Open(path); err == nil {
					f.ReadAt(b, 0)
					f.Close()
				}
			}
		})
	}
	file, err := os.Open(path)
	must(t, err)
	defer file.Close()
	got := make([]byte, size)
	end := time.Now().Add(time.Second)
	for i := 1; time.Now().Before(end) && !t.Failed(); i++ {
		for j := range buf {
			buf[j] = byte(i)
		}
		how, do := "waited for", waited
		if i%2 == 0 {
			how, do = "submitted", submitted
		}
		do()
		_, err := file.ReadAt(got, 0)
		must(t, err)
		if !bytes.Equal(got, buf) {
			t.Errorf("write %d, %s: what was there before is read at %d", i, how, firstDifference(got, buf))
		}
	}
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}
