package lazyfs

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestVigil(t *testing.T) {
	if runtime.GOMAXPROCS(0) == 1 {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	}
	whole, partial := layerOf(), layerOf()
	whole.whole.Store(true)
	for _, c := range []struct {
		name  string
		layer Layer
		since time.Duration // the last answer
		keeps bool
	}{
		{"requests one after another", whole, 0, true},
		{"a request now and then", whole, brisk, false},
		{"contents are missing", partial, 0, false},
	} {
		v := vigil{layer: c.layer}
		require.False(t, v.begin(), "before the first request")
		v.answered = time.Now().Add(-c.since)
		v.received()
		require.Equal(t, c.keeps, v.begin(), c.name)
	}

	v := vigil{layer: whole, worth: true}
	require.True(t, v.begin())
	require.Eventually(t, func() bool { return !v.goOn() }, time.Second, time.Nanosecond)
	require.GreaterOrEqual(t, time.Since(v.begun), vigilTime)

	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	require.False(t, v.begin(), "others need the only processor")
}

// Complete layers are walked as others are, by several at once and after pauses.
func TestVigilMounted(t *testing.T) {
	layer := layerOf(dir("a"), file("a/b", "1"), dir("a/c"), file("a/c/d", "2"))
	layer.whole.Store(true)
	at := mounted(t, layer, Options{})
	for range 4 {
		names := 0
		require.NoError(t, filepath.WalkDir(at, func(_ string, d fs.DirEntry, err error) error { names++; return err }))
		require.Equal(t, 5, names)
		content, err := os.ReadFile(filepath.Join(at, "a/c/d"))
		require.NoError(t, err)
		require.Equal(t, "2", string(content))
		time.Sleep(2 * vigilTime)
	}
}
