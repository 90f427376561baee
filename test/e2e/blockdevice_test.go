package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestBlockDevice keeps the image on a block device: it is used, checked, damaged and repaired like a file.
func TestBlockDevice(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	// Not zeros: an earlier use of the device must not show through.
	if err := os.WriteFile(image, bytes.Repeat([]byte("leftover"), 64<<20/8), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", image).Output()
	if err != nil {
		t.Skip("no loop device can be had: ", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if err := exec.Command("losetup", "--detach", device).Run(); err != nil {
			t.Errorf("losetup --detach %s: %v", device, err)
		}
	})

	d := formatted(t, "--block-device", device)
	d.fsck("--data")
	d.mount()
	file := filepath.Join(d.mnt, "file")
	data := bytes.Repeat([]byte("on a device "), 1<<20/12)
	writeSynced := func(path string) {
		t.Helper()
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	same := func(path string) {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%s: %d bytes, %v; want %d", path, len(got), err, len(data))
		}
	}
	writeSynced(file)
	d.kill()
	d.fsck() // with the log to be applied in memory
	d.mount()
	same(file)
	used := d.status().Used
	d.umount()
	d.fsck("--data")
	var closed facts
	if err := json.Unmarshal([]byte(d.vde("status", d.store, "--json")), &closed); err != nil {
		t.Fatal(err)
	}
	if closed.State != "not mounted" || closed.Size == 0 || used < uint64(len(data)) || closed.Used != used {
		t.Errorf("closed, the store says %+v; mounted, it had %d bytes in use", closed, used)
	}
	if text := d.vde("status", d.store); !strings.Contains(text, device) || !strings.Contains(text, "1.0 MiB used") {
		t.Errorf("closed, the store says:\n%s", text)
	}

	// One superblock lost: found, and made again from the other.
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if out, _, code := vde("fsck", d.store); code != 4 || !strings.Contains(out, "superblock") {
		t.Errorf("fsck with a superblock lost: %d, %s", code, out)
	}
	if out, stderr, code := vde("fsck", "--repair", d.store); code != 1 {
		t.Errorf("repair: %d, %s%s", code, out, stderr)
	}
	d.fsck("--data")
	d.mount()
	same(file)
}
