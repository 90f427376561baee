package posix

import (
	"slices"
	"syscall"

	"vdefs/fs/command"
	"vdefs/vde/meta"
)

// A file whose contents are replaced by themselves (not by a program's writes) must not be open meanwhile: who has it open
// would read a mixture. With one mount the mount knows; with several, all have to agree:
//
//	freeze ino8    session8 waiting8 ...   who replaces it, and whose answer is waited for
const factFreeze = "freeze"

func freezeFact(ino meta.Ino) string { return numbered(factFreeze, uint64(ino)) }

func (a *applier) freeze(c *command.Freeze) error {
	in, err := a.regular(c.Ino)
	if err != nil {
		return err
	}
	if in.Version != c.Version {
		return syscall.EAGAIN
	}
	frozen, err := a.numbers(freezeFact(c.Ino), 1)
	if err != nil {
		return err
	}
	if len(frozen) > 0 {
		return syscall.EBUSY
	}
	sessions, err := a.numbers(factSessions, 2)
	if err != nil {
		return err
	}
	list := []uint64{c.Session}
	for i := 0; i < len(sessions); i += 2 {
		if sessions[i] != c.Session {
			list = append(list, sessions[i])
		}
	}
	a.setNumbers(freezeFact(c.Ino), list)
	return nil
}

func (a *applier) freezeVote(c *command.FreezeVote) error {
	frozen, err := a.numbers(freezeFact(c.Ino), 1)
	if err != nil || len(frozen) == 0 {
		return err
	}
	if !c.Ready {
		a.DeleteFact(freezeFact(c.Ino))
		return nil
	}
	waiting := slices.DeleteFunc(frozen[1:], func(s uint64) bool { return s == c.Session })
	a.setNumbers(freezeFact(c.Ino), append(frozen[:1:1], waiting...))
	return nil
}

func (a *applier) unfreeze(c *command.Unfreeze) error {
	frozen, err := a.numbers(freezeFact(c.Ino), 1)
	if err == nil && len(frozen) > 0 && frozen[0] == c.Session {
		a.DeleteFact(freezeFact(c.Ino))
	}
	return err
}

// thaw ends what a session that comes or goes has to do with: a new one was not asked, one that has ended does not answer.
func (a *applier) thaw(ended uint64) error {
	var names []string
	if err := a.Facts(factFreeze, func(name string, _ []byte) (bool, error) { names = append(names, name); return true, nil }); err != nil {
		return err
	}
	for _, name := range names {
		frozen, err := a.numbers(name, 1)
		if err != nil {
			return err
		}
		if ended == 0 || len(frozen) == 0 || frozen[0] == ended {
			a.DeleteFact(name)
			continue
		}
		a.setNumbers(name, slices.DeleteFunc(frozen, func(s uint64) bool { return s == ended }))
	}
	return nil
}

// mayReplace tells whether the session of the command may replace a file: it is the only one, or all others keep it closed.
func (a *applier) mayReplace(ino meta.Ino) (bool, error) {
	sessions, err := a.numbers(factSessions, 2)
	if err != nil || len(sessions) == 0 || len(sessions) == 2 && sessions[0] == a.tag.Session {
		return err == nil, err
	}
	frozen, err := a.numbers(freezeFact(ino), 1)
	return len(frozen) == 1 && frozen[0] == a.tag.Session, err
}

// Frozen tells who replaces a file (0: nobody) and whether all others keep it closed.
func Frozen(r FactReader, ino meta.Ino) (session uint64, ready bool, err error) {
	b, err := r.Get(freezeFact(ino))
	n := decodeNumbers(b)
	if err != nil || len(n) == 0 {
		return 0, false, err
	}
	return n[0], len(n) == 1, nil
}
