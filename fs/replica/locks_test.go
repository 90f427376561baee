package replica

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/fs/advisory"
	"vdefs/fs/command"
	"vdefs/vde/meta"
)

// A lock that could not be given back, as no majority answered, is given back when one does: nobody comes back for it. So is one that the
// caller was told it did not get, and that it got all the same.
func TestLocksAreGivenBackLater(t *testing.T) {
	c := newTestCluster(t, 3, time.Minute) // sessions do not end by themselves here
	ctx := context.Background()
	lock := func(owner uint64) advisory.Lock {
		return advisory.Lock{End: 1<<63 - 1, Owner: advisory.Owner{ID: owner}, Handle: owner, Exclusive: true}
	}
	ino := meta.Ino(meta.RootIno)
	two := c.v(2)
	take := func(v *Volume, owner uint64) error {
		return v.TakeLock(ctx, nil, ino, advisory.Flock, lock(owner), false)
	}
	if err := take(two, 7); err != nil {
		t.Fatal(err)
	}
	two.node.timeout = time.Second
	c.down(1)
	c.down(3)
	if err := two.UnlockHandle(ctx, ino, 7); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if err := two.TakeLock(ctx, nil, ino+1, advisory.Flock, lock(8), false); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	two.ForgetLock(ino+1, advisory.Flock, lock(8))
	two.node.timeout = 20 * time.Second
	up := make(chan error, 2)
	for _, id := range []uint64{1, 3} {
		go func() { up <- c.open(id) }()
	}
	for range 2 {
		if err := <-up; err != nil {
			t.Fatal(err)
		}
	}
	c.eventually("the lock", func() error { return take(c.v(1), 9) })
	// What is owed does not take away what the same owner has taken since.
	if err := c.v(1).UnlockHandle(ctx, ino, 9); err != nil {
		t.Fatal(err)
	}
	two.ForgetLock(ino, advisory.Flock, lock(7))
	if err := take(two, 7); err != nil {
		t.Fatal(err)
	}
	c.eventually("nothing owed", func() error {
		if two.node.locks.firstOwed(ino) != nil || two.node.locks.firstOwed(ino+1) != nil {
			return errors.New("something is owed")
		}
		return nil
	})
	if err := take(c.v(1), 9); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("a lock that was taken after another one was forgotten: %v", err)
	}
}

// A mount that was away for so long that its session ended has lost its locks, and others may have had them since. Who still believes that it has one does
// not get to write: it is told at once, or at fsync, until it gives the lock back.
func TestNothingIsWrittenUnderALostLock(t *testing.T) {
	c := newTestCluster(t, 3, time.Minute)
	ctx := context.Background()
	one, two := c.v(1), c.v(2)
	lock := func(owner uint64) advisory.Lock {
		return advisory.Lock{End: 1<<63 - 1, Owner: advisory.Owner{ID: owner}, Handle: owner, Exclusive: true}
	}
	file, err := one.Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: "file", Mode: unix.S_IFREG | 0o644})
	if err != nil {
		t.Fatal(err)
	}
	other, err := one.Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: "other", Mode: unix.S_IFREG | 0o644})
	if err != nil {
		t.Fatal(err)
	}
	write := func(v *Volume, ino meta.Ino, how fs.WriteFlags) error {
		_, err := v.Write(ctx, ino, 0, []byte("new"), how)
		return err
	}
	if err := two.TakeLock(ctx, nil, file.Ino, advisory.Flock, lock(1), false); err != nil {
		t.Fatal(err)
	}
	if err := write(two, file.Ino, 0); err != nil {
		t.Fatal(err)
	}
	ended := two.node.session.Load().id
	if _, err := one.proposeTagged(ctx, one.first(), &command.EndSession{Session: ended}, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := one.TakeLock(ctx, nil, file.Ino, advisory.Flock, lock(2), false); err != nil {
		t.Fatal(err)
	}
	if err := write(one, file.Ino, 0); err != nil {
		t.Error(err)
	}
	if err := write(two, file.Ino, 0); !errors.Is(err, errLocksLost) || !errors.Is(err, syscall.EIO) {
		t.Errorf("a write under a lock that was lost: %v", err)
	}
	// Behind, it is told by who waits for it.
	if err := write(two, file.Ino, fs.WriteBehind); err == nil {
		err = two.Settle(ctx, file.Ino)
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("a write behind under a lock that was lost: %v", err)
		}
	}
	if err := write(two, other.Ino, 0); err != nil {
		t.Errorf("a write to another file: %v", err)
	}
	if err := two.UnlockHandle(ctx, file.Ino, 1); err != nil {
		t.Error(err)
	}
	if err := write(two, file.Ino, 0); err != nil {
		t.Errorf("a write after the lock was given back: %v", err)
	}
	// What was lost is not in anybody's way, and can be had again.
	if err := one.UnlockHandle(ctx, file.Ino, 2); err != nil {
		t.Error(err)
	}
	if err := two.TakeLock(ctx, nil, file.Ino, advisory.Flock, lock(1), false); err != nil {
		t.Error(err)
	}
	if err := write(two, file.Ino, 0); err != nil {
		t.Error(err)
	}
}

// A lock is asked for again when the answer does not come, as its leader was lost. The second copy answers what the first one did: a refusal, too.
func TestLockThatIsAskedForTwice(t *testing.T) {
	c := newTestCluster(t, 3, time.Minute)
	ctx := context.Background()
	two := c.v(2)
	ask := func(v *Volume, seq, owner uint64, exclusive bool) bool {
		t.Helper()
		l := advisory.Lock{End: 1<<63 - 1, Owner: advisory.Owner{ID: owner}, Handle: owner, Exclusive: exclusive}
		tag := command.Tag{Session: v.node.session.Load().id, Seq: 1<<40 + seq, Retry: true}
		res, err := v.proposeTagged(ctx, v.first(), v.node.lockCommand(meta.RootIno, command.LockTake, advisory.Flock, l), &tag, nil)
		if err != nil {
			t.Fatal(err)
		}
		return !res.Refused
	}
	for _, step := range []struct {
		v          *Volume
		seq, owner uint64
		exclusive  bool
		want       bool
	}{
		{c.v(1), 1, 1, false, true}, {c.v(1), 1, 1, false, true}, // shared
		{two, 1, 2, true, false}, {two, 1, 2, true, false},
		{two, 2, 2, false, true}, {two, 2, 2, false, true},
		{two, 3, 2, true, false}, {two, 3, 2, true, false}, // refused, and what it had is given back
		{c.v(1), 2, 1, true, true}, {c.v(1), 2, 1, true, true},
	} {
		if got := ask(step.v, step.seq, step.owner, step.exclusive); got != step.want {
			t.Errorf("%+v: given %v", step, got)
		}
	}
}
