package png

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Reencode gives the bytes of a smaller PNG with the same picture and the
// same chunks. out is nil when the original has to stay; the report says
// why. in is only read; out shares no memory with it.
//
// A file that is damaged, too large or strange is not an error. err is not nil
// only when the options are wrong or ctx is done, and then out is nil.
func Reencode(ctx context.Context, in []byte, o Options) (out []byte, r Report, err error) {
	start := time.Now()
	r = Report{Kept: true, InBytes: int64(len(in)), OutBytes: int64(len(in)), Level: o.Level, Version: Version}
	if err := o.validate(); err != nil {
		return nil, r, err
	}
	b := &budget{ctx: ctx}
	if o.Timeout > 0 {
		b.deadline = start.Add(o.Timeout)
	}
	out, err = reencode(in, o, b, &r)
	r.Elapsed = time.Since(start)
	var ref *refusal
	switch {
	case errors.As(err, &ref):
		r.Reason, r.Detail = ref.reason, ref.detail
		r.After, r.Filter = r.Before, ""
		return nil, r, nil
	case err != nil:
		r.After, r.Filter = r.Before, ""
		return nil, r, fmt.Errorf("png: re-encode %d bytes: %w", len(in), err)
	}
	r.Kept, r.OutBytes = false, int64(len(out))
	return out, r, nil
}

// reencode fills in what the report says of the picture. Its error is a
// *refusal, or what the context said.
func reencode(in []byte, o Options, b *budget, r *Report) ([]byte, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	if limit := min(o.MaxBytes, hardMax); int64(len(in)) > limit {
		return nil, refuse(ReasonTooLarge, "%d bytes are more than the limit of %d", len(in), limit)
	}
	f, ref := parse(in)
	if f != nil {
		r.Width, r.Height, r.Interlaced = f.hdr.width, f.hdr.height, f.hdr.interlaced
		r.Before = f.format()
		r.After = r.Before
	}
	if ref != nil {
		return nil, ref
	}
	if int64(f.hdr.height) > o.MaxPixels/int64(f.hdr.width) {
		return nil, refuse(ReasonTooLarge, "%d x %d pixels are more than the limit of %d", f.hdr.width, f.hdr.height, o.MaxPixels)
	}
	if limit := min(o.MaxRaw, hardMax); f.hdr.rawSize(limit) > limit {
		return nil, refuse(ReasonTooLarge, "%d x %d pixels of %d bits are more than the limit of %d bytes",
			f.hdr.width, f.hdr.height, f.hdr.bitsPerPixel(), limit)
	}
	if l, ok := markOf(f); ok && l >= o.Level && !o.Force {
		return nil, refuse(ReasonAlreadyDone, "it was re-encoded at level %v", l)
	}
	ra, err := decode(f, b)
	if err != nil {
		return nil, err
	}
	out, err := encode(f, ra, o, b, len(in), r)
	if err != nil {
		return nil, err
	}
	g, ref := parse(out)
	if ref != nil {
		return nil, refuse(ReasonVerify, "%v", ref)
	}
	if err := verify(f, g, b); err != nil {
		if stopped := b.check(); stopped != nil {
			return nil, stopped
		}
		return nil, refuse(ReasonVerify, "%v", err)
	}
	r.After = g.format()
	return out, nil
}
