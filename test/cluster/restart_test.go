package cluster

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestRestartOneByOne restarts every node in turn, as an upgrade does, while programs work on the mounts of the others: none of them
// sees an error, and what one has closed the other one opens (close-to-open, with the kernel's caches).
func TestRestartOneByOne(t *testing.T) {
	nodes := newNodes(t, 3, "timeout=30s", "g1", "g2")
	var ops, longest atomic.Int64
	for _, victim := range nodes {
		var others []*node
		for _, n := range nodes {
			if n != victim {
				others = append(others, n)
			}
		}
		stop := make(chan struct{})
		var programs sync.WaitGroup
		for i, n := range others {
			programs.Go(func() {
				for k := 0; ; k++ {
					select {
					case <-stop:
						return
					default:
					}
					began := time.Now()
					err := work(n.mnt, others[1-i].mnt, fmt.Sprintf("%d-%d-%d", victim.i, n.i, k))
					if err != nil {
						t.Errorf("node %d was restarted; a program that writes on node %d and reads on node %d: %v", victim.i, n.i, others[1-i].i, err)
						return
					}
					ops.Add(1)
					for took := int64(time.Since(began)); ; {
						old := longest.Load()
						if took <= old || longest.CompareAndSwap(old, took) {
							break
						}
					}
				}
			})
		}
		time.Sleep(500 * time.Millisecond)
		if _, err := victim.vde("umount", victim.mnt); err != nil {
			t.Errorf("node %d: %v", victim.i, err)
		}
		if err := victim.up(); err != nil {
			t.Errorf("node %d: %v", victim.i, err)
		}
		time.Sleep(500 * time.Millisecond)
		close(stop)
		programs.Wait()
		if t.Failed() {
			return
		}
		waitVoters(t, nodes, len(nodes))
	}
	t.Logf("%d rounds of work, the longest took %v", ops.Load(), time.Duration(longest.Load()).Round(time.Millisecond))
	settle(t, nodes)
}

// work makes a file on one mount and looks at it on another one.
func work(mnt, other, name string) error {
	path, data := filepath.Join(mnt, name), bytes.Repeat([]byte(name+" "), 3000)
	f, err := os.Create(path + ".tmp")
	if err != nil {
		return err
	}
	for i := 0; i < len(data); i += 7000 {
		if _, err := f.Write(data[i:min(i+7000, len(data))]); err != nil {
			f.Close()
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	got, err := os.ReadFile(filepath.Join(other, name))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, data) {
		return fmt.Errorf("%s: %d bytes were closed, %d other ones are read", name, len(data), len(got))
	}
	// The other mount takes it over.
	g, err := os.OpenFile(filepath.Join(other, name), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if _, err := g.WriteString("more"); err != nil {
		g.Close()
		return err
	}
	if err := g.Close(); err != nil {
		return err
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, append(data, "more"...)) {
		return fmt.Errorf("%s: after an append on another mount %d bytes are read, want %d: %w", name, len(got), len(data)+4, err)
	}
	return os.Remove(path)
}
