// Package estargz reads and writes eStargz: a gzip-compressed tar with one
// gzip member for each file or chunk, a table of contents (TOC) as its last
// tar entry and a footer that says where the TOC starts. A runtime that knows
// the format mounts such a layer and fetches the chunks that are read; every
// other one sees an ordinary gzip layer.
//
// The package knows bytes only, nothing of images, registries or snapshots.
// The compression type of the build daemon writes with it, the lazy worker
// reads with it.
package estargz
