package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	stockformat "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
)

// What the stock optimizer sees when it runs the image, the build has seen too.
// But it puts first all of a large file of which little is read.
func TestProfileHasWhatTheOptimizerRecords(t *testing.T) {
	needs(t)
	d := startDaemon(t, ours)
	dir, image := readerImage(t, ""), repository(t)
	d.build(t, dir, "--output", "type=image,push=true,oci-mediatypes=true,compression=gzip,force-compression=true,name="+image+":gzip")
	d.build(t, dir, "--output", profiled(image+":profiled"))

	record := filepath.Join(tempDir(t), "record")
	run(t, "optimize", "-address", startContainerd(t).Address, "-record-out", record, image+":gzip", image+":optimized")
	recorded := readRecord(t, record)
	first, theirs := prioritized(t, onlyImage(t, image+":profiled")), prioritized(t, onlyImage(t, image+":optimized"))
	require.Contains(t, recorded, "large", "the optimizer does its work")
	require.Contains(t, recorded, "data/second")
	for path, layer := range recorded {
		require.Contains(t, strings.Fields(theirs[layer]), path)
		if path == "large" {
			require.NotContains(t, strings.Fields(first[layer]), path)
		} else {
			require.Contains(t, strings.Fields(first[layer]), path)
		}
	}
}

// readRecord returns the layer that each of the recorded files is in.
func readRecord(t *testing.T, name string) map[string]int {
	t.Helper()
	f, err := os.Open(name)
	require.NoError(t, err)
	defer f.Close()
	layers := map[string]int{}
	for dec := json.NewDecoder(f); ; {
		var e struct {
			Path       string
			LayerIndex int
		}
		err := dec.Decode(&e)
		if err == io.EOF {
			return layers
		}
		require.NoError(t, err)
		layers[e.Path] = e.LayerIndex
	}
}

// The stock snapshotter fetches the files in front of a layer's landmark in one
// request, where it would otherwise make one for each.
func TestPrefetchIsOneRequest(t *testing.T) {
	needs(t)
	dir, name := writeFiles(t, map[string]string{"Dockerfile": `
FROM ` + busybox(t) + `
RUN for i in 1 2 3 4 5 6; do hardfiles random /$i 300000 $i; done
CMD ["sh", "-c", "cat /1 /3 /5 | wc -c"]
`}), repositoryName(t)
	startDaemon(t, ours).build(t, dir, "--output", profiled(registry(t)+"/"+name+":latest"))
	image := onlyImage(t, registry(t)+"/"+name+":latest")
	desc := image.Manifest.Layers[len(image.Manifest.Layers)-1]
	blob, err := image.Blob(t.Context(), desc)
	require.NoError(t, err)
	landmark := landmarkOf(t, blob)
	require.InDelta(t, 900_000, landmark, 10_000)

	line, err := shaped.New(registry(t), shaped.Link{})
	require.NoError(t, err)
	defer line.Close()
	require.Equal(t, "900000\n", startContainerd(t, "-prefetch").runLazily(t, line.Addr()+"/"+name+":latest"))
	var fetched []string
	for _, r := range shaped.Blobs(line.Requests()) {
		var from int64
		_, err := fmt.Sscanf(r.Range, "bytes=%d-", &from)
		// With a request for two bytes it asks where the blob is.
		if err == nil && r.Blob == desc.Digest.String() && r.Range != "bytes=0-1" && from < landmark {
			fetched = append(fetched, r.Range)
		}
	}
	require.Len(t, fetched, 1)
}

// landmarkOf is how many bytes of a layer are in front of the landmark.
func landmarkOf(t *testing.T, blob []byte) int64 {
	t.Helper()
	r, err := stockformat.Open(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
	require.NoError(t, err)
	e, ok := r.Lookup(stockformat.PrefetchLandmark)
	if !ok {
		return 0
	}
	return e.Offset
}
