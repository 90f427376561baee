package vde

import (
	"bytes"
	"cmp"
	"slices"
	"strings"

	"vdefs/vde/meta"
)

// Facts are small things that a group's log keeps and the engine does not understand: names and values of the layer
// above, replicated and restored with the group. Unlike entries of directories, a transaction sees its own changes of
// them.

// factChange is a fact that a transaction has set or deleted.
type factChange struct {
	name    string
	value   []byte
	deleted bool
}

func (tx *Tx) factIndex(name string) (int, bool) {
	return slices.BinarySearchFunc(tx.facts, name, func(f factChange, name string) int { return cmp.Compare(f.name, name) })
}

// Fact reads a fact of the transaction's group, its own changes included; meta.ErrNotFound if there is none. The caller
// owns the value.
func (tx *Tx) Fact(name string) ([]byte, error) {
	if i, ok := tx.factIndex(name); ok {
		if tx.facts[i].deleted {
			return nil, meta.ErrNotFound
		}
		return bytes.Clone(tx.facts[i].value), nil
	}
	return tx.e.meta.GroupFact(tx.slot, name)
}

// SetFact stores a fact: a name of 1 to meta.MaxFactName bytes and a value of at most meta.MaxFactValue. Others are an
// error and change nothing. The value stays the caller's.
func (tx *Tx) SetFact(name string, value []byte) error {
	if err := meta.CheckFact(name, value); err != nil {
		return err
	}
	tx.batch.SetGroupFact(tx.slot, name, value)
	tx.noteFact(factChange{name: name, value: append([]byte{}, value...)})
	return nil
}

// DeleteFact removes a fact, if it is there.
func (tx *Tx) DeleteFact(name string) {
	tx.batch.DeleteGroupFact(tx.slot, name)
	tx.noteFact(factChange{name: name, deleted: true})
}

func (tx *Tx) noteFact(f factChange) {
	if i, ok := tx.factIndex(f.name); ok {
		tx.facts[i] = f
	} else {
		tx.facts = slices.Insert(tx.facts, i, f)
	}
}

// Facts yields the facts whose names begin with prefix, by name in byte order, the transaction's own changes included,
// until yield returns false. The value is valid during the call only; yield must not change facts.
func (tx *Tx) Facts(prefix string, yield func(name string, value []byte) (bool, error)) error {
	own, _ := tx.factIndex(prefix) // the next change that may be told
	more := true
	// tell yields the changes before name (all: the rest), and tells whether one of name itself replaces it.
	tell := func(name string, all bool) (replaced bool, err error) {
		for more && own < len(tx.facts) && strings.HasPrefix(tx.facts[own].name, prefix) && (all || tx.facts[own].name <= name) {
			f := tx.facts[own]
			own++
			replaced = replaced || !all && f.name == name
			if f.deleted {
				continue
			}
			if more, err = yield(f.name, f.value); err != nil {
				return replaced, err
			}
		}
		return replaced, nil
	}
	err := tx.e.meta.GroupFacts(tx.slot, prefix, func(name string, value []byte) (bool, error) {
		replaced, err := tell(name, false)
		if err == nil && more && !replaced {
			more, err = yield(name, value)
		}
		return more, err
	})
	if err == nil {
		_, err = tell("", true)
	}
	return err
}
