package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A block that is damaged under a mount is found, by file, offset and block, while the mount is in use; nothing else is.
func TestScrub(t *testing.T) {
	d := mounted(t, "64M")
	data := bytes.Repeat([]byte("0123456789abcdef"), 256*64)
	if err := os.Mkdir(d.path("dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, d.path("dir", "file"), data)
	write(t, d.path("other"), data)
	d.sh(`sync -f "$MNT"`)
	if text := d.vde("scrub", d.mnt); !strings.Contains(text, "no bad block") {
		t.Errorf("scrub of a sound store: %s", text)
	}

	var info struct {
		Extents []struct {
			File  uint64 `json:"file_block"`
			Image uint64 `json:"block"`
			Count uint64 `json:"count"`
		} `json:"extent_map"`
	}
	text := d.vde("info", d.path("dir", "file"), "--json")
	if err := json.Unmarshal([]byte(text), &info); err != nil || len(info.Extents) == 0 {
		t.Fatalf("vde info: %v, %s", err, text)
	}
	const bad = 5 // block of the file
	block := uint64(0)
	for _, x := range info.Extents {
		if bad >= x.File && bad < x.File+x.Count {
			block = x.Image + bad - x.File
		}
	}
	if block == 0 {
		t.Fatalf("vde info tells no block: %s", text)
	}
	damage := func(with []byte) {
		t.Helper()
		image, err := os.OpenFile(filepath.Join(d.store, "disk.vde"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		if _, err := image.WriteAt(with, int64(block*4096+100)); err != nil {
			t.Fatal(err)
		}
	}
	damage([]byte("damage"))
	defer damage(data[100:106]) // or the check at the end finds it

	stdout, stderr, code := vde("scrub", d.mnt)
	want := fmt.Sprintf("/dir/file: offset %d: bad block (image block %d)", bad*4096, block)
	if code != 14 || !strings.Contains(stdout, want) || !strings.Contains(stdout, "1 bad blocks") || strings.Contains(stdout, "other") {
		t.Errorf("scrub: exit code %d, %s%s; want %q", code, stdout, stderr, want)
	}
	stdout, _, code = vde("scrub", d.store, "--json")
	var report struct {
		BadBlocks uint64 `json:"bad_blocks"`
		Bad       []struct {
			Path   string
			Offset uint64
			Block  uint64
		}
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != 14 || report.BadBlocks != 1 || len(report.Bad) != 1 ||
		report.Bad[0].Path != "/dir/file" || report.Bad[0].Offset != bad*4096 || report.Bad[0].Block != block {
		t.Errorf("scrub --json: exit code %d, %v, %s", code, err, stdout)
	}

	// One at a time; an interrupt ends it, and so does an unmount.
	slow := func(begun int) *exec.Cmd {
		t.Helper()
		cmd := exec.Command(program, "scrub", d.mnt, "--rate", "1K")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); bytes.Count(read(t, filepath.Join(d.store, "vde.log")), []byte("scrub begins")) < begun; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("a scrub does not begin")
			}
		}
		return cmd
	}
	interrupted := slow(4)
	refused(t, 17, []string{"already"}, "scrub", d.mnt)
	if err := interrupted.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := interrupted.Wait(); err == nil {
		t.Error("an interrupted scrub ended well")
	}
	for deadline := time.Now().Add(20 * time.Second); !bytes.Contains(read(t, filepath.Join(d.store, "vde.log")), []byte("scrub ended early")); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("an interrupted scrub goes on in the daemon")
		}
	}
	unmounted := slow(5)
	d.umount()
	if err := unmounted.Wait(); err == nil {
		t.Error("a scrub of an unmounted store ended well")
	}
	refused(t, 18, []string{"fsck --data"}, "scrub", d.store)
}
