package replica

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"vdefs/fs"
	"vdefs/vde/meta"
)

// TestBehind writes behind, at once, truncates and reads at random, and compares with plain bytes: the mount itself sees each
// write at once, another one what was settled.
func TestBehind(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newTestCluster(t, 3, 0)
	const files, most = 3, 6 << 20
	var inos [files]meta.Ino
	var want [files][]byte
	mine, other := c.v(2), c.v(3)
	for i := range inos {
		inos[i] = mkfile(t, mine, fmt.Sprint("f", i))
	}
	random := rand.New(rand.NewPCG(3, 9))
	put := func(i int, off uint64, data []byte) {
		if end := int(off) + len(data); end > len(want[i]) {
			want[i] = append(want[i], make([]byte, end-len(want[i]))...)
		}
		copy(want[i][off:], data)
	}
	for step := range 600 {
		i := random.IntN(files)
		off := uint64(random.IntN(most))
		switch {
		case random.IntN(3) > 0: // go on where the file ends
			off = uint64(len(want[i]))
		case random.IntN(2) == 0: // overlap what is likely to be on its way
			off = uint64(max(0, len(want[i])-random.IntN(20000)))
		}
		size := 1 + random.IntN(1<<[]int{6, 13, 17, 20}[random.IntN(4)])
		data := bytes.Repeat([]byte{byte(step), byte(step >> 8), 1}, size/3+1)[:size]
		switch op := random.IntN(40); {
		case op < 32:
			if off+uint64(size) > 2*most {
				continue
			}
			if _, err := mine.Write(ctx, inos[i], off, data, fs.WriteBehind); err != nil {
				t.Fatal(err)
			}
			put(i, off, data)
		case op < 34:
			if _, err := mine.Write(ctx, inos[i], off, data, 0); err != nil {
				t.Fatal(err)
			}
			put(i, off, data)
		case op < 36:
			size := uint64(random.IntN(len(want[i]) + 1))
			if _, err := mine.SetAttr(ctx, inos[i], fs.SetAttr{Size: &size}); err != nil {
				t.Fatal(err)
			}
			want[i] = want[i][:size]
		case op < 38:
			if in, err := mine.Inode(ctx, inos[i]); err != nil || in.Size != uint64(len(want[i])) {
				t.Fatalf("step %d: file %d is %d bytes long, want %d: %v", step, i, in.Size, len(want[i]), err)
			}
			if got := readAll(t, mine, inos[i]); !bytes.Equal(got, want[i]) {
				t.Fatalf("step %d: the mount reads other bytes of file %d than it has written", step, i)
			}
		default:
			if err := mine.Settle(ctx, inos[i]); err != nil {
				t.Fatal(err)
			}
			if _, err := other.Inode(ctx, inos[i]); err != nil { // open(2)
				t.Fatal(err)
			}
			if got := readAll(t, other, inos[i]); !bytes.Equal(got, want[i]) {
				t.Fatalf("step %d: another mount reads other bytes of file %d than were settled", step, i)
			}
		}
	}
	for _, ino := range inos {
		if err := mine.Settle(ctx, ino); err != nil {
			t.Fatal(err)
		}
	}
	if b := mine.behind; b.bytes != 0 || len(b.files) != 0 {
		t.Errorf("%d bytes of %d files are noted although all is done", b.bytes, len(b.files))
	}
}

// TestBehindFails: writes that cannot be done are told of, once, and nobody waits longer for many than for one.
func TestBehindFails(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newTestCluster(t, 3, 0)
	v := c.v(3)
	ino := mkfile(t, v, "f")
	if _, err := v.Write(ctx, ino, 0, []byte("kept"), 0); err != nil {
		t.Fatal(err)
	}
	v.behind.within = 700 * time.Millisecond
	c.down(1)
	c.down(2)
	began := time.Now()
	for i := range uint64(200) {
		if _, err := v.Write(ctx, ino, 8192*i, []byte("lost"), fs.WriteBehind); err != nil {
			t.Fatal(err) // long before anything can have failed
		}
	}
	v.settled(ino)
	if _, err := v.Write(ctx, ino, 0, []byte("more"), fs.WriteBehind); fs.ToErrno(err) != syscall.EIO {
		t.Errorf("a write after one that failed, which nobody was told of: %v", err)
	}
	if err := v.Settle(ctx, ino); fs.ToErrno(err) != syscall.EIO {
		t.Errorf("writes without a majority: %v", err)
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("that took %v", d)
	}
	if err := v.Settle(ctx, ino); err != nil {
		t.Errorf("told twice: %v", err)
	}
	if b := v.behind; b.bytes != 0 || len(b.files) != 0 {
		t.Errorf("%d bytes of %d files are noted although all have failed", b.bytes, len(b.files))
	}
	c.up(1)
	c.eventually("writing with a majority again", func() error {
		if _, err := v.Write(ctx, ino, 4, []byte(" too"), fs.WriteBehind); err != nil {
			return err
		}
		return v.Settle(ctx, ino)
	})
	if got := readAll(t, v, ino); !bytes.HasPrefix(got, []byte("kept too")) && !bytes.HasPrefix(got, []byte("lost too")) {
		t.Errorf("the file begins with %q", got[:8])
	}
}
