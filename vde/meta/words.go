package meta

import (
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
)

// Words makes an error of Pebble read as one line of plain words: without the marks that are for programs, and with the names of the
// files that it speaks of by number. It wraps err; nil stays nil.
func Words(err error) error {
	if err == nil {
		return nil
	}
	var said *worded
	if errors.As(err, &said) {
		return err
	}
	text := err.Error()
	switch {
	case errors.Is(err, pebble.ErrDBDoesNotExist):
		text = "the file marker.manifest.…, whose name says which list of tables counts, is missing"
	case errors.Is(err, pebble.ErrDBNotPristine):
		text = "the file marker.format-version.…, whose name says which version of the format the tables have, is missing"
	}
	for _, w := range wordings {
		text = w.pattern.ReplaceAllString(text, w.words)
	}
	// What several of its readers have met is said once.
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.Trim(line, "; \n"); line != "" && !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return &worded{err, strings.Join(lines, "; ")}
}

type worded struct {
	error
	text string
}

func (w *worded) Error() string { return w.text }
func (w *worded) Unwrap() error { return w.error }

// wordings are replaced in this order. What Pebble should word otherwise some day is passed on as it is.
var wordings = []struct {
	pattern *regexp.Regexp
	words   string
}{
	{regexp.MustCompile(`;? *<corruption detail carrier>`), ""},
	{regexp.MustCompile(`L\d+: (\d+): file \d+ \(type sstable\) unknown to the objstorage provider: file does not exist`), "table $1.sst is missing"},
	{regexp.MustCompile(`L\d+: (\d+): object size mismatch \([^)]*\): (\d+) \(disk\) != (\d+) \(MANIFEST\)`), "table $1.sst has $2 bytes, and should have $3"},
	{regexp.MustCompile(`pebble: backing file \d+ error: `), ""},
	{regexp.MustCompile(`pebble/table: invalid table (\d+): `), "table $1.sst: "},
	{regexp.MustCompile(`pebble: file (\d+): block `), "table $1.sst: block "},
	{regexp.MustCompile(`pebble: could not open manifest file "([^"]*)" for DB "[^"]*": .*`), "the list of tables $1 is missing"},
	{regexp.MustCompile(`pebble: malformed manifest file "([^"]*)" for DB "[^"]*"`), "the list of tables $1 cannot be read"},
}
