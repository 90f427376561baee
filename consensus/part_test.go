package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"vdefs/consensus/transport"
)

// bytesFile is a file in memory.
type bytesFile struct{ b []byte }

func (f *bytesFile) ReadAt(p []byte, at int64) (int, error) {
	return bytes.NewReader(f.b).ReadAt(p, at)
}

func (f *bytesFile) WriteAt(p []byte, at int64) (int, error) {
	if grow := int(at) + len(p) - len(f.b); grow > 0 {
		f.b = append(f.b, make([]byte, grow)...)
	}
	return copy(f.b[at:], p), nil
}

func noEnd() error { return nil }

// TestPartDrawing holds the drawing in part.go.
func TestPartDrawing(t *testing.T) {
	id := partID{index: 0x0102, term: 3}
	copy(id.identity[:], "0123456789abcdef")
	f := &bytesFile{}
	p := &part{id: id}
	if err := errors.Join(p.begin(f), p.add(f, append(make([]byte, partRecord), "hi"...))); err != nil {
		t.Fatal(err)
	}
	const want = "VDEPART\x01" + "0123456789abcdef" + "\x02\x01\x00\x00\x00\x00\x00\x00" + "\x03\x00\x00\x00\x00\x00\x00\x00" + "\x92\x1b\x05\xa1" +
		"\x02\x00\x00\x00" + "\xc2\xd9\x9d\xf5" + "hi"
	if string(f.b) != want {
		t.Fatalf("a part is %q, drawn is %q", f.b, want)
	}
	if got, err := decodePartID(f.b[:partHeader]); err != nil || got != id {
		t.Fatalf("%+v, %v", got, err)
	}
}

// TestPart compares parts with what was put into them: whatever is cut off or changed, a
// scan finds whole records that were written, and what is then added behind them is read
// as it was.
func TestPart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		chunks := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 1, 40), 0, 8).Draw(t, "chunks")
		f, p := &bytesFile{}, &part{id: partID{index: 7, term: 2}}
		if err := p.begin(f); err != nil {
			t.Fatal(err)
		}
		ends := []int64{0} // bytes of the snapshot at the end of each record
		for _, c := range chunks {
			if err := p.add(f, append(make([]byte, partRecord), c...)); err != nil {
				t.Fatal(err)
			}
			ends = append(ends, p.size)
		}
		all := bytes.Join(chunks, nil)
		least := len(ends) - 1 // records that are undamaged
		if records := len(f.b) - partHeader; records > 0 {
			at := partHeader + rapid.IntRange(0, records-1).Draw(t, "where")
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				f.b = f.b[:at]
			case 1:
				f.b[at] ^= byte(rapid.IntRange(1, 255).Draw(t, "flip"))
			case 2:
				clear(f.b[at:]) // what a crash of the machine leaves
			}
			for least > 0 && ends[least]+int64(least*partRecord)+partHeader > int64(at) {
				least--
			}
		}
		q := &part{id: p.id}
		if err := q.scan(f, noEnd); err != nil {
			t.Fatal(err)
		}
		n := 0
		for n < len(ends) && ends[n] != q.size {
			n++
		}
		if n == len(ends) || n < least {
			t.Fatalf("%d bytes are left, at least %d are sound, records end at %d", q.size, ends[least], ends)
		}
		for _, c := range chunks[n:] {
			if err := q.add(f, append(make([]byte, partRecord), c...)); err != nil {
				t.Fatal(err)
			}
		}
		if q.crc != p.crc {
			t.Fatalf("checksum %08x, want %08x", q.crc, p.crc)
		}
		got, err := io.ReadAll(q.reader(f))
		if err != nil || !bytes.Equal(got, all) {
			t.Fatalf("read %q, %v, want %q", got, err, all)
		}
	})
}

// TestPartReaderNoticesDamage: what went bad after it arrived is not restored.
func TestPartReaderNoticesDamage(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"flipped": func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"cut off": func(b []byte) []byte { return b[:len(b)-3] },
		"a record less": func(b []byte) []byte {
			return b[:len(b)-partRecord-5]
		},
	} {
		f, p := &bytesFile{}, &part{}
		if err := errors.Join(p.begin(f), p.add(f, append(make([]byte, partRecord), "12345"...)), p.add(f, append(make([]byte, partRecord), "67890"...))); err != nil {
			t.Fatal(err)
		}
		f.b = damage(f.b)
		if got, err := io.ReadAll(p.reader(f)); !errors.Is(err, ErrCorrupt) || string(got) != "12345" {
			t.Errorf("%s: read %q, %v", name, got, err)
		}
	}
}

