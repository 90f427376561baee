package png

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// benchFiles reads the PNG files below VDE_PNG_DIRS (directories, separated
// by colons), or those of the Go distribution.
func benchFiles(b *testing.B) (files [][]byte, size int64) {
	dirs := []string{filepath.Join(goRoot(), "src/image/png/testdata")}
	if own := os.Getenv("VDE_PNG_DIRS"); own != "" {
		dirs = strings.Split(own, ":")
	}
	for _, path := range pngFiles(b, dirs...) {
		data, err := os.ReadFile(path)
		if err != nil {
			b.Fatal(err)
		}
		files = append(files, data)
		size += int64(len(data))
	}
	return files, size
}

// cpuSeconds is the user time of the process so far: on a busy machine it
// says more than the clock.
func cpuSeconds(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()) / 1e9
}

// BenchmarkReencode is the table of what each level saves and how fast, on
// one thread. Bytes are those of the files, so MB/s is of input.
func BenchmarkReencode(b *testing.B) {
	files, size := benchFiles(b)
	for l := Fast; l <= Best; l++ {
		b.Run(l.String(), func(b *testing.B) {
			o := DefaultOptions()
			o.Level, o.Force = l, true
			b.SetBytes(size)
			var out, kept, winners int64
			won := map[string]int{}
			before := cpuSeconds(b)
			for b.Loop() {
				out, kept, winners = 0, 0, 0
				clear(won)
				for _, data := range files {
					_, r, err := Reencode(context.Background(), data, o)
					if err != nil {
						b.Fatal(err)
					}
					out += r.OutBytes
					if r.Kept {
						kept++
					} else {
						winners++
						won[r.Filter]++
					}
				}
			}
			b.ReportMetric(100*float64(out)/float64(size), "%ofinput")
			b.ReportMetric((cpuSeconds(b)-before)/float64(b.N), "cpu-s/op")
			b.ReportMetric(float64(kept), "kept")
			b.ReportMetric(float64(winners), "smaller")
			b.Logf("%d files, %d bytes became %d; filters %v", len(files), size, out, won)
		})
	}
}
