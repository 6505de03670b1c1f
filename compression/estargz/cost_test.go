package estargz_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"runtime/metrics"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

const (
	// mostWork is how many times the work of an honest layer of its size a hostile
	// one may take, mostMemory how much more memory.
	mostWork   = 10
	mostMemory = 64 << 20

	// A gauge looks after so many bytes.
	smallStep, largeStep = 1 << 20, 32 << 20
)

// honestTar is a tar of n empty files as there are in ordinary layers.
func honestTar(t testing.TB, n int) []byte {
	var entries []tarEntry
	for i := range n {
		e := file(fmt.Sprintf("usr/lib/%x/%x-%x.txt", i%977, i*7919%65521, i*104729), "")
		e.ModTime = time.Unix(1_700_000_000+int64(i)*86243%10_000_000, 0)
		entries = append(entries, e)
	}
	return tarOf(t, entries...)
}

// zip returns gzip members of the parts.
func zip(t testing.TB, parts ...[]byte) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
		require.NoError(t, err)
		_, err = z.Write(p)
		require.NoError(t, err)
		require.NoError(t, z.Close())
	}
	return b.Bytes()
}

// A cost is what a blob took.
type cost struct {
	work, memory int64
	err          error
}

// A gauge finds the most memory that is in use at a time, and looks whenever
// step more bytes were allocated.
type gauge struct {
	context.Context
	step             uint64
	before, most     int64
	allocated        uint64
	allocatedMetrics [1]metrics.Sample
}

func newGauge(step uint64) *gauge {
	g := &gauge{Context: context.Background(), step: step}
	g.allocatedMetrics[0].Name = "/gc/heap/allocs:bytes"
	heap() // empties pools that other tests filled, the second time
	g.before = int64(heap())
	return g
}

func (g *gauge) look() {
	metrics.Read(g.allocatedMetrics[:])
	if n := g.allocatedMetrics[0].Value.Uint64(); n >= g.allocated+g.step {
		g.allocated = n
		g.most = max(g.most, int64(heap())-g.before)
	}
}

// Err is asked now and then by what is measured.
func (g *gauge) Err() error {
	g.look()
	return g.Context.Err()
}

// costOf opens a blob and, if ordered, brings it into another order. The memory is
// the most there was at a time, as far as a gauge of so many bytes sees it.
func costOf(t testing.TB, blob []byte, ordered bool, step uint64, order ...string) (c cost) {
	g := newGauge(step)
	defer func() { c.memory = max(g.most, c.memory) }()
	in := readerAt(func(p []byte, off int64) (int, error) {
		g.look()
		return bytes.NewReader(blob).ReadAt(p, off)
	})
	r, err := estargz.Open(in, int64(len(blob)), estargz.OpenOptions{})
	c.memory = int64(heap()) - g.before
	if err != nil {
		c.err = err
		return c
	}
	if ordered {
		opts := estargz.Options{Level: 1, Pool: estargz.NewPool(1, 4<<20)}
		_, c.err = estargz.Reorder(g, writerFunc(func(p []byte) (int, error) {
			g.look()
			return len(p), nil
		}), r, order, opts)
	}
	c.work = r.Work()
	return c
}

// honestCost returns an honest blob and what it takes.
func honestCost(t *testing.T, ordered bool) (blob []byte, c cost) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	blob, _ = write(t, honestTar(t, 40_000), estargz.Options{})
	c = costOf(t, blob, ordered, smallStep)
	require.NoError(t, c.err)
	return blob, c
}

// ofSize scales what an honest blob took to another size.
func (c cost) ofSize(n, size int) cost {
	ratio := float64(n) / float64(size)
	return cost{work: int64(float64(c.work) * ratio), memory: int64(float64(c.memory) * ratio)}
}

// list repeats an entry of a TOC with numbers that count up.
func list(n int, entry func(i int) string) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(entry(i))
	}
	return b.String()
}

// payloadSize is how much payload the hostile layers have.
const payloadSize = 1 << 20