// TestPartScanPassesErrorsOn: a disk that cannot be read is no end of the part.
func TestPartScanPassesErrorsOn(t *testing.T) {
	p := &part{}
	if err := p.scan(failingFile{}, noEnd); !errors.Is(err, os.ErrPermission) {
		t.Fatal(err)
	}
	stop := errors.New("stop")
	if err := p.scan(&bytesFile{}, func() error { return stop }); err != stop {
		t.Fatal(err)
	}
}

type failingFile struct{}

func (failingFile) ReadAt([]byte, int64) (int, error) { return 0, os.ErrPermission }

func FuzzPart(f *testing.F) {
	sound := &bytesFile{}
	p := &part{}
	if err := errors.Join(p.begin(sound), p.add(sound, append(make([]byte, partRecord), "hello"...))); err != nil {
		f.Fatal(err)
	}
	f.Add(sound.b)
	f.Add([]byte("VDEPART\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if id, err := decodePartID(b[:min(len(b), partHeader)]); err == nil && !bytes.Equal(id.encode(), b[:partHeader]) {
			t.Fatalf("%+v is encoded otherwise", id)
		}
		p := &part{}
		if err := p.scan(&bytesFile{b}, noEnd); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(p.reader(&bytesFile{b}))
		if err != nil || int64(len(got)) != p.size {
			t.Fatalf("a scan found %d bytes, then %d were read: %v", p.size, len(got), err)
		}
	})
}

// arriving is the data of a snapshot, of which a Handler may have a part.
type arriving struct {
	identity byte
	all      string
	pos      int
	cut      int   // where Read fails, 0: nowhere
	err      error // with which
	wentOn   int   // where GoOn said
	onRead   func()
}

func (a *arriving) Identity() (id [transport.SnapshotIDSize]byte) {
	id[0] = a.identity
	return id
}

func (a *arriving) GoOn(n int64, _ uint32) { a.pos, a.wentOn = int(n), int(n) }

func (a *arriving) Read(p []byte) (int, error) {
	if a.onRead != nil {
		a.onRead()
	}
	if a.cut > 0 && a.pos >= a.cut {
		return 0, a.err
	}
	if a.pos == len(a.all) {
		return 0, io.EOF
	}
	n := copy(p, a.all[a.pos:min(a.pos+10, len(a.all))])
	a.pos += n
	return n, nil
}

// partsOf returns the names of the parts that a node has.
func partsOf(t *testing.T, fs vfs.FS) (names []string) {
	all, err := fs.List("raft/default")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		if len(name) > len(partPrefix) && name[:len(partPrefix)] == partPrefix {
			names = append(names, name)
		}
	}
	return names
}

