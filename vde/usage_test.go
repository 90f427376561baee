package vde

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"vdefs/vde/meta"
)

// What a closed store tells to have in use is what it told when it was open.
func TestUsedAtClose(t *testing.T) {
	f := vfs.NewMem()
	e, log := openTest(t, f, 64<<20)
	if used, err := UsedAtClose(f, "store"); used != 0 || err != nil {
		t.Errorf("never closed: %d bytes, %v", used, err)
	}
	ino := newFile(t, log)
	if err := change(log, ino, func(tx *Tx, in *meta.Inode) error { return tx.WriteData(in, 0, make([]byte, 100<<10)) }); err != nil {
		t.Fatal(err)
	}
	total, free := e.Usage()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if used, err := UsedAtClose(f, "store"); used != (total-free)*4096 || err != nil {
		t.Errorf("closed: %d bytes, %v; want %d", used, err, (total-free)*4096)
	}
}

// A store that is held is opened by who says so alone.
func TestHold(t *testing.T) {
	f := vfs.NewMem()
	if _, err := Hold(f, "store"); err == nil {
		t.Fatal("what is no store was held")
	}
	if _, err := Format("store", FormatOptions{Size: 64 << 20, FS: f}); err != nil {
		t.Fatal(err)
	}
	hold, err := Hold(f, "store")
	if err != nil {
		t.Fatal(err)
	}
	if e, err := Open("store", OpenOptions{FS: f}); err == nil {
		t.Error("opened while somebody else held it")
		e.Close()
	}
	e, err := Open("store", OpenOptions{FS: f, Held: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Hold(f, "store"); err == nil {
		t.Error("closing the engine let go what the caller holds")
	}
	if err := hold.Close(); err != nil {
		t.Fatal(err)
	}
	_, log := reopenTest(t, f)
	if log == nil {
		t.Error("it cannot be opened any more")
	}
}
