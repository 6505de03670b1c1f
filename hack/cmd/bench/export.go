package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/pushed"
)

// A contender is a daemon with a compression.
type contender struct {
	name        string
	work        string // what it does; that of all, if it is empty
	binary      string // in the directory of tools
	compression string
}

// A result is what one export took.
type result struct {
	wall, cpu time.Duration
	memory    int64 // peak, bytes
	layers    int64 // bytes of all of them, compressed
}

func (r result) readings() []reading {
	all := []reading{wall(r.wall), {float64(r.cpu), "cpu-ns/op"}, bytesIn("layers", r.layers)}
	if r.memory > 0 {
		all = append(all, bytesIn("peak", r.memory))
	}
	return all
}

// An exportImage is one that is exported, by those who can.
type exportImage struct {
	target, what string
	before       string // what the stock daemon has made of it before
	contenders   []contender
}

// notExported is an output for images that are only built.
const notExported = "type=cacheonly"

var (
	stockGzip    = contender{name: "stock gzip", binary: "buildkitd", compression: "gzip"}
	stockEstargz = contender{name: "stock estargz", binary: "buildkitd", compression: "estargz"}
	ourEstargz   = contender{name: ourName + " estargz", binary: ourName, compression: "estargz,estargz-profile=none"}
	stockZstd    = contender{name: "stock zstd", binary: "buildkitd", compression: "zstd"}
	pgzipAlone   = contender{name: "pgzip alone, level 6", compression: "pgzip"} // behind stockGzip, whose tars it takes
	everybody    = []contender{stockEstargz, stockGzip, stockZstd, pgzipAlone, ourEstargz}
)

// exportImages are a usual image, layers of one kind, and layers that are
// compressed already.
var exportImages = []exportImage{
	{"demo", "The demo image, Debian with Python and pandas", notExported, everybody},
	{"small", "60,000 small files of text", notExported, everybody},
	{"binaries", "Three large files of machine code", notExported, everybody},
	{"random", "300 MB that cannot be compressed", notExported, everybody},
	{"demo", "The demo image, converted from gzip layers", "type=image,name=bench,push=false,compression=gzip,oci-mediatypes=true", []contender{stockEstargz, ourEstargz}},
}

// export builds each image once, with the stock daemon. Each measurement then
// starts a daemon on a copy of that root, so all of them have the very same
// snapshots to make layers of, and none has made one before; or the very same
// layers to convert.
// The Debian base is a stage of the build, not an image from a registry: as such
// it would come compressed already.
func export(ctx context.Context, c *config) (sections []section, err error) {
	for _, image := range exportImages {
		r := &results{}
		if err := image.measure(ctx, c, r); err != nil {
			return nil, fmt.Errorf("%s: %w", image.what, err)
		}
		sections = append(sections, r.section(image.what))
	}
	return sections, nil
}

func (image exportImage) measure(ctx context.Context, c *config, into *results) (err error) {
	log.Printf("building %s, to be exported later", image.target)
	prepared, err := prepare(ctx, c, image.target, image.before)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, prepared.stop()) }()
	tars := filepath.Join(c.work, "tars")
	defer os.RemoveAll(tars)
	return turns(c.runs, image.contenders, func(run int, who contender) error {
		r, err := measure(ctx, c, prepared.root(), tars, image.target, who)
		if err != nil {
			return fmt.Errorf("%s: %w", who.name, err)
		}
		log.Printf("run %d of %d, %s, %s, %s: %.1fs, %.1f MB", run, c.runs, image.target, who.name, who.compression, r.wall.Seconds(), megabytes(r.layers))
		into.add(cmp.Or(who.work, image.what), who.name, r.readings()...)
		return nil
	})
}

// prepare builds a target with the stock daemon, and returns the daemon, which
// has ended, with its root.
func prepare(ctx context.Context, c *config, target, output string) (*daemon, error) {
	d, err := startDaemon(ctx, c, "buildkitd", "")
	if err != nil {
		return nil, err
	}
	if _, err := d.build(ctx, target, output); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, d.Stop()
}

