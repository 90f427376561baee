// Package deflate writes DEFLATE streams (RFC 1951) that are smaller than
// those of a greedy or lazy encoder, at the price of time.
//
// The input is cut into chunks. For every position of a chunk the matches are
// looked up once, in binary trees or chains over the window (match.go), and kept;
// inside of a long match only what is left of it is. Then
// the cheapest sequence of literals and matches is searched backwards from
// the end of the chunk, under a cost model of bits per symbol; the
// statistics of that sequence give the next cost model, and so on (parse.go,
// cost.go). The first model is that of a lazy sequence in which literals count
// for more than they come up. Between the first search and the others the chunk is split into
// blocks by joining neighbouring pieces as long as a common code is cheaper
// (block.go). Every block is written in whichever of the three forms is the
// shortest (huffman.go, write.go).
//
// The output depends on the input and the parameters only: all costs are
// integers, and an Encoder carries nothing from one call to the next.
package deflate
