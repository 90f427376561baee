package diff

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vdefs/test/posix"
)

// sharedFor is how long each part of TestShared goes on.
const sharedFor = 700 * time.Millisecond

// TestShared has several threads work in the same directories, where no answer can be foretold, and checks what must hold
// all the same. It runs on the reference too: what ext4 does not keep is no invariant.
func TestShared(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	ref, kind := reference(t)
	for _, target := range []struct{ name, dir string }{{kind, ref}, {"mount", posix.Apart(t, "writeback")}} {
		t.Run(target.name, func(t *testing.T) {
			for name, test := range map[string]func(*testing.T, string){
				"exclusive": exclusive, "tokens": tokens, "replaced": replaced, "listed": listed, "directories": directories,
			} {
				t.Run(name, func(t *testing.T) {
					dir := filepath.Join(target.dir, name)
					must(t, os.Mkdir(dir, 0o755))
					test(t, dir)
				})
			}
		})
	}
}

// together has four goroutines work until the time is over or the test has failed.
func together(t *testing.T, work func(worker int, random *rand.Rand)) {
	t.Helper()
	end := time.Now().Add(sharedFor)
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			random := rand.New(rand.NewPCG(*seed, uint64(worker)))
			for time.Now().Before(end) && !t.Failed() {
				work(worker, random)
			}
		})
	}
	group.Wait()
}

// exclusive: of those who create a name with O_EXCL at the same time one succeeds, and of those who remove it too.
func exclusive(t *testing.T, dir string) {
	var balance [4]atomic.Int32 // names made less names removed
	path := func(n int) string { return fmt.Sprintf("%s/%d", dir, n) }
	together(t, func(_ int, random *rand.Rand) {
		n := random.IntN(len(balance))
		if random.IntN(2) == 0 {
			fd, err := unix.Open(path(n), unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
			if err == nil {
				unix.Close(fd)
				balance[n].Add(1)
			} else if err != unix.EEXIST {
				t.Errorf("create: %v", err)
			}
		} else if err := unix.Unlink(path(n)); err == nil {
			balance[n].Add(-1)
		} else if err != unix.ENOENT {
			t.Errorf("unlink: %v", err)
		}
	})
	for n := range balance {
		there := int32(0)
		if unix.Access(path(n), unix.F_OK) == nil {
			there = 1
		}
		if got := balance[n].Load(); got != there {
			t.Errorf("%d more creations than removals of a name that is there %d times", got, there)
		}
	}
}

// tokens: files that are moved about stay as many, each with one name, whatever renames meet.
func tokens(t *testing.T, dir string) {
	const files, dirs = 12, 3
	for d := range dirs {
		must(t, os.Mkdir(fmt.Sprintf("%s/%d", dir, d), 0o755))
	}
	for f := range files {
		must(t, os.WriteFile(fmt.Sprintf("%s/%d/%d", dir, f%dirs, f), nil, 0o644))
	}
	together(t, func(_ int, random *rand.Rand) {
		place := func() string { return fmt.Sprintf("%s/%d/%d", dir, random.IntN(dirs), random.IntN(2*files)) }
		flags := uint(unix.RENAME_NOREPLACE)
		if random.IntN(3) == 0 {
			flags = unix.RENAME_EXCHANGE
		}
		err := unix.Renameat2(unix.AT_FDCWD, place(), unix.AT_FDCWD, place(), flags)
		if err != nil && err != unix.ENOENT && err != unix.EEXIST {
			t.Errorf("rename: %v", err)
		}
	})
	found := map[uint64]bool{}
	for d := range dirs {
		list, err := os.ReadDir(fmt.Sprintf("%s/%d", dir, d))
		must(t, err)
		for _, e := range list {
			var st unix.Stat_t
			must(t, unix.Lstat(fmt.Sprintf("%s/%d/%s", dir, d, e.Name()), &st))
			if found[st.Ino] || st.Nlink != 1 {
				t.Errorf("inode %d is there twice, or has %d links", st.Ino, st.Nlink)
			}
			found[st.Ino] = true
		}
	}
	if len(found) != files {
		t.Errorf("%d files have become %d", files, len(found))
	}
}

// replaced: a file that is replaced by rename is always there, and whole.
func replaced(t *testing.T, dir string) {
	path := dir + "/file"
	put := func(worker int, fill byte) {
		data := make([]byte, 20000)
		for i := range data {
			data[i] = fill
		}
		fresh := fmt.Sprintf("%s/new%d", dir, worker)
		if err := os.WriteFile(fresh, data, 0o644); err != nil {
			t.Error(err)
		}
		if err := unix.Rename(fresh, path); err != nil {
			t.Error(err)
		}
	}
	put(0, 'x')
	together(t, func(worker int, random *rand.Rand) {
		if worker < 2 {
			put(worker, byte(random.IntN(256)))
			return
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
			return
		}
		for _, c := range data {
			if len(data) != 20000 || c != data[0] {
				t.Errorf("the file is mixed, or has %d bytes", len(data))
				return
			}
		}
	})
}

// listed: names that stay are listed once each, while others come and go around them.
func listed(t *testing.T, dir string) {
	const stay = 300
	for i := range stay {
		must(t, os.WriteFile(fmt.Sprintf("%s/stays%d", dir, i), nil, 0o644))
	}
	together(t, func(worker int, random *rand.Rand) {
		if worker < 2 {
			path := fmt.Sprintf("%s/goes%d-%d", dir, worker, random.IntN(500))
			if fd, err := unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644); err == nil {
				unix.Close(fd)
			} else if err := unix.Unlink(path); err != nil {
				t.Error(err)
			}
			return
		}
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		list, err := new(side).list(fd)
		if err != nil {
			t.Error(err)
			return
		}
		seen, stays := map[string]bool{}, 0
		for _, e := range list {
			// One that goes and comes again meanwhile is another entry, and may be listed, too.
			if !strings.HasPrefix(e.name, "stays") {
				continue
			}
			if seen[e.name] {
				t.Errorf("%s is listed twice", e.name)
			}
			seen[e.name] = true
			stays++
		}
		if stays != stay {
			t.Errorf("%d of %d names that stay are listed", stays, stay)
		}
	})
}

// directories: the link count of a directory is that of its subdirectories, after they were made, moved and removed by
// several at a time.
func directories(t *testing.T, dir string) {
	for _, d := range []string{"a", "b"} {
		must(t, os.Mkdir(dir+"/"+d, 0o755))
	}
	together(t, func(_ int, random *rand.Rand) {
		place := func() string { return fmt.Sprintf("%s/%c/%d", dir, 'a'+random.IntN(2), random.IntN(5)) }
		var err error
		switch random.IntN(3) {
		case 0:
			err = unix.Mkdir(place(), 0o755)
		case 1:
			err = unix.Rmdir(place())
		default:
			err = unix.Rename(place(), place())
		}
		if err != nil && err != unix.EEXIST && err != unix.ENOENT && err != unix.ENOTEMPTY {
			t.Errorf("%v", err)
		}
	})
	for _, d := range []string{"a", "b"} {
		list, err := os.ReadDir(dir + "/" + d)
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Lstat(dir+"/"+d, &st))
		if int(st.Nlink) != 2+len(list) {
			t.Errorf("%s has %d links and %d subdirectories", d, st.Nlink, len(list))
		}
	}
}