// TestCostOfOpening has TOCs that take all that they may, behind a payload that
// does not matter. An empty want says that the blob is opened.
func TestCostOfOpening(t *testing.T) {
	plain, honest := honestCost(t, false)
	same := func(entry string) func(int) string { return func(int) string { return entry } }
	deep := strings.Repeat("/d", 2000)
	for name, c := range map[string]struct {
		entries string
		want    string
	}{
		"white space":         {strings.Repeat(" ", 200<<20), "bytes of JSON are more than"},
		"allowed white space": {strings.Repeat(" ", 63<<20), ""},
		"replaced entries":    {list(1<<20, same(`{"name":"a","type":"fifo"}`)), "entries take more than"},
		"files":               {list(1<<20, func(i int) string { return fmt.Sprintf(`{"name":"%x","type":"fifo"}`, i) }), "entries take more than"},
		"chunks":              {`{"name":"a","type":"reg"},` + list(1<<20, same(`{"type":"chunk","offset":1}`)), "entries take more than"},
		"1-byte chunks": {`{"name":"a","type":"reg","size":150000,"chunkSize":1},` + list(149_999, func(i int) string {
			return fmt.Sprintf(`{"type":"chunk","offset":%d,"chunkOffset":%d,"chunkSize":1}`, i+1, i+1)
		}), ""},
		"chain of links": {`{"name":"0","type":"reg"},` + list(150_000, func(i int) string { return fmt.Sprintf(`{"name":"%d","type":"hardlink","linkName":"%d"}`, i+1, i) }), ""},
		"chains from their ends": {list(150_030, func(i int) string {
			if i%90 == 89 {
				return fmt.Sprintf(`{"name":"%d","type":"fifo"}`, i)
			}
			return fmt.Sprintf(`{"name":"%d","type":"hardlink","linkName":"%d"}`, i, i+1)
		}), ""},
		"endless chain":       {list(150_000, func(i int) string { return fmt.Sprintf(`{"name":"%d","type":"hardlink","linkName":"%d"}`, i, i+1) }), "leads to no file in 100 steps"},
		"chain of symlinks":   {list(120_000, func(i int) string { return fmt.Sprintf(`{"name":"%d","type":"symlink","linkName":"%d"}`, i+1, i) }), ""},
		"implied directories": {list(40, func(i int) string { return fmt.Sprintf(`{"name":"%d%s","type":"dir"}`, i, deep) }), "directories have no entry of their own"},
		"one deep directory":  {list(8000, func(i int) string { return fmt.Sprintf(`{"name":"%d%s/%d","type":"dir"}`, i%2, deep, i) }), "paths up to it have"},
		"links to deep files": {list(8000, func(i int) string { return fmt.Sprintf(`{"name":"%d","type":"hardlink","linkName":"x%s"}`, i, deep) }), "paths up to it have"},
		"long names":          {list(11_000, func(i int) string { return fmt.Sprintf(`{"name":"%04000d","type":"dir"}`, i) }), ""},
		"xattrs": {list(40, func(int) string {
			return `{"name":"a","type":"fifo","xattrs":{` + list(50_000, func(i int) string { return fmt.Sprintf(`"%d":""`, i) }) + `}}`
		}), "entries take more than"},
		"large xattrs":  {list(20, same(`{"name":"a","type":"fifo","xattrs":{"a":"`+strings.Repeat("AAAA", 500<<10)+`"}}`)), ""},
		"a large entry": {`{"name":"a","type":"fifo","xattrs":{"a":"` + strings.Repeat("AAAA", 2<<20) + `"}}`, "an entry is larger than"},
		"owners":        {list(1<<18, func(i int) string { return fmt.Sprintf(`{"name":"%d","type":"fifo","uid":%d,"userName":"u"}`, i, i) }), "entries take more than"},
	} {
		t.Run(name, func(t *testing.T) {
			blob := withTOC(t, make([]byte, payloadSize), `{"version":1,"entries":[`+c.entries+`]}`)
			got, most := costOf(t, blob, false, smallStep), honest.ofSize(payloadSize, len(plain))
			t.Logf("%.1f times the work, %d MiB of memory; honest: %d MiB; %v", float64(got.work)/float64(most.work), got.memory>>20, most.memory>>20, got.err)
			require.LessOrEqual(t, got.work, mostWork*most.work)
			require.LessOrEqual(t, got.memory, most.memory+mostMemory)
			if c.want == "" {
				require.NoError(t, got.err)
				return
			}
			require.ErrorContains(t, got.err, c.want)
			require.ErrorContains(t, got.err, fmt.Sprintf("TOC at %d", payloadSize))
		})
	}
}

// TestMemoryOfOpening has as many files as a layer of 10 MiB may have.
func TestMemoryOfOpening(t *testing.T) {
	const size = 10 << 20
	plain, honest := honestCost(t, false)
	honest = honest.ofSize(size, len(plain))
	open := func(n int) cost {
		files := list(n, func(i int) string { return fmt.Sprintf(`{"name":"%x","type":"fifo"}`, i) })
		return costOf(t, withTOC(t, make([]byte, size), `{"version":1,"entries":[`+files+`]}`), false, largeStep)
	}
	got := open(470_000)
	require.NoError(t, got.err)
	t.Logf("%d MiB, honest: %d MiB", got.memory>>20, honest.memory>>20)
	require.LessOrEqual(t, got.memory, honest.memory+mostMemory)
	require.ErrorContains(t, open(480_000).err, "entries take more than")
}

