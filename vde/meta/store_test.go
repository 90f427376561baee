package meta

import (
	"errors"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestUnflushedOfAStoppingStore asks for the size of the tables in memory while a flush is under way that never ends, as the disk fails. Who asks
// is told so: Pebble would let it wait for the flush.
func TestUnflushedOfAStoppingStore(t *testing.T) {
	broken := errors.New("broken")
	begun, fail := make(chan struct{}, 1), make(chan struct{})
	opened := false // changed before any flush
	s, err := Open("meta", Options{FS: vfs.NewMem(), Create: true, Logger: pebble.DefaultLogger, Barrier: func() error {
		if !opened {
			return nil
		}
		begun <- struct{}{}
		<-fail
		return broken
	}})
	if err != nil {
		t.Fatal(err)
	}
	commit(t, s, func(b *Batch) { b.SetOrphan(7) })
	if n, err := s.Unflushed(); n <= 0 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	opened = true
	flushed, asked := make(chan error, 1), make(chan error, 1)
	go func() { flushed <- s.Flush() }()
	<-begun
	go func() {
		_, err := s.Unflushed()
		asked <- err
	}()
	time.Sleep(50 * time.Millisecond) // for it to wait; if it has not begun, the test still passes
	close(fail)
	for what, c := range map[string]chan error{"flush": flushed, "size": asked} {
		select {
		case err := <-c:
			if !errors.Is(err, broken) {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: no answer of a store that has stopped", what)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
