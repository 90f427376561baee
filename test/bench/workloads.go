package main

// workloads are what can be measured, in this order.
var workloads = []workload{
	{"sequential 1M write + fsync", "MiB/s", 0.9, 3, fioJob{args: "--rw=write --bs=1M --end_fsync=1"}.run},
	{"sequential 1M read, cold", "MiB/s", 1.0, 3, fioJob{args: "--rw=read --bs=1M", cold: true}.run},
	{"random 4k write + fsync, 1 job", "op/s", 1.0, 3, fioJob{args: "--rw=randwrite --bs=4k --fsync=1", size: 128, timed: true, ops: true}.run},
	{"random 4k write + fsync, 8 jobs", "op/s", 1.5, 3, fioJob{args: "--rw=randwrite --bs=4k --fsync=1 --numjobs=8", size: 32, timed: true, ops: true}.run},
	{"direct dsync 4k, 1 writer", "op/s", 0, 0, sharedDirect(1).run},
	{"direct dsync 4k, 8 writers, 1 file", "op/s", 0, 0, sharedDirect(8).run},
	{"random 4k write, buffered", "op/s", 5.0, 0, fioJob{args: "--rw=randwrite --bs=4k", size: 256, timed: true, ops: true}.run},
	{"random 4k read, cold", "op/s", 1.0, 0, fioJob{args: "--rw=randread --bs=4k", size: 256, timed: true, cold: true, ops: true}.run},
	{"direct 4k random write, depth 64", "op/s", 2.0, 0, fioJob{args: "--rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=64", size: 256, timed: true, ops: true}.run},
	{"create, 1 thread", "op/s", 2.0, 3, metadata(1, createFiles).run},
	{"create, 4 threads", "op/s", 2.0, 0, metadata(4, createFiles).run},
	{"stat, cold, 1 thread", "op/s", 2.0, 3, metadata(1, statFiles).after(createFiles).cold().run},
	{"stat, cold, 4 threads", "op/s", 2.0, 0, metadata(4, statFiles).after(createFiles).cold().run},
	{"stat, again, 1 thread", "op/s", 0, 0, metadata(1, statFiles).after(createFiles, statFiles).run},
	{"ls -l, cold", "entries/s", 1.5, 0, metadata(1, listLong).after(createFiles).cold().run},
	{"readdir, again", "entries/s", 0, 0, metadata(1, listAgain).after(createFiles, list).run},
	{"rename, 1 thread", "op/s", 2.0, 3, metadata(1, renameFiles).after(createFiles).run},
	{"rename, 4 threads", "op/s", 2.0, 0, metadata(4, renameFiles).after(createFiles).run},
	{"unlink, 1 thread", "op/s", 2.0, 3, metadata(1, unlinkFiles).after(createFiles).run},
	{"unlink, 4 threads", "op/s", 2.0, 0, metadata(4, unlinkFiles).after(createFiles).run},
	{"untar small files", "files/s", 2.0, 3, untar},
	{"rm -rf small files", "files/s", 2.0, 0, removeTree},
	{"git clone", "files/s", 0, 3, gitClone},
}
