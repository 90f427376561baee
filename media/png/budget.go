package png

import (
	"context"
	"time"
)

// budget ends work whose context is done or whose time is over. It does not
// change results: whoever gets its error gives the whole result up.
type budget struct {
	ctx      context.Context
	deadline time.Time // zero: none
	spent    int       // bytes since the last look at the clock
}

// spend is called with the amount of work done, in bytes, and looks at the
// clock from time to time.
func (b *budget) spend(n int) error {
	if b.spent += n; b.spent < 1<<20 {
		return nil
	}
	return b.check()
}

func (b *budget) check() error {
	b.spent = 0
	if err := b.ctx.Err(); err != nil {
		return err
	}
	if !b.deadline.IsZero() && time.Now().After(b.deadline) {
		return refuse(ReasonTimeout, "it took longer than the time allowed")
	}
	return nil
}
