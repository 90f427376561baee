package images

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"vdefs/fs/command"
	"vdefs/vde/alloc"
	"vdefs/vde/image"
	"vdefs/vde/layout"
	"vdefs/vde/meta"
)

var update = flag.Bool("update", false, "write the examples of docs/formats.md anew, for a new format version")

const document = "../../docs/formats.md"

// The worked examples of docs/formats.md are what the program writes. Each stands in a fenced block that begins with
// "```example" and its name.
func TestExamplesInTheDocument(t *testing.T) {
	doc, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	changed := string(doc)
	for name, want := range examples(t) {
		begin := "```example " + name + "\n"
		_, rest, ok := strings.Cut(string(doc), begin)
		got, _, closed := strings.Cut(rest, "```")
		if !ok || !closed {
			t.Errorf("%s has no example %q", document, name)
			continue
		}
		if got == want {
			continue
		}
		if !*update {
			t.Errorf("example %s: the document says\n%sthe program writes\n%s", name, got, want)
		}
		changed = strings.Replace(changed, begin+got, begin+want, 1)
	}
	if *update {
		if err := os.WriteFile(document, []byte(changed), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func examples(t *testing.T) map[string]string {
	uuid := [16]byte{0x0f, 0x1e, 0x2d, 0x3c, 0x4b, 0x5a, 0x49, 0x78, 0x87, 0x96, 0xa5, 0xb4, 0xc3, 0xd2, 0xe1, 0xf0}
	out := map[string]string{}

	info, err := layout.EncodeInfo(layout.Info{
		FormatVersion: 1, UUID: layout.FormatUUID(uuid), NodeID: 1, BlockSize: 4096, Size: 2 << 20,
		Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	})
	if err != nil {
		t.Fatal(err)
	}
	out["vde.json"] = string(info)

	sb, err := layout.Geometry(512)
	if err != nil {
		t.Fatal(err)
	}
	bits := exampleBitmap(t, sb)
	sb.UUID, sb.Generation, sb.Clean, sb.CleanID = uuid, 3, true, 0x1122334455667788
	sb.BitmapCRC = image.BitmapCRC(0, bits)
	out["superblock"] = dump(sb.Encode())
	out["bitmap"] = dump(bits)
	block := bytes.Repeat([]byte("VDE\n"), 1024)
	out["checksums"] = fmt.Sprintf("%04x  % x\n", 3*4, image.AppendSums(nil, block))
	out["metadata"] = exampleMetadata(t, layout.FormatUUID(uuid))
	now := meta.Time{Sec: 1767323045, Nsec: 500}
	out["make"] = dump(command.Encode(&command.Make{Parent: 1, Name: "notes.txt", Mode: unix.S_IFREG | 0o644, Umask: 0o022, UID: 1000, GID: 1000}, now, command.Tag{}))
	out["write"] = dump(command.Encode(&command.Write{Ino: 2, Off: 300, Data: []byte("hello")}, now, command.Tag{}))
	out["writeref"] = dump(command.Encode(&command.WriteRef{
		Ino: 2, FileBlock: 1, End: 8192, Durable: 7, Extents: []alloc.Extent{{Start: 3, Count: 1}}, Sums: image.AppendSums(nil, block),
	}, now, command.Tag{}))
	return out
}

// exampleBitmap is the bitmap of an image whose data blocks 3 to 10 and 20 are in use.
func exampleBitmap(t *testing.T, sb layout.Superblock) (bits []byte) {
	b := alloc.NewBuilder(sb.DataEnd(), sb.DataStart)
	for _, x := range []alloc.Extent{{Start: 3, Count: 8}, {Start: 20, Count: 1}} {
		if err := b.Use(x, false); err != nil {
			t.Fatal(err)
		}
	}
	a, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.WriteBitmap(func(_ uint64, data []byte) error { bits = append(bits, data...); return nil }); err != nil {
		t.Fatal(err)
	}
	return bits
}

// exampleMetadata is a store with one file in the root, and another one that shares two of its blocks and waits to be
// freed, as lines of key and value.
func exampleMetadata(t *testing.T, uuid string) string {
	m, err := meta.Open("meta", meta.Options{FS: vfs.NewMem(), Create: true, Barrier: func() error { return nil }, Logger: noLogger{}})
	if err != nil {
		t.Fatal(err)
	}
	at := meta.Time{Sec: 1767323045, Nsec: 500}
	b := m.NewBatch()
	b.SetInode(&meta.Inode{
		Ino: 1, Mode: unix.S_IFDIR | 0o755, Nlink: 2, Size: 1, Atime: at, Mtime: at, Ctime: at, Btime: at, Version: 1, Parent: 1, NextCookie: 4,
	})
	b.SetInode(&meta.Inode{
		Ino: 2, Mode: unix.S_IFREG | 0o644, Nlink: 1, UID: 1000, GID: 1000, Flags: meta.FlagXattr, Size: 30_000, Blocks: 8,
		Atime: at, Mtime: at, Ctime: at, Btime: at, Version: 1, NextCookie: 3,
	})
	b.SetInode(&meta.Inode{
		Ino: 3, Mode: unix.S_IFREG | 0o600, Size: 16 << 10, Blocks: 3, Atime: at, Mtime: at, Ctime: at, Btime: at, Version: 2, NextCookie: 3,
	})
	b.SetInode(&meta.Inode{
		Ino: 4, Mode: unix.S_IFLNK | 0o777, Nlink: 0, Size: 9, Atime: at, Mtime: at, Ctime: at, Btime: at, NextCookie: 3, Target: "notes.txt",
	})
	b.SetDirent(1, meta.Dirent{Name: "notes.txt", Ino: 2, Type: unix.S_IFREG, Cookie: 3})
	b.SetExtent(2, meta.Extent{FileBlock: 0, Phys: 3, Count: 8})
	b.SetExtent(3, meta.Extent{FileBlock: 0, Phys: 3, Count: 2})
	b.SetExtent(3, meta.Extent{FileBlock: 300, Phys: 20, Count: 1, Unwritten: true})
	b.SetXattr(2, "user.colour", []byte("green"))
	b.SetOrphan(3)
	b.SetOrphan(4)
	b.SetRef(meta.Ref{Phys: 3, Count: 2, Refs: 2})
	b.SetGroup(0, meta.Group{Applied: 700, Term: 2, NextSeq: 5, Inodes: 4})
	b.SetFact("uuid", []byte(uuid))
	b.SetFact("clean", []byte{0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11})
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	var s strings.Builder
	err = m.Walk(func(k, v []byte) (bool, error) {
		fmt.Fprintf(&s, "%c %s\n", k[0], hex.EncodeToString(k[1:]))
		for i := 0; i < len(v); i += 24 {
			fmt.Fprintf(&s, "    %s\n", hex.EncodeToString(v[i:min(len(v), i+24)]))
		}
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	return s.String()
}

// dump writes bytes in lines of 16; lines like the one before are left out, with a star, as hexdump(1) does.
func dump(b []byte) string {
	var s strings.Builder
	var last []byte
	star := false
	for i := 0; i < len(b); i += 16 {
		line := b[i:min(len(b), i+16)]
		if bytes.Equal(line, last) && i+16 < len(b) {
			if !star {
				s.WriteString("*\n")
			}
			star = true
			continue
		}
		last, star = line, false
		fmt.Fprintf(&s, "%04x  % x\n", i, line)
	}
	return s.String()
}

type noLogger struct{}

func (noLogger) Infof(string, ...any)              {}
func (noLogger) Errorf(string, ...any)             {}
func (noLogger) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