// TestCostOfOrdering has payloads that hold something else than their TOCs say.
func TestCostOfOrdering(t *testing.T) {
	plain, honest := honestCost(t, true)
	a := file("a", "a")
	head := tarOf(t, a)[:blockSize]
	one := fmt.Sprintf(`{"name":"a","type":"reg","size":1,"offset":%%d,"chunkDigest":%q}`, digest.FromString("a"))
	// behind is a blob of the file a, with that between it and the end.
	behind := func(hidden ...[]byte) []byte {
		first := zip(t, head)
		rest := bytes.Join(append([][]byte{append([]byte("a"), make([]byte, blockSize-1)...)}, append(hidden, make([]byte, 2*blockSize))...), nil)
		return withTOC(t, append(first, zip(t, rest)...), `{"version":1,"entries":[`+fmt.Sprintf(one, len(first))+`]}`)
	}
	replaced := func(n int, size int64) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for range n {
			require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: size}))
			_, err := w.Write(make([]byte, size))
			require.NoError(t, err)
		}
		require.NoError(t, w.WriteHeader(&a.Header))
		w.Write(a.contents)
		require.NoError(t, w.Flush())
		return b.Bytes()
	}
	var shared []tarEntry
	var backwards, chain []string
	for i := range 20_000 {
		shared = append(shared, file(fmt.Sprint(i), "1"))
		backwards = append([]string{fmt.Sprint(i)}, backwards...)
	}
	giant, _ := write(t, tarOf(t, shared...), estargz.Options{MinChunkSize: 64 << 20})
	links := []tarEntry{file("0", "1")}
	for i := range 20_000 {
		links = append(links, link(fmt.Sprint(i+1), fmt.Sprint(i)))
		chain = []string{fmt.Sprint(i + 1)}
	}
	linked, _ := write(t, tarOf(t, links...), estargz.Options{})
	endless := tarOf(t, file("h", "").with(xattr("user.x", strings.Repeat("x", 500<<10))))[:501<<10]
	for name, c := range map[string]struct {
		blob  []byte
		order []string
		want  string
	}{
		"hidden zeros":         {behind(replaced(1, 400<<20)), nil, "far more than its TOC names"},
		"allowed hidden zeros": {behind(replaced(1, 120<<20)[:100<<20]), nil, "unexpected EOF"},
		"replaced entries":     {behind(replaced(200_000, 0)), nil, "have the names of later ones"},
		"an omitted file":      {behind(tarOf(t, file("hidden", "h"))[:2*blockSize]), nil, `the tar has "hidden", the TOC has not`},
		"an omitted large one": {behind(tarOf(t, file("hidden", strings.Repeat("h", 50<<20)))), nil, `the tar has "hidden", the TOC has not`},
		"endless headers":      {behind(bytes.Repeat(endless, 100)), nil, "bytes of headers in front of one entry"},
		"giant shared member":  {giant, backwards, ""},
		"chain of links":       {linked, chain, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := costOf(t, c.blob, true, smallStep, c.order...)
			size := max(len(c.blob), payloadSize) // what costs as much for any size is that of the smallest
			most := honest.ofSize(size, len(plain))
			t.Logf("a blob of %d bytes: %.1f times the work, %d MiB of memory; honest: %d MiB; %v", len(c.blob), float64(got.work)/float64(most.work), got.memory>>20, most.memory>>20, got.err)
			require.LessOrEqual(t, got.work, mostWork*most.work)
			require.LessOrEqual(t, got.memory, most.memory+mostMemory)
			if c.want == "" {
				require.NoError(t, got.err)
				return
			}
			require.ErrorContains(t, got.err, c.want)
		})
	}
}

