package vde

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"vdefs/vde/meta"
)

// A reader beside a writer that maps fresh blocks sees what was there before or what was written, never what the blocks
// held in another life. The writer is slow, so that mappings are there long before the data is.
func TestReadBesideFreshBlocks(t *testing.T) {
	for _, readers := range []int{1, 4} {
		e, l := openTest(t, slowFS{vfs.NewMem(), 200 * time.Microsecond}, 2<<20)
		other, ino := newFile(t, l), newFile(t, l)
		total, _ := e.Usage()
		junk := bytes.Repeat([]byte("junk"), int(total-8)*blockSize/4)
		write(t, l, other, 0, junk)
		if err := change(l, other, func(tx *Tx, in *meta.Inode) error { return tx.Truncate(in, 0) }); err != nil {
			t.Fatal(err)
		}
		if err := e.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		const blocks = 4
		data := bytes.Repeat([]byte{0xEE}, blocks*blockSize)
		write(t, l, ino, blocks*blockSize, data[:1]) // the size
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range readers {
			wg.Go(func() {
				buf := make([]byte, blocks*blockSize)
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := e.Read(context.Background(), ino, 0, buf); err != nil {
						t.Error(err)
						return
					}
					for i, b := range buf {
						if b != 0 && b != 0xEE || b != buf[i/blockSize*blockSize] {
							t.Errorf("byte %d is %q", i, b)
							return
						}
					}
				}
			})
		}
		for range 100 { // each takes blocks that hold junk
			write(t, l, ino, 0, data)
			if err := change(l, ino, func(tx *Tx, in *meta.Inode) error { return tx.Unmap(in, 0, blocks) }); err != nil {
				t.Fatal(err)
			}
		}
		close(stop)
		wg.Wait()
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// However fast writers come, a reader gets its turn, and sees what they wrote.
func TestReadAmongManyWriters(t *testing.T) {
	e, l := openTest(t, vfs.NewMem(), 4<<20)
	defer e.Close()
	var ino meta.Ino
	if err := l.apply(func(tx *Tx) error {
		in := tx.NewInode()
		in.Mode, in.Nlink, ino = unix.S_IFREG|0o600, 1, in.Ino
		return tx.WriteData(in, 0, bytes.Repeat([]byte{1}, blockSize))
	}); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				write(t, l, ino, 0, bytes.Repeat([]byte{byte(w + 1)}, blockSize))
			}
		})
	}
	buf := make([]byte, blockSize)
	for range 300 {
		if _, err := e.Read(context.Background(), ino, 0, buf); err != nil {
			t.Fatal(err)
		}
		if buf[0] == 0 || !bytes.Equal(buf, bytes.Repeat(buf[:1], blockSize)) {
			t.Fatalf("the block is torn: %d, %d", buf[0], buf[blockSize-1])
		}
	}
	close(stop)
	wg.Wait()
}
