package layout

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func exampleSuper(t testing.TB) Superblock {
	t.Helper()
	s, err := Geometry(100_000)
	if err != nil {
		t.Fatal(err)
	}
	s.UUID, s.Generation, s.Clean, s.BitmapCRC, s.CleanID = [16]byte{1, 2, 3}, 9, true, 0xabcdef01, 77
	return s
}

func TestSuperblockRoundTrip(t *testing.T) {
	s := exampleSuper(t)
	got, err := DecodeSuperblock(s.Encode())
	if err != nil || got != s {
		t.Errorf("%+v, %v; want %+v", got, err, s)
	}
}

// No single changed bit of a superblock goes unnoticed.
func TestSuperblockDamage(t *testing.T) {
	s := exampleSuper(t)
	whole := s.Encode()
	for at := range whole {
		b := append([]byte(nil), whole...)
		b[at] ^= 1 << (at % 8)
		if _, err := DecodeSuperblock(b); !errors.Is(err, ErrNoSuperblock) && !errors.Is(err, ErrBadSuperblock) {
			t.Fatalf("byte %d changed: %v", at, err)
		}
	}
	if _, err := DecodeSuperblock(whole[:BlockSize-1]); !errors.Is(err, ErrNoSuperblock) {
		t.Errorf("too short: %v", err)
	}
}

// Values that contradict each other are refused even under a right checksum.
func TestSuperblockNonsense(t *testing.T) {
	for name, change := range map[string]func(*Superblock){
		"no blocks":        func(s *Superblock) { s.Blocks = 0 },
		"too many blocks":  func(s *Superblock) { s.Blocks = 1 << 60 },
		"bitmap elsewhere": func(s *Superblock) { s.BitmapStart = 2 },
		"data too early":   func(s *Superblock) { s.DataStart-- },
		"other geometry":   func(s *Superblock) { s.Blocks *= 2 },
	} {
		s := exampleSuper(t)
		change(&s)
		if _, err := DecodeSuperblock(s.Encode()); !errors.Is(err, ErrBadSuperblock) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewerVersionIsRefused(t *testing.T) {
	var v *VersionError
	s := exampleSuper(t)
	s.Version = Newest + 1
	if _, err := DecodeSuperblock(s.Encode()); !errors.As(err, &v) || v.Found != Newest+1 {
		t.Errorf("superblock: %v", err)
	}
	b, err := EncodeInfo(Info{FormatVersion: Newest + 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeInfo(b); !errors.As(err, &v) || v.Found != Newest+1 || !strings.Contains(err.Error(), "knows versions 1 to 1") {
		t.Errorf("vde.json: %v", err)
	}
}

// A flipped bit in the name of the field gives version 0: damage, which fsck repairs, and no newer program.
func TestVersionZeroIsDamage(t *testing.T) {
	var v *VersionError
	if _, err := DecodeInfo([]byte(`{"format_versioo": 1}`)); err == nil || errors.As(err, &v) {
		t.Errorf("vde.json: %v", err)
	}
	s := exampleSuper(t)
	s.Version = 0
	if _, err := DecodeSuperblock(s.Encode()); !errors.Is(err, ErrBadSuperblock) || errors.As(err, &v) {
		t.Errorf("superblock: %v", err)
	}
}

func TestInfoRoundTrip(t *testing.T) {
	want := Info{
		FormatVersion: 1, UUID: FormatUUID([16]byte{15: 1}), NodeID: 3, BlockSize: BlockSize, Size: 1 << 30, BlockDevice: "/dev/sdb",
		Created: time.Unix(1_700_000_000, 0).UTC(),
	}
	b, err := EncodeInfo(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeInfo(b); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for name, change := range map[string]func(*Info){
		"block size": func(i *Info) { i.BlockSize = 512 },
		"uuid":       func(i *Info) { i.UUID = "not-a-uuid" },
		"node":       func(i *Info) { i.NodeID = 0 },
		"no size":    func(i *Info) { i.Size = 0 },
		"odd size":   func(i *Info) { i.Size++ },
		"no room":    func(i *Info) { i.Size = 2 * BlockSize },
	} {
		i := want
		change(&i)
		b, err := EncodeInfo(i)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeInfo(b); err == nil || !strings.Contains(err.Error(), "vde.json") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestGeometry(t *testing.T) {
	for _, c := range []struct{ blocks, sums, data uint64 }{
		{256, 2, 3}, {1024, 2, 3}, {1025, 2, 4}, {32768, 2, 34}, {32769, 3, 36}, {1 << 28, 1 + 8192, 1 + 8192 + 262144},
	} {
		s, err := Geometry(c.blocks)
		if err != nil || s.BitmapStart != 1 || s.ChecksumStart != c.sums || s.DataStart != c.data || s.DataEnd() != c.blocks-1 {
			t.Errorf("%d blocks: %+v, %v", c.blocks, s, err)
		}
	}
	for _, n := range []uint64{0, 1, 2, 3, 4, 1<<52 + 1, ^uint64(0)} {
		if s, err := Geometry(n); err == nil {
			t.Errorf("%d blocks: %+v", n, s)
		}
	}
	if _, err := Geometry(5); err != nil {
		t.Errorf("one data block: %v", err)
	}
}

func FuzzDecodeSuperblock(f *testing.F) {
	s := exampleSuper(f)
	f.Add(s.Encode(), false)
	f.Add([]byte("VDEIMAGE"), true)
	f.Fuzz(func(t *testing.T, b []byte, sum bool) {
		if sum && len(b) >= 4 {
			// Make it whole, so that more than the checksum is met.
			b = append(append([]byte(nil), b...), make([]byte, BlockSize)...)[:BlockSize]
			c := CRC(b[:BlockSize-4])
			b[BlockSize-4], b[BlockSize-3], b[BlockSize-2], b[BlockSize-1] = byte(c), byte(c>>8), byte(c>>16), byte(c>>24)
		}
		s, err := DecodeSuperblock(b)
		if err != nil {
			return
		}
		if again, err := DecodeSuperblock(s.Encode()); err != nil || again != s {
			t.Errorf("%+v becomes %+v, %v", s, again, err)
		}
		if s.DataStart >= s.DataEnd() || s.DataEnd() >= s.Blocks {
			t.Errorf("accepted %+v", s)
		}
	})
}

func FuzzDecodeInfo(f *testing.F) {
	b, _ := EncodeInfo(Info{FormatVersion: 1, UUID: FormatUUID([16]byte{}), NodeID: 1, BlockSize: BlockSize, Size: 1 << 20})
	f.Add(b)
	f.Add([]byte("{}\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := DecodeInfo(b)
		if err != nil {
			return
		}
		if _, err := ParseUUID(i.UUID); err != nil || i.Size%BlockSize != 0 || i.Size == 0 {
			t.Errorf("accepted %+v", i)
		}
	})
}
