package deflate

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// inflate decodes a whole stream with the standard library.
func inflate(t testing.TB, stream []byte) []byte {
	t.Helper()
	in := bytes.NewReader(stream)
	out, err := io.ReadAll(flate.NewReader(in))
	if err != nil {
		t.Fatalf("the stream does not inflate: %v", err)
	}
	if in.Len() != 0 {
		t.Fatalf("%d bytes after the stream", in.Len())
	}
	return out
}

func roundTrip(t testing.TB, e *Encoder, src []byte, p Params) []byte {
	t.Helper()
	out, err := e.Append([]byte("before"), src, p, 1<<30, nil)
	if err != nil {
		t.Fatal(err)
	}
	out, ok := bytes.CutPrefix(out, []byte("before"))
	if !ok {
		t.Fatal("what was there before is gone")
	}
	if got := inflate(t, out); !bytes.Equal(got, src) {
		t.Fatalf("%d bytes came back as %d others", len(src), len(got))
	}
	return out
}

// samples are inputs of very different kinds.
func samples() map[string][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 40_000)
	for i := range random {
		random[i] = byte(rng.Uint32())
	}
	few := make([]byte, 15_000) // few symbols, so that there are very many matches
	for i := range few {
		few[i] = byte(rng.Uint32() & 1)
	}
	skewed := make([]byte, 15_000) // code lengths reach their limit
	for i := range skewed {
		skewed[i] = byte(rng.ExpFloat64() * 3)
	}
	var text []byte
	for len(text) < 60_000 {
		n := rng.IntN(len(random) - 40)
		text = append(text, random[n:n+3+rng.IntN(30)]...)
		text = append(text, "the same again"[:rng.IntN(14)]...)
	}
	return map[string][]byte{
		"empty":     {},
		"one":       {7},
		"two":       {7, 7},
		"short":     []byte("abcabcabcd"),
		"zeros":     make([]byte, 300_000),
		"random":    random,
		"few":       few,
		"skewed":    skewed,
		"text":      text,
		"far":       append(append(bytes.Clone(random[:windowSize]), random[:windowSize]...), random[1:windowSize]...),
		"stretches": append(append(make([]byte, 20_000), random[:30_000]...), text[:20_000]...),
	}
}

func TestRoundTrip(t *testing.T) {
	var e Encoder // used again: nothing may be left over from one input to the next
	for name, src := range samples() {
		t.Run(name, func(t *testing.T) {
			for _, p := range []Params{Swift, Quick, Normal, Thorough, Sketch, Flat, {Depth: 1, Nice: 4, Order: 4, Passes: 1}, {Depth: 30, Nice: 258, Order: 5, Passes: 1}} {
				out := roundTrip(t, &e, src, p)
				var fresh Encoder
				if again := roundTrip(t, &fresh, src, p); !bytes.Equal(out, again) {
					t.Fatalf("%+v: a used encoder and a new one differ", p)
				}
				if most := len(src) + 5*(len(src)/1000+1); len(out) > most {
					t.Errorf("%+v: %d bytes grew to %d", p, len(src), len(out))
				}
			}
		})
	}
}

// TestAcrossChunks has matches that go on from one chunk to the next.
func TestAcrossChunks(t *testing.T) {
	src := bytes.Repeat(samples()["text"], 2*chunkSize/60_000)
	var e Encoder
	out := roundTrip(t, &e, src, Swift)
	t.Logf("%d bytes became %d", len(src), len(out))
}

// TestSmallerThanLibrary holds the encoder to its purpose.
func TestSmallerThanLibrary(t *testing.T) {
	for _, name := range []string{"text", "few", "skewed", "stretches"} {
		src := samples()[name]
		var z bytes.Buffer
		w, err := flate.NewWriter(&z, flate.BestCompression)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(src)
		w.Close()
		var e Encoder
		out := roundTrip(t, &e, src, Normal)
		t.Logf("%s: %d bytes, compress/flate %d", name, len(out), z.Len())
		if len(out) >= z.Len() {
			t.Errorf("%s: %d bytes are not less than the %d of compress/flate", name, len(out), z.Len())
		}
	}
}

