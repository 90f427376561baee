// Package images keeps a store of every format version, which every later program must open, and holds the examples of
// docs/formats.md. Stores are packed as <version>-<how it was left>.tar.gz: closed, or crashed (the log holds all that was
// done, the metadata nothing of it).
//
// A new format version gets new archives (go test ./test/images -make); those of older versions are never made anew.
package images