// measure measures one export, or in its stead pgzip over the tars that the
// first one, of stock gzip, has left.
func measure(ctx context.Context, c *config, prepared, tars, target string, who contender) (r result, err error) {
	if who.compression == "pgzip" {
		return compressAlone(tars)
	}
	d, err := startDaemon(ctx, c, who.binary, prepared)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()

	before, err := d.cpuTime()
	if err != nil {
		return r, err
	}
	if err := d.forgetPeak(); err != nil {
		return r, err
	}
	image, err := d.export(ctx, target, "force-compression=true,compression="+who.compression)
	if err != nil {
		return r, err
	}
	after, err := d.cpuTime()
	if err != nil {
		return r, err
	}
	if r.memory, err = d.peakMemory(); err != nil {
		return r, err
	}
	r.wall, r.cpu = image.export, after-before
	blobs := filepath.Join(d.root(), "runc-overlayfs", "content", "blobs")
	if who.compression == "gzip" && tars != "" {
		if err := unpackTars(blobs, image.digest, tars); err != nil {
			return r, err
		}
	}
	return r, r.weigh(blobs, image.digest, strings.HasPrefix(who.compression, "estargz") && !strings.Contains(who.compression, minChunkSize))
}

// weigh reads the image from the daemon's store, and checks its layers if it
// can: only what is right counts.
func (r *result) weigh(blobs string, dgst digest.Digest, check bool) error {
	var manifest ocispecs.Manifest
	var config ocispecs.Image
	if err := readJSON(blobs, dgst, &manifest); err != nil {
		return err
	}
	if err := readJSON(blobs, manifest.Config.Digest, &config); err != nil {
		return err
	}
	for i, desc := range manifest.Layers {
		r.layers += desc.Size
		if !check {
			continue
		}
		blob, err := os.ReadFile(blobFile(blobs, desc.Digest))
		if err != nil {
			return err
		}
		if _, err := pushed.CheckLayer(blob, desc, config.RootFS.DiffIDs[i]); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return nil
}

func readJSON(blobs string, dgst digest.Digest, v any) error {
	raw, err := os.ReadFile(blobFile(blobs, dgst))
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}

func blobFile(blobs string, dgst digest.Digest) string {
	return filepath.Join(blobs, dgst.Algorithm().String(), dgst.Encoded())
}

// An exported image, and how long the daemon was at it.
type exported struct {
	digest digest.Digest
	export time.Duration
}

// export builds an image, or takes it from the root when it has been built there,
// and makes it one of the daemon's.
func (d *daemon) export(ctx context.Context, target, attributes string, args ...string) (exported, error) {
	metadata := filepath.Join(d.Dir, "metadata.json")
	progress, err := d.build(ctx, target, "type=image,name=bench,push=false,oci-mediatypes=true,"+attributes, append(args, "--metadata-file", metadata)...)
	if err != nil {
		return exported{}, err
	}
	took, err := exportTime(progress)
	if err != nil {
		return exported{}, err
	}
	var answer map[string]map[string]any
	raw, err := os.ReadFile(metadata)
	if err != nil {
		return exported{}, err
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return exported{}, err
	}
	dgst, _ := answer[target]["containerimage.digest"].(string)
	return exported{digest.Digest(dgst), took}, nil
}

// exportTime finds in the progress when the export started and ended, by the
// daemon's clock. A step that was not taken from the cache makes it worthless.
func exportTime(progress string) (time.Duration, error) {
	var took time.Duration
	cached := map[string]bool{}
	for status := range statuses(progress) {
		for _, v := range status.Vertexes {
			if strings.Contains(v.Name, "] RUN ") || strings.Contains(v.Name, "] COPY ") {
				cached[v.Name] = cached[v.Name] || v.Cached
			}
			if strings.HasSuffix(v.Name, "exporting to image") && v.Completed != nil {
				took = v.Completed.Sub(*v.Started)
			}
		}
	}
	for name, ok := range cached {
		if !ok {
			return 0, fmt.Errorf("%s ran again", name)
		}
	}
	if took == 0 || len(cached) == 0 {
		return 0, errors.New("no export in the progress")
	}
	return took, nil
}