func TestMark(t *testing.T) {
	var e Encoder
	for name, src := range samples() {
		out, err := e.AppendMarked(nil, src, Quick, 1<<30, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !IsMarked(out) {
			t.Errorf("%s: a marked stream is not recognised", name)
		}
		if got := inflate(t, out); !bytes.Equal(got, src) {
			t.Errorf("%s: a marked stream does not inflate to its input", name)
		}
		if len(src) > 0 && IsMarked(roundTrip(t, &e, src, Quick)) {
			t.Errorf("%s: a stream without a mark is taken for a marked one", name)
		}
	}
	if IsMarked(nil) || IsMarked([]byte{2}) {
		t.Error("a stub is taken for a marked stream")
	}
}

func TestLimitAndStop(t *testing.T) {
	src := samples()["text"]
	var e Encoder
	size := len(roundTrip(t, &e, src, Quick))
	if _, err := e.Append(nil, src, Quick, size-1, nil); !errors.Is(err, ErrTooLong) {
		t.Errorf("limit %d of %d bytes: %v", size-1, size, err)
	}
	if _, err := e.Append(make([]byte, 100), src, Quick, size, nil); err != nil {
		t.Errorf("limit %d of %d bytes: %v", size, size, err)
	}
	enough := errors.New("enough")
	if out, err := e.Append(nil, src, Quick, size, func() error { return enough }); err != enough || out != nil {
		t.Errorf("stopped: %d bytes, %v", len(out), err)
	}
	for _, p := range []Params{{}, {Depth: 1, Nice: 3, Order: 4, Passes: 1}, {Depth: 1, Nice: 259, Order: 4, Passes: 1},
		{Depth: 1, Nice: 9, Order: 9, Passes: -1}, {Depth: 1, Nice: 9, Order: 3, Passes: 1}, {Depth: 8, Mean: 9, Nice: 9}, {Depth: 8, Mean: -1, Nice: 9},
		{Depth: 8, Nice: 9, Skip: 3}, {Depth: 8, Nice: 9, Skip: 259}} {
		if _, err := e.Append(nil, src, p, size, nil); err == nil {
			t.Errorf("%+v is taken", p)
		}
	}
}

// TestModel makes inputs out of literals and copies, as decoders see them.
func TestModel(t *testing.T) {
	var e Encoder
	rapid.Check(t, func(t *rapid.T) {
		var src []byte
		for range rapid.IntRange(0, 30).Draw(t, "parts") {
			if len(src) == 0 || rapid.Bool().Draw(t, "literal") {
				src = append(src, rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(t, "bytes")...)
				continue
			}
			from := rapid.IntRange(0, len(src)-1).Draw(t, "from")
			for range rapid.IntRange(1, 300).Draw(t, "length") {
				src = append(src, src[from])
				from++
			}
		}
		p := Params{
			Mean:   rapid.IntRange(0, 1).Draw(t, "mean"),
			Skip:   rapid.SampledFrom([]int{0, 4, 16, 64, 258}).Draw(t, "skip"),
			Depth:  rapid.IntRange(1, 50).Draw(t, "depth"),
			Nice:   rapid.IntRange(4, maxMatch).Draw(t, "nice"),
			Order:  rapid.SampledFrom([]int{0, 4, 5, 20, 60, 258}).Draw(t, "order"),
			Passes: rapid.IntRange(0, 3).Draw(t, "passes"),
		}
		out, err := e.Append(nil, src, p, 1<<30, nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(flate.NewReader(bytes.NewReader(out)))
		if err != nil || !bytes.Equal(got, src) {
			t.Fatalf("%d bytes came back as %d: %v", len(src), len(got), err)
		}
	})
}

func FuzzRoundTrip(f *testing.F) {
	for _, src := range samples() {
		f.Add(src[:min(len(src), 3000)], uint8(10), uint8(30))
	}
	var e Encoder
	f.Fuzz(func(t *testing.T, src []byte, depth, nice uint8) {
		roundTrip(t, &e, src, Params{Depth: 1 + int(depth), Mean: int(nice) % (2 + int(depth)), Nice: 4 + int(nice)%255, Skip: int(nice&depth) &^ 3, Order: int(nice^depth) &^ 3, Passes: int(depth) % 3})
	})
}
