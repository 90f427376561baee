package e2e

import (
	"testing"
)

// fio writes blocks with checksums of its own and reads them back: in order and at random, through the cache and past it, and once more
// after mounting again.
func TestFio(t *testing.T) {
	need(t, "fio")
	d := mounted(t, "1G")
	const common = " --directory=$MNT --verify=crc32c --verify_fatal=1 --verify_state_save=0 --size=48M --end_fsync=1 --output-format=terse --randseed=7 "
	jobs := map[string]string{
		"seq-buffered":    "--rw=write --bs=128k --direct=0",
		"seq-direct":      "--rw=write --bs=1M --direct=1 --ioengine=libaio --iodepth=8",
		"random-buffered": "--rw=randwrite --bs=4k --direct=0",
		"random-direct":   "--rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16",
		"odd-sizes":       "--rw=randwrite --bsrange=512-192k --bs_unaligned=1 --direct=0",
		"mmap":            "--rw=randwrite --bs=4k --ioengine=mmap",
		"many-writers":    "--rw=randwrite --bs=16k --direct=1 --numjobs=4 --size=12M --fsync=16",
	}
	for name, job := range jobs {
		t.Run(name, func(t *testing.T) {
			d.t = t
			d.sh("fio --name=" + name + common + "--do_verify=1 " + job)
		})
	}
	d.t = t
	d.remount()
	for name, job := range jobs {
		if name != "odd-sizes" { // fio cannot tell from the file alone where its blocks begin
			d.sh("fio --name=" + name + common + "--verify_only " + job)
		}
	}
}
