package store

import (
	"fmt"
	"runtime"
	"runtime/metrics"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// heap returns how many bytes are in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// memoryOfIndex makes the index of so many entries, or until there is no more room.
// It returns the most memory that is in use at a time.
func memoryOfIndex(payload int64, n int, entry func(i int) *estargz.Entry) (most int64, made int, err error) {
	before := heap()
	b := newBuilder(payload, largeFile)
	for ; made < n && err == nil; made++ {
		if err = b.add(entry(made)); made%(n/8) == 0 {
			most = max(most, heap()-before)
		}
	}
	most = max(most, heap()-before)
	if err != nil {
		return most, made, err
	}
	x, err := b.finish()
	most = max(most, heap()-before)
	runtime.KeepAlive(b)
	runtime.KeepAlive(x)
	return most, made, err
}

// TestMemoryOfIndex has layers of 1 and 10 MiB with as much in their TOCs as they
// may have, besides an ordinary layer of empty files.
func TestMemoryOfIndex(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	const mostMemory = 64 << 20
	sum := digest.FromString("x")
	fifo := func(format string, a ...any) *estargz.Entry {
		return &estargz.Entry{Name: fmt.Sprintf(format, a...), Type: estargz.TypeFifo}
	}
	for _, size := range []int{1 << 20, 10 << 20} {
		honest, _, err := memoryOfIndex(int64(size), size/41, func(i int) *estargz.Entry {
			return fifo("usr/lib/%x/%x-%x.txt", i%977, i*7919%65521, i*104729)
		})
		require.NoError(t, err)
		for name, entry := range map[string]func(i int) *estargz.Entry{
			"files":            func(i int) *estargz.Entry { return fifo("%x", i) },
			"replaced files":   func(int) *estargz.Entry { return fifo("a") },
			"long names":       func(i int) *estargz.Entry { return fifo("%0250x", i) },
			"directories":      func(i int) *estargz.Entry { return fifo("%x/%x/f", i>>4, i) },
			"deep directories": func(i int) *estargz.Entry { return fifo("%x%s/f", i, strings.Repeat("/d", 15)) },
			"symlinks": func(i int) *estargz.Entry {
				return &estargz.Entry{Name: fmt.Sprint(i), Type: estargz.TypeSymlink, LinkName: strings.Repeat("x", 100)}
			},
			"xattrs": func(i int) *estargz.Entry {
				return &estargz.Entry{Name: fmt.Sprint(i), Type: estargz.TypeFifo, Xattrs: map[string][]byte{"user.x": make([]byte, 60)}}
			},
			"chunks": func(i int) *estargz.Entry {
				return &estargz.Entry{Name: fmt.Sprint(i), Type: estargz.TypeReg, Size: 1, ChunkSize: 1, InnerOffset: int64(i), ChunkDigest: sum}
			},
		} {
			t.Run(fmt.Sprintf("%s %d", name, size), func(t *testing.T) {
				refused, n, err := memoryOfIndex(int64(size), 1<<21, entry)
				require.ErrorContains(t, err, "an index of all files takes more than")
				n -= 2
				made, _, err := memoryOfIndex(int64(size), n, entry)
				require.NoError(t, err)
				t.Logf("%d entries: %d MiB, refused: %d MiB, honest: %d MiB", n, made>>20, refused>>20, honest>>20)
				require.LessOrEqual(t, max(made, refused), honest+mostMemory)
			})
		}
	}
}

// TestXattrsAreNotCopied: every name of a file is asked for its xattrs.
func TestXattrsAreNotCopied(t *testing.T) {
	var xattrs strings.Builder
	for i := range 40 {
		fmt.Fprintf(&xattrs, `"user.%d":%q,`, i, strings.Repeat("AAAA", 16<<10))
	}
	b := withEntries(t, make([]byte, 1<<20), `{"name":"a","type":"fifo","xattrs":{`+strings.TrimSuffix(xattrs.String(), ",")+`}}`)
	l := addedTo(t, openStore(t), b)
	a := find(t, l, "a")
	allocated := func() uint64 {
		s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	before, size := allocated(), 0
	for range 100 {
		for _, value := range l.Xattrs(a) {
			size += len(value)
		}
	}
	require.Equal(t, 100*40*48<<10, size)
	require.Less(t, allocated()-before, uint64(1<<20))
}
