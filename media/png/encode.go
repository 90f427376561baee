package png

import (
	"cmp"
	"errors"
	"slices"
	"sync"

	kflate "github.com/klauspost/compress/flate"

	"vdefs/media/deflate"
)

// effort is what a level does for a picture of some size.
type effort struct {
	direct  []strategy // tried for samples of 8 or 16 bits
	indexed []strategy // tried for palettes and for less than 8 bits
	sample  int        // of a picture much larger than so many bytes, strategies are tried on about that much
	// first, where it is not 0, is how many bytes of a picture are enough to see which strategies are the best keep, which alone are
	// tried on the sample.
	first, keep int
	// hope is the percentage of the judge's size that deflating in earnest may
	// get to. A picture that would need less to become smaller stays: half of
	// the time went into those, for 1 to 4 % of what is saved.
	hope   int
	params deflate.Params
	// sketch and flat, where they are set, judge and deflate a picture that deflates to a small part, with hopeFlat for hope.
	sketch, flat deflate.Params
	hopeFlat     int
}

// flatShare is the part to which the judge deflates large pictures of wide plains, stripes and the like; flatSize is how many bytes they have at
// least.
const (
	flatShare = 16
	flatSize  = 1 << 20
)

// isFlat tells whether size bytes that deflate to score are such a picture.
func (eff *effort) isFlat(score, size int) bool {
	return eff.flat.Depth > 0 && score > 0 && score <= size/flatShare
}

var (
	fastEffort = effort{
		direct:  []strategy{strategyStored, strategyNone, strategySub},
		indexed: []strategy{strategyNone},
		sample:  256 << 10,
		hope:    88,
		params:  deflate.Swift,
	}
	defaultEffort = effort{
		direct:  []strategy{strategyStored, strategyNone, strategyBigrams},
		indexed: []strategy{strategyStored, strategyNone},
		sample:  192 << 10,
		hope:    80,
		params:  deflate.Quick,
	}
	bestEffort = effort{
		direct: []strategy{strategyStored, strategyNone, strategySub, strategyUp, strategyAverage, strategyPaeth,
			strategyEntropy, strategyBigrams},
		indexed: []strategy{strategyStored, strategyNone, strategySub, strategyUp, strategyPaeth, strategyBigrams},
		sample:  512 << 10,
		first:   192 << 10,
		keep:    3,
		hope:    55,
		params:  deflate.Normal,

		sketch:   deflate.Sketch,
		flat:     deflate.Flat,
		hopeFlat: 75,
	}
	// Small pictures cost little whatever is done with them.
	bestSmallEffort = effort{
		direct: []strategy{strategyStored, strategyNone, strategySub, strategyUp, strategyAverage, strategyPaeth,
			strategyMinSum, strategyEntropy, strategyBigrams},
		indexed: []strategy{strategyStored, strategyNone, strategySub, strategyUp, strategyPaeth, strategyMinSum, strategyBigrams},
		params:  deflate.Thorough,
	}
)

// smallPicture is up to how many bytes of filtered rows a picture is small.
const smallPicture = 256 << 10

func effortFor(l Level, size int) effort {
	switch {
	case l == Fast:
		return fastEffort
	case l == Default:
		return defaultEffort
	case size <= smallPicture:
		return bestSmallEffort
	case size < flatSize:
		e := bestEffort
		e.flat = deflate.Params{}
		return e
	}
	return bestEffort
}

// judgeLevel is the level of the fast encoder that compares strategies.
const judgeLevel = 5

// encoder is scratch memory for one call at a time.
type encoder struct {
	fl      filterer
	deflate deflate.Encoder
	judge   *kflate.Writer
	counted counter
	sketch  []byte
}

// counter is a writer that counts.
type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

var encoders = sync.Pool{New: func() any { return new(encoder) }}

// candidate is a form of the picture and a way to filter it.
type candidate struct {
	ra *raster
	s  strategy
	// filters is what s does with the rows of the whole picture; it is not set
	// while only the sample has been judged.
	filters *rowFilters
	score   int // bytes that the file has beyond what all candidates share, as judged
}

// encode gives the smallest file it finds, or a refusal when none has less
// than limit bytes.
func encode(f *file, ra *raster, o Options, b *budget, limit int, r *Report) ([]byte, error) {
	e := encoders.Get().(*encoder)
	defer encoders.Put(e)
	forms := []*raster{ra}
	if o.Reductions {
		forms = reductions(f, ra)
	}
	if !slices.Contains(forms, ra) {
		ra.pix = nil // the picture is held in another form now
	}
	size := 0
	for _, form := range forms {
		size = max(size, form.filteredSize())
	}
	eff := effortFor(o.Level, size)
	buf := make([]byte, size)
	list, err := e.rank(forms, eff, buf, b)
	if err != nil {
		return nil, err
	}
	t := newTranslator(f)
	params, hope := eff.params, eff.hope
	// One candidate alone has not been judged: its score is 0.
	if eff.isFlat(list[0].score, list[0].ra.filteredSize()) {
		params, hope = eff.flat, eff.hopeFlat
	}
	if hoped := int64(list[0].score) * int64(hope) / 100; hoped > int64(limit) {
		return nil, refuse(ReasonNotSmaller, "filter strategy %v is judged to need %d bytes, the file has %d", list[0].s, list[0].score, limit)
	}
	win := list[0]
	data, err := e.filtered(buf, &win, b)
	if err != nil {
		return nil, err
	}
	overhead := assembledSize(f, win.ra, t)
	out, err := e.zlib(data, o.Level, params, limit-1-overhead, b)
	if errors.Is(err, deflate.ErrTooLong) {
		return nil, refuse(ReasonNotSmaller, "no form with less than its %d bytes was found", limit)
	}
	if err != nil {
		return nil, err
	}
	r.Filter = win.s.String()
	return assemble(f, win.ra, t, out), nil
}

