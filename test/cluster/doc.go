// Package cluster holds tests that make several nodes, each in a network namespace of its own, suffer: their daemons are killed
// and stopped, their network is cut in both directions or one, while programs on all mounts go on. What was acknowledged must
// be there at the end, once, and what programs saw must be linearizable.
package cluster
