package store

import (
	"io/fs"
	"path/filepath"
	"sync/atomic"
	"syscall"
)

// Stats is what there is to tell about the contents of a layer.
type Stats struct {
	Chunks  int // of the layer
	Present int // of these, here and verified

	// Bytes of the blob, without its TOC, that the chunks take, and that the
	// present ones do. Those of chunks that share a member count with the last.
	Size, Here int64

	// Since the layer was opened: bytes asked of the registry, bytes of files
	// copied from other layers, chunks that were not what they should be, and
	// reads that found their contents or had to wait.
	Fetched, Copied int64
	Corrupt         int64
	Hits, Misses    int64

	Failure error // of the last chunk that could not be fetched, nil if there was none
}

// counters are a layer's Stats as they change.
type counters struct {
	chunks                atomic.Int64
	here                  atomic.Int64
	fetched, copied       atomic.Int64
	corrupt, hits, misses atomic.Int64
	size                  int64
	failure               atomic.Pointer[error]
}

// count counts what is here when the layer is opened.
func (l *Layer) count() {
	for c := range l.index.Chunks {
		l.size += l.weight(c)
		if l.present.has(c) {
			l.chunks.Add(1)
			l.here.Add(l.weight(c))
		}
	}
}

// weight is what a chunk counts for of the blob.
func (l *Layer) weight(c uint32) int64 {
	k := l.index.chunk(c)
	if c+1 < l.index.Chunks && l.index.chunk(c+1).Offset == k.Offset {
		return 0
	}
	return min(int64(k.Length), l.index.Payload-k.Offset)
}

// mark records that a chunk is here and verified.
func (l *Layer) mark(c uint32) error {
	return l.present.mark(c, func() {
		l.chunks.Add(1)
		l.here.Add(l.weight(c))
	})
}

// Complete tells whether all chunks are here.
func (l *Layer) Complete() bool { return l.chunks.Load() == int64(l.index.Chunks) }

// Stats returns what there is to tell right now.
func (l *Layer) Stats() Stats {
	s := Stats{
		Chunks:  int(l.index.Chunks),
		Present: int(l.chunks.Load()),
		Size:    l.size,
		Here:    l.here.Load(),
		Fetched: l.fetched.Load(),
		Copied:  l.copied.Load(),
		Corrupt: l.corrupt.Load(),
		Hits:    l.hits.Load(),
		Misses:  l.misses.Load(),
	}
	if err := l.failure.Load(); err != nil {
		s.Failure = *err
	}
	return s
}

// Disk returns how many bytes the layer takes, as du counts them. It looks at all
// its files.
func (l *Layer) Disk() int64 { return diskUsage(l.dir) }

// diskUsage adds up the blocks below a directory, of what is there at all.
func diskUsage(dir string) int64 {
	var sum int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := d.Info(); err == nil {
			const block = 512 // bytes, whatever the file system has
			sum += info.Sys().(*syscall.Stat_t).Blocks * block
		}
		return nil
	})
	return sum
}
