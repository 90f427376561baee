package replica

import (
	"bytes"
	"context"
	"encoding/binary"
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

// minimalACL is an access ACL that a mode says all of.
func minimalACL(perm uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for i, tag := range []uint16{1, 4, 32} {
		b = binary.LittleEndian.AppendUint16(b, tag)
		b = binary.LittleEndian.AppendUint16(b, uint16(perm>>(6-3*i)&7))
		b = binary.LittleEndian.AppendUint32(b, 1<<32-1)
	}
	return b
}

// TestSetAttrBehind sets attributes and writes at random, behind and at once: what is answered, what the mount sees and what another
// one sees once it is settled is what was asked for.
func TestSetAttrBehind(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newTestCluster(t, 3, 0)
	mine, other := c.v(2), c.v(3)
	random := rand.New(rand.NewPCG(5, 11))
	kill := func(in *meta.Inode) {
		in.Mode &^= 0o4000
		if in.Mode&0o010 != 0 {
			in.Mode &^= 0o2000
		}
	}
	for file := range 8 {
		ino := mkfile(t, mine, fmt.Sprint("f", file))
		want, err := mine.Inode(ctx, ino)
		if err != nil {
			t.Fatal(err)
		}
		timed := true // the mtime of want is what was set
		check := func(what string, in meta.Inode) {
			t.Helper()
			if in.Mode != want.Mode || in.UID != want.UID || in.GID != want.GID || in.Size != want.Size || in.Atime != want.Atime || timed && in.Mtime != want.Mtime {
				t.Fatalf("file %d: %s: %+v, want %+v", file, what, in, want)
			}
		}
		for range 30 {
			switch op := random.IntN(20); {
			case op < 6:
				data := make([]byte, 1+random.IntN(9000))
				off := uint64(random.IntN(20000))
				how := []fs.WriteFlags{fs.WriteBehind, fs.WriteBehind, 0}[random.IntN(3)]
				if random.IntN(3) == 0 {
					how |= fs.WriteKillPriv
					kill(&want)
				}
				if _, err := mine.Write(ctx, ino, off, data, how); err != nil {
					t.Fatal(err)
				}
				want.Size = max(want.Size, off+uint64(len(data)))
				timed = false
			case op < 14:
				var change fs.SetAttr
				if random.IntN(2) == 0 {
					mode := uint32(random.IntN(0o10000))
					change.Mode = &mode
				}
				if random.IntN(3) == 0 {
					uid := uint32(random.IntN(1000))
					change.UID, change.KillPriv = &uid, change.Mode == nil
				}
				if random.IntN(3) == 0 {
					gid := uint32(random.IntN(1000))
					change.GID, change.KillPriv = &gid, change.Mode == nil
				}
				if random.IntN(3) == 0 {
					change.Mtime = &meta.Time{Sec: int64(random.IntN(1 << 30)), Nsec: 5}
				}
				if random.IntN(3) == 0 {
					change.Atime = &meta.Time{Sec: int64(random.IntN(1 << 30)), Nsec: 6}
				}
				if change.UID != nil {
					want.UID = *change.UID
				}
				if change.GID != nil {
					want.GID = *change.GID
				}
				if change.KillPriv {
					kill(&want)
				}
				if change.Mode != nil {
					want.Mode = want.Mode&^0o7777 | *change.Mode
				}
				if change.Mtime != nil {
					want.Mtime, timed = *change.Mtime, true
				}
				if change.Atime != nil {
					want.Atime = *change.Atime
				}
				change.Behind = random.IntN(4) > 0
				in, err := mine.SetAttr(ctx, ino, change)
				if err != nil {
					t.Fatal(err)
				}
				check("answered", in)
			case op < 16:
				perm := uint32(random.IntN(0o1000))
				kill := random.IntN(2) == 0
				if !mine.SetACLBehind(ino, minimalACL(perm), kill) {
					if err := mine.SetXattr(ctx, ino, "system.posix_acl_access", minimalACL(perm), 0, kill); err != nil {
						t.Fatal(err)
					}
				}
				if want.Mode = want.Mode&^0o777 | perm; kill {
					want.Mode &^= 0o2000
				}
			case op < 18:
				in, err := mine.Inode(ctx, ino)
				if err != nil {
					t.Fatal(err)
				}
				check("seen here", in)
			default:
				time.Sleep(time.Duration(random.IntN(5)) * time.Millisecond)
			}
			if want.Mode&0o6000 != 0 && !mine.MayHaveSetID(ino) {
				t.Fatalf("file %d: mode %o: no set-id bit is known of", file, want.Mode)
			}
		}
		if err := mine.Settle(ctx, ino); err != nil {
			t.Fatal(err)
		}
		in, err := other.Inode(ctx, ino)
		if err != nil {
			t.Fatal(err)
		}
		check("seen elsewhere", in)
	}
	if b := mine.behind; b.bytes != 0 || len(b.files) != 0 {
		t.Errorf("%d bytes of %d files are noted although all is done", b.bytes, len(b.files))
	}
	// With an ACL or an attribute the change is not noted.
	ino := mkfile(t, mine, "x")
	if err := mine.SetXattr(ctx, ino, "user.a", []byte("b"), 0, false); err != nil {
		t.Fatal(err)
	}
	mode := uint32(0o600)
	if _, err := mine.SetAttr(ctx, ino, fs.SetAttr{Mode: &mode, Behind: true}); err != nil || len(mine.behind.files) != 0 {
		t.Errorf("%d files, %v", len(mine.behind.files), err)
	}
}

// TestSetAttrBehindFails: a change that cannot be done is told of, once.
func TestSetAttrBehindFails(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newTestCluster(t, 3, 0)
	v := c.v(3)
	ino := mkfile(t, v, "f")
	v.behind.within = 500 * time.Millisecond
	c.down(1)
	c.down(2)
	mode := uint32(0o600)
	if in, err := v.SetAttr(ctx, ino, fs.SetAttr{Mode: &mode, Behind: true}); err != nil || in.Mode&0o7777 != mode {
		t.Fatalf("%o, %v", in.Mode, err)
	}
	if err := v.Settle(ctx, ino); fs.ToErrno(err) != syscall.EIO {
		t.Errorf("without a majority: %v", err)
	}
	if err := v.Settle(ctx, ino); err != nil {
		t.Errorf("told again: %v", err)
	}
}
