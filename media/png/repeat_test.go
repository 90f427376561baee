package png

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
)

// TestMark: what is done is known as done, also after a byte copy; a higher
// level does it again.
func TestMark(t *testing.T) {
	in := plain(rgb, 8).bytes()
	o := DefaultOptions()
	for l := Fast; l <= Best; l++ {
		o.Level = l
		out, _ := reencodeAndCheck(t, in, o)
		for again := Fast; again <= Best; again++ {
			o.Level = again
			_, r, err := Reencode(context.Background(), bytes.Clone(out), o)
			if err != nil {
				t.Fatal(err)
			}
			if done := r.Reason == ReasonAlreadyDone; done != (again <= l) {
				t.Errorf("done with %v, asked for %v: %q", l, again, r.Reason)
			}
			forced := o
			forced.Force = true
			if _, r, _ := Reencode(context.Background(), out, forced); r.Reason == ReasonAlreadyDone {
				t.Errorf("done with %v, forced with %v: %q", l, again, r.Reason)
			}
		}
		// A damaged file is damaged, marked or not.
		broken := bytes.Clone(out)
		broken[len(broken)-14]++
		refused(t, broken, ReasonBadCRC)
	}
	// No file of another encoder bears the mark.
	for _, path := range pngFiles(t, filepath.Join(goRoot(), "src/image/png/testdata")) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if f, ref := parse(data); ref == nil {
			if l, ok := markOf(f); ok {
				t.Errorf("%s is taken for done with %v", path, l)
			}
		}
	}
}

// TestWorkersDoNotMatter runs the same files on one and on many goroutines.
func TestWorkersDoNotMatter(t *testing.T) {
	var files [][]byte
	for i := range uint64(40) {
		files = append(files, randomPicture(i, uint8(i*3), uint8(i*7), uint8(i*5)))
	}
	run := func(workers int) [][sha256.Size]byte {
		sums := make([][sha256.Size]byte, len(files))
		var wg sync.WaitGroup
		next := make(chan int)
		for range workers {
			wg.Go(func() {
				for i := range next {
					out, _, err := Reencode(context.Background(), files[i], DefaultOptions())
					if err != nil {
						t.Error(err)
					}
					sums[i] = sha256.Sum256(out)
				}
			})
		}
		for i := range files {
			next <- i
		}
		close(next)
		wg.Wait()
		return sums
	}
	one := run(1)
	for i, sum := range run(8) {
		if sum != one[i] {
			t.Errorf("file %d has another output with 8 workers", i)
		}
	}
}

// TestMemory holds Reencode to what Options promises. It counts everything
// that is allocated, collected or not.
func TestMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates too")
	}
	smooth := func(x, y, c int) uint16 { return uint16((x*x/90+y*c)&0xff)*256 + uint16(x*y&0xff) }
	for _, h := range []header{
		{depth: 8, ctype: rgba}, {depth: 16, ctype: rgba}, {depth: 8, ctype: indexed}, {depth: 8, ctype: gray, interlaced: true},
	} {
		for _, kind := range []string{"smooth", "few"} {
			h.width, h.height = 800, 500
			b := build{hdr: h, plte: nil, level: 1}
			b.sample = func(x, y, c int) uint16 {
				v := smooth(x, y, c)
				if kind == "few" {
					v = uint16(x/100+y/90) % 16 * 0x1111 // reductions go all the way
				}
				return v >> (16 - h.depth)
			}
			if h.ctype == indexed {
				b.plte = bytes.Repeat([]byte{1, 2, 3}, 256)
			}
			in := b.bytes()
			for l := Fast; l <= Best; l++ {
				t.Run(fmt.Sprintf("%v-%d-%t-%s-%v", h.ctype, h.depth, h.interlaced, kind, l), func(t *testing.T) {
					defer debug.SetGCPercent(debug.SetGCPercent(-1))
					runtime.GC()
					runtime.GC() // the second one empties the pools
					var before, after runtime.MemStats
					runtime.ReadMemStats(&before)
					o := DefaultOptions()
					o.Level = l
					if _, _, err := Reencode(context.Background(), in, o); err != nil {
						t.Fatal(err)
					}
					runtime.ReadMemStats(&after)
					raw := h.rawSize(1 << 40)
					used, limit := int64(after.TotalAlloc-before.TotalAlloc), 4*raw+16<<20+int64(len(in))
					t.Logf("%d KiB of %d", used>>10, limit>>10)
					if used > limit {
						t.Errorf("%d KiB allocated, %d allowed (%d KiB decoded, %d KiB in)", used>>10, limit>>10, raw>>10, len(in)>>10)
					}
				})
			}
		}
	}
}

// TestMemoryOfLargePictures is TestMemory with pictures beside which the 16 MiB
// count little.
func TestMemoryOfLargePictures(t *testing.T) {
	if raceEnabled || testing.Short() {
		t.Skip("the race detector allocates too")
	}
	veiled := build{hdr: header{width: 4000, height: 3000, depth: 8, ctype: indexed}, level: 1}
	var alpha []byte
	for i := range 200 {
		veiled.plte = append(veiled.plte, byte(i), byte(i), byte(i))
		alpha = append(alpha, byte(255-i/2))
	}
	veiled.middle = []chunk{{"tRNS", alpha}}
	for _, c := range []struct {
		name string
		b    build
	}{
		{"gray with alpha in a palette", veiled},
		{"one pixel wide", build{hdr: header{width: 1, height: 6 << 20, depth: 8, ctype: gray}, level: 1}},
		{"rgba that becomes a palette", build{hdr: header{width: 2000, height: 1500, depth: 8, ctype: rgba}, level: 1}},
		{"rgba of 16 bits", build{hdr: header{width: 1500, height: 1000, depth: 16, ctype: rgba}, level: 1}},
	} {
		h := c.b.hdr
		px := h.bitsPerPixel() / 8
		raw := make([]byte, 0, h.rawSize(1<<40))
		for y := range h.height {
			raw = append(raw, 0)
			for x := range h.width {
				for i := range px {
					raw = append(raw, byte((x/700+y/600)*9+i*3)%199)
				}
			}
		}
		list := []chunk{{"IHDR", h.encode()}}
		if c.b.plte != nil {
			list = append(list, chunk{"PLTE", c.b.plte})
		}
		list = append(list, c.b.middle...)
		in := join(append(list, chunk{"IDAT", deflateZlib(raw, 1)}, chunk{"IEND", nil}))
		size := int64(len(raw))
		raw = nil
		for _, l := range []Level{Default, Best} {
			t.Run(c.name+"/"+l.String(), func(t *testing.T) {
				defer debug.SetGCPercent(debug.SetGCPercent(-1))
				runtime.GC()
				runtime.GC()
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				o := DefaultOptions()
				o.Level = l
				_, r, err := Reencode(context.Background(), in, o)
				if err != nil || r.Kept {
					t.Fatalf("%+v, %v", r, err)
				}
				runtime.ReadMemStats(&after)
				used, limit := int64(after.TotalAlloc-before.TotalAlloc), 4*size+16<<20+int64(len(in))
				t.Logf("%d KiB of %d, %v, %v", used>>10, limit>>10, r.After, r.Elapsed)
				if used > limit {
					t.Errorf("%d KiB allocated, %d allowed", used>>10, limit>>10)
				}
			})
		}
	}
}
