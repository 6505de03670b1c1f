package store

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
	"github.com/buildkitd-esgz/buildkitd-esgz/internal/seed"
)

// reopen opens the store of a directory in another boot of the machine.
func reopen(t testing.TB, root, boot string) *Store {
	t.Helper()
	s, err := Open(root, Options{bootID: boot})
	require.NoError(t, err)
	return s
}

// right checks that every chunk that is marked is what it should be.
func right(t testing.TB, l *Layer) {
	t.Helper()
	for c := range l.index.Chunks {
		require.True(t, !l.present.has(c) || l.verify(c), "chunk %d is marked and not right", c)
	}
}

// TestPowerLoss has contents that were marked and did not reach the disk.
func TestPowerLoss(t *testing.T) {
	entries := append(numbered(100, 3000), file("large", text(99, 3<<20)), file("gone", text(98, 2<<20)))
	b := blobOf(t, estargz.Options{ChunkSize: 200_000}, entries...)
	root := t.TempDir()
	s := reopen(t, root, "first boot")
	l := addedTo(t, s, b)
	f := &fake{data: b.data}
	l.Connect(f.all())
	require.NoError(t, l.Fill(t.Context()))
	large, gone := l.largeName(find(t, l, "large")), l.largeName(find(t, l, "gone"))
	torn := l.index.chunk(50)
	require.NoError(t, s.Close())

	require.NoError(t, os.Truncate(large, 1_500_000))
	require.NoError(t, os.Remove(gone))
	small, err := os.OpenFile(filepath.Join(l.dir, "small"), os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = small.WriteAt(make([]byte, 1000), l.index.node(torn.Node).Small+2000)
	require.NoError(t, err)
	require.NoError(t, small.Close())

	s = reopen(t, root, "second boot")
	l, err = s.Layer(b.key)
	require.NoError(t, err)
	require.Zero(t, l.Stats().Present)
	f = &fake{data: b.data, window: 1}
	l.Connect(f.all())
	check(t, l, 3000, 10, 11)
	require.Empty(t, f.asked(), "they were there, and right")
	check(t, l, 3000, 50)
	require.Equal(t, []span{{torn.Offset, int64(torn.Length)}}, f.asked())
	_, ok := l.Backing(find(t, l, "large"))
	require.False(t, ok)
	require.NoError(t, s.Close())

	s = reopen(t, root, "second boot")
	defer s.Close()
	l, err = s.Layer(b.key)
	require.NoError(t, err)
	require.Equal(t, 3, l.Stats().Present)
	right(t, l)
	f = &fake{data: b.data, window: 1}
	l.Connect(f.all())
	require.NoError(t, l.Fill(t.Context()))
	right(t, l)
	var lost []int64 // where the chunks start that the truncated file lacks, and those of the other one
	for at := int64(1_400_000); at < 3<<20; at += 200_000 {
		lost = append(lost, at)
	}
	for at := int64(0); at < 2<<20; at += 200_000 {
		lost = append(lost, 1<<40+at)
	}
	var again []int64
	for _, r := range f.asked() {
		c := sort.Search(int(l.index.Chunks), func(c int) bool { return l.index.chunk(uint32(c)).Offset >= r.off })
		k := l.index.chunk(uint32(c))
		if k.Node == find(t, l, "gone") {
			k.At += 1 << 40
		}
		again = append(again, k.At)
	}
	require.ElementsMatch(t, lost, again)
	for name, want := range map[string]string{"large": text(99, 3<<20), "gone": text(98, 2<<20)} {
		got, err := read(l, find(t, l, name))
		require.NoError(t, err)
		require.True(t, got == want)
	}
}

// TestPresenceLost has marks that did not reach the disk.
func TestPresenceLost(t *testing.T) {
	b := blobOf(t, estargz.Options{}, numbered(1000, 100)...)
	for name, lose := range map[string]func(name string) error{
		"gone":  os.Remove,
		"empty": func(name string) error { return os.Truncate(name, 0) },
		"cut":   func(name string) error { return os.Truncate(name, presenceHead+10) },
		"zeros": func(name string) error { return os.WriteFile(name, make([]byte, presenceHead+2*8*16), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := reopen(t, root, "first boot")
			l := addedTo(t, s, b)
			f := &fake{data: b.data, window: 1 << 20}
			l.Connect(f.all())
			require.NoError(t, l.Fill(t.Context()))
			require.NoError(t, s.Close())
			require.NoError(t, lose(filepath.Join(l.dir, "present")))
			s = reopen(t, root, "second boot")
			defer s.Close()
			l, err := s.Layer(b.key)
			require.NoError(t, err)
			l.Connect(f.all())
			require.Zero(t, l.Stats().Present)
			require.NoError(t, l.Fill(t.Context()))
			right(t, l)
			check(t, l, 100, 0, 500, 999)
		})
	}
}

// TestDemoteInterrupted kills who makes claims of marks, behind each step.
func TestDemoteInterrupted(t *testing.T) {
	for step := range 3 {
		name := filepath.Join(t.TempDir(), "present")
		require.NoError(t, createPresence(name, 130, "first"))
		p, err := openPresence(name, 130, "first")
		require.NoError(t, err)
		require.NoError(t, p.mark(0, func() {}))
		require.NoError(t, p.mark(129, func() {}))
		require.NoError(t, p.file.Close())
		before, err := os.ReadFile(name)
		require.NoError(t, err)
		p, err = openPresence(name, 130, "second")
		require.NoError(t, err)
		require.NoError(t, p.file.Close())
		after, err := os.ReadFile(name)
		require.NoError(t, err)
		done := []int{presenceHead, presenceHead + 3*8, len(after)}[step]
		mixed := append(before[:presenceHead:presenceHead], after[presenceHead:done]...)
		mixed = append(mixed, before[done:]...)
		require.NoError(t, os.WriteFile(name, mixed, 0o600))
		p, err = openPresence(name, 130, "second")
		require.NoError(t, err)
		for c := range uint32(130) {
			require.False(t, p.has(c))
			require.Equal(t, c == 0 || c == 129, p.claimed(c), "step %d, chunk %d", step, c)
		}
		require.NoError(t, p.disclaim(0))
		require.NoError(t, p.mark(129, func() {}))
		require.NoError(t, p.file.Close())
		p, err = openPresence(name, 130, "second")
		require.NoError(t, err)
		require.False(t, p.claimed(0))
		require.True(t, p.has(129))
		require.NoError(t, p.file.Close())
	}
}

const (
	killedRoot = "STORE_TEST_KILLED_ROOT"
	killedBlob = "STORE_TEST_KILLED_BLOB"
)

// TestKilled kills processes that add, read, fill and remove layers.
func TestKilled(t *testing.T) {
	if root := os.Getenv(killedRoot); root != "" {
		untilKilled(t, root, os.Getenv(killedBlob))
		return
	}
	rounds := 50
	if testing.Short() {
		rounds = 10
	}
	entries := append(numbered(100, 10_000), file("large", text(99, 6<<20)))
	p := tarOf(t, entries...)
	blobs := []*testBlob{convert(t, estargz.Options{ChunkSize: 300_000}, p), convert(t, estargz.Options{Level: 1, MinChunkSize: 50_000}, p)}
	dir, root := t.TempDir(), t.TempDir()
	for i, b := range blobs {
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), append([]byte(b.key.Blob+" "+b.key.TOC+"\n"), b.data...), 0o600))
	}
	most, random := 0, seed.New(t)
	for range rounds {
		killAfter(t, random.IntN(250), killedRoot+"="+root, killedBlob+"="+dir)
		s := reopen(t, root, "")
		list, err := os.ReadDir(s.tmpDir)
		require.NoError(t, err)
		require.Empty(t, list)
		keys, err := s.Keys()
		require.NoError(t, err)
		for _, key := range keys {
			l, err := s.Layer(key)
			require.NoError(t, err)
			right(t, l)
			most = max(most, l.Stats().Present)
		}
		require.NoError(t, s.Close())
	}
	require.Greater(t, most, 30, "nothing was kept")
	s := reopen(t, root, "")
	defer s.Close()
	want := contentsOf(t, p)
	for _, b := range blobs {
		l := addedTo(t, s, b)
		f := &fake{data: b.data, window: 1 << 20}
		l.Connect(f.all())
		require.NoError(t, l.Fill(t.Context()))
		for name, n := range files(l) {
			got, err := read(l, n)
			require.NoError(t, err)
			require.True(t, got == want[name], name)
		}
	}
}

