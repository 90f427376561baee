package png

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"
)

// TestVersion notices when the same input and options give other bytes than
// they did. If that is meant, raise Version and set the sum anew; an update of
// the library that judges strategies can cause it too.
func TestVersion(t *testing.T) {
	const version, want = 7, "f9063098ab014adc4e11c08d16b9b63a2241ba3ed04e5dd30b5c4d1177c38fe6"
	sum := sha256.New()
	for _, h := range formats() {
		b := plain(h.ctype, h.depth)
		b.hdr.width, b.hdr.height, b.level = 50, 50, 0
		b.sample = func(x, y, c int) uint16 {
			v := mixed(x/3, y/2, c)
			if h.ctype == indexed {
				return v & 3 & h.maxSample()
			}
			return v * 0x101 >> (16 - h.depth)
		}
		if h.ctype == indexed {
			b.plte = b.plte[:min(len(b.plte), 3<<h.depth)]
		}
		for l := Fast; l <= Best; l++ {
			o := DefaultOptions()
			o.Level = l
			out, r := reencodeAndCheck(t, b.bytes(), o)
			if out == nil {
				t.Fatalf("%v: kept: %s", h, r.Detail)
			}
			sum.Write(out)
		}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); Version != version || got != want {
		t.Errorf("version %d has the sum %s; known is version %d with %s", Version, got, version, want)
	}
}
