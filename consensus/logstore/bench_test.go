package logstore

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// sparseLog makes the files of a log of full, sealed segments, of entries entries each.
// The records are holes: opening reads the index of a sealed segment, not its records.
func sparseLog(b *testing.B, dir string, segments, entries int) {
	b.Helper()
	const size = DefaultSegmentSize
	offsets := make([]uint32, entries)
	for i := range offsets {
		offsets[i] = uint32(segmentHeader + i*((size-segmentHeader)/entries))
	}
	write := func(name string, data []byte, length int64) {
		f, err := vfs.Default.Create(filepath.Join(dir, name), diskCategory)
		if err == nil {
			_, err = f.Write(data)
		}
		if err == nil && length > int64(len(data)) {
			_, err = f.WriteAt([]byte{0}, length-1)
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	for i := range segments + 1 {
		id := segmentID{seq: uint64(i + 1), first: uint64(1 + i*entries), salt: uint32(i)}
		prevTerm := uint64(min(i, 1))
		header := encodeSegmentHeader(id, prevTerm, i == 0)
		if i == segments { // the active one, empty
			write(id.name()+logSuffix, header, 0)
			break
		}
		write(id.name()+logSuffix, header, size)
		write(id.name()+indexSuffix, encodeIndex(id.seed(), size, offsets), 0)
	}
}

// BenchmarkOpen opens a log of 10 GiB and 10 million entries, whose last segment, which
// is read and verified, is almost full.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	sparseLog(b, dir, 160, 62_500)
	open := func() *FileLogStore {
		l, err := OpenFile(FileOptions{FS: vfs.Default, Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		return l
	}
	l := open()
	data := make([]byte, 1<<10)
	for range 60 << 10 {
		if err := l.Append([]Entry{{Index: l.LastIndex() + 1, Term: 1, Type: EntryCommand, Data: data}}); err != nil {
			b.Fatal(err)
		}
	}
	last := l.LastIndex()
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		l := open()
		if l.LastIndex() != last || l.FirstIndex() != 1 {
			b.Fatal(l.FirstIndex(), l.LastIndex())
		}
		b.StopTimer()
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkLookup looks entries up by index, anywhere in logs of several lengths.
func BenchmarkLookup(b *testing.B) {
	for _, n := range []uint64{10_000, 1_000_000, 10_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l, err := OpenFile(FileOptions{FS: vfs.Default, Dir: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			data := binary.LittleEndian.AppendUint64(nil, 1)
			batch := make([]Entry, 1000)
			for index := uint64(1); index <= n; index += uint64(len(batch)) {
				for i := range batch {
					batch[i] = Entry{Index: index + uint64(i), Term: 1, Type: EntryCommand, Data: data}
				}
				if err := l.Append(batch); err != nil {
					b.Fatal(err)
				}
			}
			if err := l.Sync(); err != nil {
				b.Fatal(err)
			}
			rng := rand.New(rand.NewPCG(1, 2))
			for b.Loop() {
				if e, err := l.Entry(1 + rng.Uint64N(n)); err != nil || len(e.Data) != len(data) {
					b.Fatal(e, err)
				}
			}
		})
	}
}