// killAfter runs TestKilled in a process of its own, and kills that when it has
// done so much, and something more.
func killAfter(t *testing.T, steps int, env ...string) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = io.ReadFull(out, make([]byte, 1+steps))
	require.NoError(t, err, "it has ended by itself")
	require.NoError(t, cmd.Process.Kill())
	err = cmd.Wait()
	require.ErrorContains(t, err, "signal: killed")
}

// untilKilled works with a store until it is killed. It writes a byte for each
// step.
func untilKilled(t *testing.T, root, dir string) {
	s, err := Open(root, Options{})
	require.NoError(t, err)
	var blobs []*testBlob
	for i := range 2 {
		p, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i)))
		require.NoError(t, err)
		b := &testBlob{}
		head, data, _ := strings.Cut(string(p), "\n")
		_, err = fmt.Sscan(head, &b.key.Blob, &b.key.TOC)
		require.NoError(t, err)
		b.data = []byte(data)
		blobs = append(blobs, b)
	}
	step := func() { fmt.Print(".") }
	step()
	for {
		for _, b := range blobs {
			l := addedTo(t, s, b)
			step()
			f := &fake{data: b.data, window: 100_000}
			l.Connect(f.all())
			ctx, cancel := context.WithCancel(t.Context())
			go l.Fill(ctx)
			for _, n := range files(l) {
				_, err := read(l, n)
				require.NoError(t, err)
				step()
			}
			require.NoError(t, l.Fill(ctx))
			step()
			cancel()
		}
		for _, b := range blobs {
			require.NoError(t, s.Remove(b.key))
			step()
		}
	}
}

