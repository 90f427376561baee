package replica

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/vde/meta"
)

// smallDisk has as much room as it is said to.
type smallDisk struct {
	vfs.FS
	avail atomic.Uint64
}

func (d *smallDisk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: d.avail.Load(), TotalBytes: 1 << 40}, nil
}

// Stores are sparse: the disks below them may be full long before. While a majority of them is, writes are refused, before anything has failed that stops a
// store. So they are on the mount of a node whose own disk is full.
func TestFullDisksRefuseWrites(t *testing.T) {
	disks := map[uint64]*smallDisk{}
	for id := uint64(1); id <= 3; id++ {
		disks[id] = &smallDisk{FS: vfs.Default}
		disks[id].avail.Store(1 << 40)
	}
	c := &testCluster{t: t, dir: t.TempDir(), lease: time.Second, size: 256 << 20, disk: func(id uint64) vfs.FS { return disks[id] }}
	c.begin(3)
	ctx := context.Background()
	in, err := c.v(1).Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: "file", Mode: unix.S_IFREG | 0o644})
	if err != nil {
		t.Fatal(err)
	}
	at := uint64(0)
	write := func(node int) error {
		at++
		_, err := c.v(node).Write(ctx, in.Ino, at*4096, make([]byte, 4096), 0)
		return err
	}
	become := func(what string, want map[int]error) {
		t.Helper()
		c.eventually(what, func() error {
			for node := 1; node <= 3; node++ {
				if err := write(node); !errors.Is(err, want[node]) || want[node] == nil && err != nil {
					return fmt.Errorf("node %d: %v, want %v", node, err, want[node])
				}
			}
			return nil
		})
	}
	become("room", nil)
	disks[2].avail.Store(1 << 20)
	become("one full disk", map[int]error{2: syscall.ENOSPC})
	disks[3].avail.Store(0)
	become("two full disks", map[int]error{1: syscall.ENOSPC, 2: syscall.ENOSPC, 3: syscall.ENOSPC})
	if _, err := c.v(1).Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: "dir", Mode: unix.S_IFDIR | 0o755}); err != nil {
		t.Errorf("what takes no room: %v", err)
	}
	disks[2].avail.Store(1 << 40)
	disks[3].avail.Store(1 << 40)
	become("room again", nil)
	c.consistent()
}