// filtered gives the filtered picture of a candidate, in buf.
func (e *encoder) filtered(buf []byte, c *candidate, b *budget) ([]byte, error) {
	if c.filters == nil {
		all, err := e.fl.choices(c.ra, []strategy{c.s}, b)
		if err != nil {
			return nil, err
		}
		c.filters = &all[0]
	}
	return e.fl.apply(buf, c.ra, *c.filters, b)
}

// paletteBytes is what PLTE and tRNS take in the file.
func (ra *raster) paletteBytes() int {
	n := 0
	for _, data := range [][]byte{ra.plte, ra.trns} {
		if data != nil {
			n += chunkOverhead + len(data)
		}
	}
	return n
}

// rank judges every strategy on the sample of every form, the best first.
func (e *encoder) rank(forms []*raster, eff effort, buf []byte, b *budget) ([]candidate, error) {
	var list []candidate
	for _, form := range forms {
		strategies := eff.direct
		if form.hdr.ctype == indexed || form.hdr.depth < 8 {
			strategies = eff.indexed
		}
		if len(form.stored) == 0 {
			strategies = without(strategies, strategyStored)
		}
		if form.narrow() {
			strategies = slices.DeleteFunc(slices.Clone(strategies), func(s strategy) bool { return s >= strategyMinSum })
		}
		if form.table != nil && form.hdr.depth == 8 {
			// Without differences the order of a palette is nearly the same to deflate, and bigrams hardly sees it.
			strategies = without(without(strategies, strategyNone), strategyBigrams)
		}
		for _, s := range strategies {
			list = append(list, candidate{ra: form, s: s})
		}
	}
	if len(list) == 1 {
		return list, nil
	}
	if eff.first > 0 && len(list) > eff.keep && len(buf) > 2*eff.first {
		if err := e.judgeAll(list, forms, eff, eff.first, buf, b); err != nil {
			return nil, err
		}
		list = list[:eff.keep]
	}
	if err := e.judgeAll(list, forms, eff, eff.sample, buf, b); err != nil {
		return nil, err
	}
	return list, nil
}

// judgeAll judges candidates on about size bytes of the picture, or all of it where size is 0, and puts the best first.
func (e *encoder) judgeAll(list []candidate, forms []*raster, eff effort, size int, buf []byte, b *budget) error {
	for _, form := range forms {
		var strategies []strategy
		for i := range list {
			if list[i].ra == form {
				strategies = append(strategies, list[i].s)
			}
		}
		if len(strategies) == 0 {
			continue
		}
		sample := form.sample(size)
		all, err := e.fl.choices(sample, strategies, b)
		if err != nil {
			return err
		}
		for i := range list {
			c := &list[i]
			if c.ra != form {
				continue
			}
			filters := all[0]
			all = all[1:]
			if sample == form {
				c.filters = &filters
			}
			data, err := e.fl.apply(buf, sample, filters, b)
			if err != nil {
				return err
			}
			if c.score, err = e.measure(data, eff, b); err != nil {
				return err
			}
			// As if the rest of the picture were like the sample.
			c.score = int(int64(c.score)*int64(len(form.pix))/int64(len(sample.pix))) + form.paletteBytes()
		}
	}
	slices.SortStableFunc(list, func(a, b candidate) int { return cmp.Compare(a.score, b.score) })
	return nil
}

// without gives the others, in a list of their own.
func without(list []strategy, s strategy) []strategy {
	return slices.DeleteFunc(slices.Clone(list), func(o strategy) bool { return o == s })
}

// measure gives the deflated size of data with the fast encoder, or, where that is a small part, with one that sees what repeats far back.
func (e *encoder) measure(data []byte, eff effort, b *budget) (int, error) {
	score, err := e.judged(data, b)
	if err != nil || !eff.isFlat(score, len(data)) {
		return score, err
	}
	e.sketch, err = e.deflate.Append(e.sketch[:0], data, eff.sketch, len(data)+1<<16, b.check)
	return len(e.sketch), err
}

// judged gives the deflated size of data with the fast encoder. That one stores what has no matches, however much codes alone would
// save: of what it saves little on, the judgement is what codes take, if that is less.
func (e *encoder) judged(data []byte, b *budget) (int, error) {
	e.counted = 0
	all, size := data, len(data)
	if e.judge == nil {
		w, err := kflate.NewWriter(&e.counted, judgeLevel)
		if err != nil {
			return 0, err
		}
		e.judge = w
	} else {
		e.judge.Reset(&e.counted)
	}
	for len(data) > 0 {
		part := data[:min(len(data), 1<<18)]
		data = data[len(part):]
		if _, err := e.judge.Write(part); err != nil {
			return 0, err
		}
		if err := b.spend(len(part)); err != nil {
			return 0, err
		}
	}
	if err := e.judge.Close(); err != nil {
		return 0, err
	}
	score := int(e.counted)
	if score >= size-size/8 {
		score = min(score, e.fl.literals(all))
	}
	return score, nil
}
