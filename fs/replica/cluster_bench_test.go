package replica

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/vde/meta"
)

// BenchmarkCluster times operations on three nodes in this process: on the leader, and on a follower.
func BenchmarkCluster(b *testing.B) {
	ctx := context.Background()
	c := newTestCluster(b, 3, 0)
	leader := int(c.v(1).bySlot()[0].Status().Leader)
	var names atomic.Int64
	for _, at := range []struct {
		name string
		v    *Volume
	}{{"leader", c.v(leader)}, {"follower", c.v(leader%3 + 1)}} {
		v := at.v
		ino := mkfile(b, v, "file of "+at.name)
		for _, op := range []struct {
			name  string
			bytes int64
			do    func(i int) error
		}{
			{"inode", 0, func(int) error { _, err := v.Inode(ctx, ino); return err }},
			{"create", 0, func(int) error {
				_, err := v.Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: fmt.Sprint(names.Add(1)), Mode: unix.S_IFREG})
				return err
			}},
			{"write4k", 4096, func(i int) error {
				_, err := v.Write(ctx, ino, uint64(i%1000)*4096, make([]byte, 4096), 0)
				return err
			}},
			{"write1m", 1 << 20, func(i int) error {
				_, err := v.Write(ctx, ino, uint64(i%32)<<20, bytes.Repeat([]byte{byte(i)}, 1<<20), 0)
				return err
			}},
		} {
			for _, par := range []int{1, 8} {
				b.Run(fmt.Sprintf("%s/%s/%d", at.name, op.name, par), func(b *testing.B) {
					b.SetBytes(op.bytes)
					b.SetParallelism((par + 1) / 2)
					if par == 1 {
						for i := range b.N {
							if err := op.do(i); err != nil {
								b.Fatal(err)
							}
						}
						return
					}
					var n atomic.Int64
					b.RunParallel(func(pb *testing.PB) {
						for pb.Next() {
							if err := op.do(int(n.Add(1))); err != nil {
								b.Fatal(err)
							}
						}
					})
				})
			}
		}
	}
}