// TestMarkedTwice marks chunks several times at once, as the layers that have a
// chunk in common may. Each counts once.
func TestMarkedTwice(t *testing.T) {
	b := blobOf(t, estargz.Options{}, numbered(100, 10)...)
	l := addedTo(t, openStore(t), b)
	var markers sync.WaitGroup
	for range 8 {
		markers.Go(func() {
			for c := range l.index.Chunks {
				require.NoError(t, l.mark(c))
			}
		})
	}
	markers.Wait()
	require.Equal(t, 100, l.Stats().Present)
	require.Equal(t, l.size, l.Stats().Here)
	require.True(t, l.Complete())
}

// TestTwinIsNotMarked copies a chunk of another layer that was written in an
// earlier boot. Whether that layer may show it is left to its own reads, which
// may be writing to the same place.
func TestTwinIsNotMarked(t *testing.T) {
	root := t.TempDir()
	one := blobOf(t, estargz.Options{}, file("a", text(1, 5000)))
	two := blobOf(t, estargz.Options{Level: 1}, file("a", text(1, 5000)))
	s := reopen(t, root, "first")
	l := addedTo(t, s, one)
	l.Connect((&fake{data: one.data}).all())
	require.NoError(t, l.Fill(t.Context()))
	s.Close()

	s = reopen(t, root, "second")
	defer s.Close()
	l, err := s.Layer(one.key)
	require.NoError(t, err)
	other := addedTo(t, s, two)
	got, err := read(other, find(t, other, "a"))
	require.NoError(t, err)
	require.Equal(t, text(1, 5000), got)
	require.False(t, l.present.has(0))
	require.True(t, l.present.claimed(0))
}