// TestPartOutlivesARestart: what arrived before a restart is gone on with by the same
// snapshot alone, and nothing is left of what nobody can use.
func TestPartOutlivesARestart(t *testing.T) {
	text := fmt.Sprintf("%0100d", 5)
	for _, c := range []struct {
		name   string
		id     byte   // of the first snapshot
		index  uint64 // likewise
		damage func(t *testing.T, fs vfs.FS, path string)
		id2    byte // of the second
		index2 uint64
		wentOn int
		kept   int // parts after the restart
	}{
		{"the same one", 1, 50, nil, 1, 50, 40, 1},
		{"another one", 1, 50, nil, 2, 50, 0, 1},
		{"one of another entry", 1, 50, nil, 1, 51, 0, 1},
		{"without an identity", 0, 50, nil, 0, 50, 0, 0},
		{"a bad header", 1, 50, func(t *testing.T, fs vfs.FS, path string) { flip(t, fs, path, 9) }, 1, 50, 0, 0},
		{"a bad record", 1, 50, func(t *testing.T, fs vfs.FS, path string) { flip(t, fs, path, partHeader+2*(partRecord+10)+partRecord) }, 1, 50, 20, 1},
		{"nothing but a header", 1, 50, func(t *testing.T, fs vfs.FS, path string) { flip(t, fs, path, partHeader) }, 1, 50, 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := newCluster(t, 1)
			cl.nodes[1].sm = newRecorder(0)
			g, err := cl.nodes[1].m.JoinGroup(DefaultGroup, cl.nodes[1].sm)
			if err != nil {
				t.Fatal(err)
			}
			first := &arriving{identity: c.id, all: text, cut: 40, err: transport.ErrClosed}
			closed := make(chan error, 1)
			first.onRead = func() {
				if first.pos == 40 {
					first.onRead = nil
					closed <- g.Close() // as the node does that is stopped: first the groups, then the connections
				}
			}
			if err := g.receiveSnapshot(g.rep.Load(), snapMessage(c.index), first); !errors.Is(err, ErrClosed) {
				t.Fatal(err)
			}
			if err := <-closed; err != nil {
				t.Fatal(err)
			}
			fs := cl.nodes[1].fs
			if names := partsOf(t, fs); len(names) != 1 {
				t.Fatalf("there are %q", names)
			} else if c.damage != nil {
				c.damage(t, fs, fs.PathJoin("raft/default", names[0]))
			}
			if g, err = cl.nodes[1].m.OpenGroup(DefaultGroup, newRecorder(0)); err != nil {
				t.Fatal(err)
			}
			if names := partsOf(t, fs); len(names) != c.kept {
				t.Fatalf("there are %q after the restart", names)
			}
			if at := g.AppliedIndex(); at != 0 {
				t.Fatalf("a part counts: %d is applied", at)
			}
			second := &arriving{identity: c.id2, all: text}
			p, err := g.beginReceive(partID{second.Identity(), c.index2, 1})
			if err != nil {
				t.Fatal(err)
			}
			if err := g.endReceive(p, g.receivePart(p, second, second)); err != nil {
				t.Fatal(err)
			}
			if second.wentOn != c.wentOn {
				t.Fatalf("it went on behind %d bytes, want %d", second.wentOn, c.wentOn)
			}
			f, err := fs.Open(p.path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if got, err := io.ReadAll(p.reader(f)); err != nil || string(got) != text {
				t.Fatalf("%q, %v", got, err)
			}
			if names := partsOf(t, fs); len(names) != 1 {
				t.Fatalf("there are %q at the end", names)
			}
		})
	}
}

// TestPartIsForgotten: one whose sender does not come back goes, and so does one that has
// been overtaken.
func TestPartIsForgotten(t *testing.T) {
	for name, forget := range map[string]func(*Group){
		"time is over": (*Group).forgetKept,
		"overtaken": func(g *Group) {
			g.drive.incoming.mu.Lock()
			defer g.drive.incoming.mu.Unlock()
			g.dropPartsLocked(50)
		},
	} {
		t.Run(name, func(t *testing.T) {
			cl := newCluster(t, 1)
			g, err := cl.nodes[1].m.JoinGroup(DefaultGroup, newRecorder(0))
			if err != nil {
				t.Fatal(err)
			}
			if err := g.Close(); err != nil {
				t.Fatal(err)
			}
			fs := cl.nodes[1].fs
			for made, id := range []partID{{[16]byte{1}, 40, 1}, {[16]byte{2}, 50, 1}, {[16]byte{3}, 45, 1}} {
				f, err := fs.OpenReadWrite(g.partPath(id.index, made), vfs.WriteCategoryUnspecified)
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join((&part{id: id}).begin(f), f.Close()); err != nil {
					t.Fatal(err)
				}
			}
			if g, err = cl.nodes[1].m.OpenGroup(DefaultGroup, newRecorder(0)); err != nil {
				t.Fatal(err)
			}
			if names := partsOf(t, fs); len(names) != 1 || g.drive.incoming.kept.id.index != 50 {
				t.Fatalf("%q are kept", names)
			}
			forget(g)
			if names := partsOf(t, fs); len(names) != 0 || g.drive.incoming.kept != nil {
				t.Fatalf("%q are left", names)
			}
		})
	}
}

func flip(t *testing.T, fs vfs.FS, path string, at int64) {
	f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x55
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}
