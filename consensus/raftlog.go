package consensus

import (
	"fmt"

	"github.com/sirupsen/logrus"
)

// raftLogger gives the engine's messages to the project's logger, one level lower:
// its elections are for who looks into one.
type raftLogger struct{ log logrus.FieldLogger }

func (l raftLogger) Debug(...any)                     {}
func (l raftLogger) Debugf(string, ...any)            {}
func (l raftLogger) Info(v ...any)                    { l.log.Debug(v...) }
func (l raftLogger) Infof(format string, v ...any)    { l.log.Debugf(format, v...) }
func (l raftLogger) Warning(v ...any)                 { l.log.Info(v...) }
func (l raftLogger) Warningf(format string, v ...any) { l.log.Infof(format, v...) }
func (l raftLogger) Error(v ...any)                   { l.log.Error(v...) }
func (l raftLogger) Errorf(format string, v ...any)   { l.log.Errorf(format, v...) }

// Fatal and Panic both panic: replica.guard turns that into an error.
func (l raftLogger) Fatal(v ...any)                 { panic(fmt.Sprint(v...)) }
func (l raftLogger) Fatalf(format string, v ...any) { panic(fmt.Sprintf(format, v...)) }
func (l raftLogger) Panic(v ...any)                 { panic(fmt.Sprint(v...)) }
func (l raftLogger) Panicf(format string, v ...any) { panic(fmt.Sprintf(format, v...)) }
