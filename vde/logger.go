package vde

import "github.com/sirupsen/logrus"

// pebbleLogger passes on what the metadata store says: its routine at debug level.
type pebbleLogger struct{ log logrus.FieldLogger }

func (l pebbleLogger) Infof(format string, args ...any)  { l.log.Debugf("metadata: "+format, args...) }
func (l pebbleLogger) Errorf(format string, args ...any) { l.log.Warnf("metadata: "+format, args...) }

// Fatalf is called where Pebble finds its own state broken, with its locks held: it ends the process, since returning
// would let Pebble continue. A disk that fails does not come here, see meta's gateFS.
func (l pebbleLogger) Fatalf(format string, args ...any) { l.log.Fatalf("metadata: "+format, args...) }

// quietLogger is for the short life of a store in Format.
type quietLogger struct{}

func (quietLogger) Infof(string, ...any)  {}
func (quietLogger) Errorf(string, ...any) {}
func (quietLogger) Fatalf(format string, args ...any) {
	logrus.StandardLogger().Fatalf("metadata: "+format, args...)
}
