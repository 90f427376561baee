package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
)

func TestToErrno(t *testing.T) {
	_, notThere := os.Open("/nowhere/at/all")
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{syscall.ENOSPC, syscall.ENOSPC},
		{fmt.Errorf("write inode 7: %w", syscall.ENOSPC), syscall.ENOSPC},
		{fmt.Errorf("bad block: %w", errors.Join(errors.New("checksum"), syscall.EIO)), syscall.EIO},
		{notThere, syscall.ENOENT},
		{fmt.Errorf("propose: %w", context.Canceled), syscall.EINTR},
		{context.DeadlineExceeded, syscall.ETIMEDOUT},
		{errors.New("anything"), syscall.EIO},
		// What would mean something else to the kernel.
		{syscall.ENOSYS, syscall.EOPNOTSUPP},
		{fmt.Errorf("none: %w", syscall.Errno(0)), syscall.EIO},
	} {
		if got := ToErrno(c.err); got != c.want {
			t.Errorf("%v: got %v, want %v", c.err, got, c.want)
		}
	}
}
