package alloc

import "math/bits"

// pageSet is a set of pages of the bitmap: one bit per page, up to the highest member, or all pages there are.
type pageSet struct {
	words []uint64
	all   bool
}

// add adds the pages that speak of e.
func (s *pageSet) add(e Extent) {
	if s.all || e.Count == 0 {
		return
	}
	for page := e.Start / BlocksPerPage; page <= (e.End()-1)/BlocksPerPage; page++ {
		word := page / 64
		if word >= uint64(len(s.words)) {
			s.words = append(s.words, make([]uint64, word+1-uint64(len(s.words)))...)
		}
		s.words[word] |= 1 << (page % 64)
	}
}

func (s *pageSet) addAll() { *s = pageSet{all: true} }

// union adds all of t.
func (s *pageSet) union(t pageSet) {
	if s.all || t.all {
		s.addAll()
		return
	}
	if len(s.words) < len(t.words) {
		s.words = append(s.words, make([]uint64, len(t.words)-len(s.words))...)
	}
	for i, word := range t.words {
		s.words[i] |= word
	}
}

// each calls visit for every member below limit in rising order, until it fails.
func (s *pageSet) each(limit uint64, visit func(page uint64) error) error {
	if s.all {
		for page := range limit {
			if err := visit(page); err != nil {
				return err
			}
		}
		return nil
	}
	for i, word := range s.words {
		for ; word != 0; word &= word - 1 {
			if err := visit(uint64(i)*64 + uint64(bits.TrailingZeros64(word))); err != nil {
				return err
			}
		}
	}
	return nil
}