// TestMemoryOfOrdering has layers of 10 MiB with as many files or headers as they
// may have, and with more.
func TestMemoryOfOrdering(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	const size = 10 << 20
	layer := func(files func(i int) tarEntry, n int) []byte {
		var entries []tarEntry
		for i := range n {
			entries = append(entries, files(i))
		}
		filled := func(n int) []byte {
			blob, _ := write(t, tarOf(t, append(entries, file("noise", noise(1, n)))...), estargz.Options{Level: 1})
			return blob
		}
		blob := filled(size) // a writer refuses as many files in less
		return filled(max(0, 2*size-len(blob)))
	}
	plain, _ := write(t, honestTar(t, size/41), estargz.Options{Level: 1})
	require.InEpsilon(t, size, len(plain), 0.05)
	honest := costOf(t, plain, true, largeStep)
	require.NoError(t, honest.err)
	empty := func(i int) tarEntry { return file(fmt.Sprint(i), "") }
	for name, c := range map[string]struct {
		blob []byte
		want string
	}{
		"empty files": {layer(empty, 420_000), "another order takes more than"},
		"headers": {layer(func(i int) tarEntry {
			if i%10_000 == 0 {
				return file(fmt.Sprint(i), "1")
			}
			return file(fmt.Sprint(i), "").with(xattr("user.x", strings.Repeat("x", 100)))
		}, 100_000), ""},
		"implied directories":      {layer(func(i int) tarEntry { return file(fmt.Sprintf("%d/a/b/c/d", i), "") }, 200_000), "another order takes more than"},
		"names that are not clean": {layer(func(i int) tarEntry { return file(fmt.Sprintf("./%d%s", i, strings.Repeat("x", 4000)), "") }, 30_000), "another order takes more than"},
		"links that are not clean": {layer(func(i int) tarEntry {
			if i == 0 {
				return file(strings.Repeat("x", 4000), "")
			}
			return link(fmt.Sprint(i), "./"+strings.Repeat("x", 4000))
		}, 30_000), "another order takes more than"},
	} {
		t.Run(name, func(t *testing.T) {
			got := costOf(t, c.blob, true, largeStep)
			t.Logf("a blob of %d bytes: %.1f times the work, %d MiB of memory; honest: %d MiB; %v", len(c.blob), float64(got.work)/float64(honest.work), got.memory>>20, honest.memory>>20, got.err)
			require.LessOrEqual(t, got.memory, honest.memory+mostMemory)
			require.LessOrEqual(t, got.work, mostWork*honest.work)
			if c.want == "" {
				require.NoError(t, got.err)
				return
			}
			require.ErrorContains(t, got.err, c.want)
		})
	}
}

// TestCostOfWriting has tars that a writer reads. An honest one has as many bytes.
func TestCostOfWriting(t *testing.T) {
	in := honestTar(t, 10_000)
	honest, err := estargz.Scan(bytes.NewReader(in))
	require.NoError(t, err)
	deep := strings.Repeat("/d", 2000)
	many := func(n int, entry func(i int) tarEntry) []byte {
		var entries []tarEntry
		for i := range n {
			entries = append(entries, entry(i))
		}
		return tarOf(t, entries...)
	}
	for name, c := range map[string]struct {
		in   []byte
		want string
	}{
		"replaced entries":    {many(70_000, func(int) tarEntry { return file("a", "") }), `tar entry "a": 65538 entries have the names of later ones`},
		"chain of links":      {many(10_000, func(i int) tarEntry { return link(fmt.Sprint(i), fmt.Sprint(i-1)).with(first(i)) }), ""},
		"implied directories": {many(40, func(i int) tarEntry { return dir(fmt.Sprint(i) + deep + "/") }), "directories have no entry of their own"},
		"one deep directory":  {many(5000, func(i int) tarEntry { return dir(fmt.Sprint(i%2) + deep + fmt.Sprint("/", i)) }), ""},
		"xattrs":              {many(20, func(i int) tarEntry { return file(fmt.Sprint(i), "").with(xattrs(20_000)) }), ""},
	} {
		t.Run(name, func(t *testing.T) {
			work, err := estargz.Scan(bytes.NewReader(c.in))
			most := honest * int64(max(len(c.in), payloadSize)) / int64(len(in))
			t.Logf("%.1f times the work; %v", float64(work)/float64(most), err)
			if c.want == "" {
				require.NoError(t, err)
				require.LessOrEqual(t, work, mostWork*most)
				return
			}
			require.ErrorContains(t, err, c.want)
			require.LessOrEqual(t, work, 2*mostWork*most)
		})
	}
	endless := &repeated{p: tarOf(t, file("h", "").with(xattr("user.x", strings.Repeat("x", 500<<10))))[:501<<10], times: 100}
	work, err := estargz.Scan(io.MultiReader(endless))
	require.ErrorContains(t, err, "bytes of headers in front of one entry")
	require.Less(t, work, int64(4*6<<20))
}

// first makes the first entry a file.
func first(i int) func(h *tar.Header) {
	return func(h *tar.Header) {
		if i == 0 {
			h.Typeflag, h.Name, h.Linkname = tar.TypeReg, "0", ""
		}
	}
}

func xattrs(n int) func(h *tar.Header) {
	return func(h *tar.Header) {
		for i := range n {
			xattr(fmt.Sprint(i), "x")(h)
		}
	}
}
