package replica

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/png"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/vde/meta"
)

// announced is the mount of a volume as far as replaced contents go.
type announced struct {
	mu      sync.Mutex
	pending map[meta.Ino]bool
	changed map[meta.Ino]uint64
}

func (a *announced) BeginChange(ino meta.Ino, _ time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pending[ino] = true
}
func (a *announced) Changed(ino meta.Ino, version uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pending[ino] {
		a.changed[ino] = version
	}
}
func (a *announced) EndChange(ino, _ meta.Ino, _ string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.pending, ino)
}

// TestClusterPNG: a PNG is made smaller once, while no mount has it open, and every mount is told.
func TestClusterPNG(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newTestCluster(t, 3, 0)
	var mounts []*announced
	for id := 1; id <= 3; id++ {
		if err := c.v(id).StartPNG("async", 0); err != nil {
			t.Fatal(err)
		}
		m := &announced{pending: map[meta.Ino]bool{}, changed: map[meta.Ino]uint64{}}
		c.v(id).Attach(m)
		mounts = append(mounts, m)
	}
	var fat bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.NoCompression}).Encode(&fat, image.NewRGBA(image.Rect(0, 0, 100, 100))); err != nil {
		t.Fatal(err)
	}
	write := func(name string) meta.Ino {
		in, err := c.v(1).Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: name, Mode: unix.S_IFREG | 0o644, Reference: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.v(1).Write(ctx, in.Ino, 0, fat.Bytes(), 0); err != nil {
			t.Fatal(err)
		}
		return in.Ino
	}
	ino, open := write("a.png"), write("b.png")
	if _, err := c.v(2).Lookup(ctx, meta.RootIno, "b.png"); err != nil { // as every open(2) begins
		t.Fatal(err)
	}
	if err := c.v(2).Reference(open); err != nil {
		t.Fatal(err)
	}
	c.v(1).Unreference(ino)
	c.v(1).Unreference(open)
	c.eventually("the picture is made smaller", func() error {
		for id := 1; id <= 3; id++ {
			in, err := c.v(id).Inode(ctx, ino)
			if err != nil || in.Size >= uint64(fat.Len()) {
				return fmt.Errorf("node %d: %d bytes, %v", id, in.Size, err)
			}
			if _, err := png.Decode(bytes.NewReader(readAll(t, c.v(id), ino))); err != nil {
				return err
			}
			mounts[id-1].mu.Lock()
			told, pending := mounts[id-1].changed[ino] == in.Version, mounts[id-1].pending[ino]
			mounts[id-1].mu.Unlock()
			if !told || pending {
				return fmt.Errorf("node %d was told: %v; it waits: %v", id, told, pending)
			}
		}
		return nil
	})
	time.Sleep(time.Second)
	if in, err := c.v(2).Inode(ctx, open); err != nil || in.Size != uint64(fat.Len()) {
		t.Errorf("a picture that another mount has open: %d bytes of %d, %v", in.Size, fat.Len(), err)
	}
	for id := 1; id <= 3; id++ {
		if err := c.v(id).Reference(ino); err != nil {
			t.Errorf("node %d cannot open it afterwards: %v", id, err)
		}
	}
}
