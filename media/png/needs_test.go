package png

import "testing"

// TestNeeds: what a caller sets aside is what TestMemory allows, whatever a header says.
func TestNeeds(t *testing.T) {
	ihdr := func(h header) []byte { return append([]byte(signature+"\x00\x00\x00\rIHDR"), h.encode()...) }
	photo := header{width: 4000, height: 3000, depth: 8, ctype: rgb}
	laced := header{width: 9, height: 9, depth: 16, ctype: rgba, interlaced: true}
	bomb := header{width: 1<<31 - 1, height: 1<<31 - 1, depth: 16, ctype: rgba}
	odd := ihdr(photo)
	odd[24] = 3 // a depth that there is not
	for name, c := range map[string]struct {
		head []byte
		size int64
		want int64
	}{
		"a photo":              {ihdr(photo), 1 << 20, 4*3000*(3*4000+1) + 1<<20 + 16<<20},
		"interlaced":           {ihdr(laced), 100, 4*laced.rawSize(1<<20) + 100 + 16<<20},
		"more than the head":   {append(ihdr(photo), make([]byte, 99)...), 7, 4*3000*(3*4000+1) + 7 + 16<<20},
		"a bomb":               {ihdr(bomb), 1 << 20, needsMost},
		"a header in part":     {ihdr(photo)[:needsHead-1], 60, 60 + 16<<20},
		"a header that is bad": {odd, 60, 60 + 16<<20},
		"no PNG":               {[]byte("a text that is longer than the head of a PNG file"), 5000, 5000 + 16<<20},
		"nothing":              {nil, 0, 16 << 20},
	} {
		if got := Needs(c.head, c.size); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
