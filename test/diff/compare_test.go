package diff

import (
	"fmt"
	"strings"
)

// difference is the first answer in which two runs of a sequence differ.
type difference struct {
	at    int // index of the call
	lines []string
}

// compare finds the first difference that is not a known one. It counts the known ones it meets.
func compare(ops []*op, reference, tested []answer, env environment, count map[string]int) *difference {
	for i, o := range ops {
		if lines := differing(o, reference[i], tested[i], env, count); len(lines) > 0 {
			return &difference{i, lines}
		}
	}
	return nil
}

// differing lists the lines of two answers that differ.
func differing(o *op, reference, tested answer, env environment, count map[string]int) (lines []string) {
	for i, k := 0, 0; i < len(reference) || k < len(tested); {
		switch {
		case i < len(reference) && k < len(tested) && reference[i] == tested[k]:
			i, k = i+1, k+1
			continue
		case i < len(reference) && k < len(tested) && (len(reference) == len(tested) || topic(reference[i]) == topic(tested[k])):
			if name := explained(o, reference[i], tested[k], env); name != "" {
				count[name]++
			} else {
				lines = append(lines, "reference: "+reference[i], "tested:    "+tested[k])
			}
			i, k = i+1, k+1
			continue
		}
		// One has a line that the other has not: take the one whose line comes later in the other, if any does.
		if i < len(reference) && (k >= len(tested) || !contains(tested[k:], reference[i])) {
			lines = append(lines, "only in the reference: "+reference[i])
			i++
		} else {
			lines = append(lines, "only in what is tested: "+tested[k])
			k++
		}
	}
	return lines
}

func contains(lines []string, line string) bool {
	for _, l := range lines {
		if l == line {
			return true
		}
	}
	return false
}

// topic is the part of a line that says what it is about: the path and the first word.
func topic(line string) string {
	head, rest, ok := strings.Cut(line, `": `)
	if !ok {
		return ""
	}
	word, _, _ := strings.Cut(rest, " ")
	if word == "page" || word == "xattr" {
		word, _, _ = strings.Cut(rest, ":")
		word, _, _ = strings.Cut(word, " =")
	}
	return head + word
}

// maxLines is how many lines of a difference are printed.
const maxLines = 16

// show prints a sequence as a program, with what it answered.
func show(ops []*op, reference []answer, d *difference) string {
	var b strings.Builder
	for i, o := range ops {
		fmt.Fprintf(&b, "%4d  %s", i, o)
		if i < len(reference) && len(reference[i]) > 0 && o.call.name != "tree" {
			fmt.Fprintf(&b, " = %s", reference[i][0])
		}
		b.WriteByte('\n')
		if d != nil && i == d.at {
			for i, line := range d.lines {
				if i == maxLines {
					fmt.Fprintf(&b, "      and %d lines more\n", len(d.lines)-i)
					break
				}
				fmt.Fprintf(&b, "      %s\n", line)
			}
			break
		}
	}
	return strings.ReplaceAll(b.String(), longName, "<255 n>")
}

// shrink looks for a short part of a sequence that still differs: it leaves out parts, of half the sequence first and of
// single calls at last (delta debugging). differs runs a sequence on fresh directories.
func shrink(ops []*op, differs func([]*op) bool, more func() bool) []*op {
	for size := len(ops) / 2; size > 0 && more(); {
		shorter := false
		for from := 0; from < len(ops) && more(); {
			to := min(from+size, len(ops))
			rest := append(append([]*op(nil), ops[:from]...), ops[to:]...)
			if len(rest) > 0 && differs(rest) {
				ops, shorter = rest, true
				continue
			}
			from = to
		}
		if !shorter || size > 1 {
			size /= 2
		}
	}
	return ops
}
