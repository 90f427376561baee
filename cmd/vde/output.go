package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
)

// printJSON prints a value for programs: indented, one value, a newline at the end.
func printJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// facts prints names and values for people, in two columns.
type facts struct{ w *tabwriter.Writer }

func newFacts(w io.Writer) facts { return facts{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)} }

func (f facts) add(name, format string, args ...any) {
	fmt.Fprintf(f.w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
}

func (f facts) flush() { f.w.Flush() }

// bytesText writes a number of bytes for people.
func bytesText(n uint64) string { return humanize.IBytes(n) }

// shareText writes part/whole as a percentage.
func shareText(part, whole uint64) string {
	if whole == 0 {
		return "0%"
	}
	return fmt.Sprintf("%.0f%%", 100*float64(part)/float64(whole))
}
