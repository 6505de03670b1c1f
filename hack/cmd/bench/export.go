package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// A contender is a daemon with a compression.
type contender struct {
	name        string
	work        string // what it does; that of all, if it is empty
	binary      string // in the directory of tools
	compression string
}

// with is the contender with more attributes.
func (who contender) with(attributes string) contender {
	who.compression += "," + attributes
	return who
}

// An exportImage is one that is exported, by those who can.
type exportImage struct {
	target     string
	title      string
	before     string // what the stock daemon has made of it before
	contenders []contender
}

// notExported is an output for images that are only built.
const notExported = "type=cacheonly"

var (
	stockGzip    = contender{name: "stock gzip", binary: "buildkitd", compression: "gzip"}
	stockEstargz = contender{name: "stock estargz", binary: "buildkitd", compression: "estargz"}
	ourEstargz   = contender{name: ourName + " estargz", binary: ourName, compression: "estargz,estargz-profile=none"}
	ourProfiled  = contender{name: ourName + " estargz, profiled", binary: ourName, compression: "estargz"}
	stockZstd    = contender{name: "stock zstd", binary: "buildkitd", compression: "zstd"}
	pgzipAlone   = contender{name: "pgzip alone, level 6", compression: "pgzip"} // behind stockGzip, whose tars it takes
	everybody    = []contender{stockEstargz, stockGzip, stockZstd, pgzipAlone, ourEstargz}
)

// export exports a usual image, also with a profile, and from layers that are
// compressed already.
func (b *bench) export(ctx context.Context) error {
	return b.exportImages(ctx,
		exportImage{"demo", "The demo image, Debian with Python and pandas", notExported, append(everybody, ourProfiled)},
		exportImage{"demo", "The demo image, converted from gzip layers", "type=image,name=bench,push=false,compression=gzip,oci-mediatypes=true", []contender{stockEstargz, ourEstargz}},
	)
}

// kinds exports images whose layers are of one kind each.
func (b *bench) kinds(ctx context.Context) error {
	return b.exportImages(ctx,
		exportImage{"small", "60,000 small files of text", notExported, everybody},
		exportImage{"binaries", "Three large files of machine code", notExported, everybody},
		exportImage{"random", "300 MB that cannot be compressed", notExported, everybody},
	)
}

func (b *bench) exportImages(ctx context.Context, images ...exportImage) error {
	for _, image := range images {
		if err := b.exportAll(ctx, image); err != nil {
			return fmt.Errorf("%s: %w", image.title, err)
		}
	}
	return nil
}

// levels exports the demo image at each compression level.
func (b *bench) levels(ctx context.Context) error {
	image := exportImage{target: "demo", title: "The demo image, exported at levels 1 to 9", before: notExported}
	for level := range 9 {
		for _, who := range []contender{stockEstargz, ourEstargz} {
			who = who.with(fmt.Sprint("compression-level=", level+1))
			who.work = fmt.Sprint("level ", level+1)
			image.contenders = append(image.contenders, who)
		}
	}
	return b.exportAll(ctx, image)
}

// minChunkSize is what lets files share a gzip member. The stock snapshotter
// reads such layers, but the library's check of a whole layer refuses them.
const minChunkSize = "estargz-min-chunk-size="

// chunks exports the demo image with small files in larger gzip members.
func (b *bench) chunks(ctx context.Context) error {
	image := exportImage{
		target: "demo", title: "The demo image, with small files in members of at least so many bytes",
		before: notExported, contenders: []contender{stockGzip, pgzipAlone, ourEstargz},
	}
	for _, bytes := range []int{64 << 10, 1 << 20, 4 << 20} {
		who := ourEstargz.with(fmt.Sprint(minChunkSize, bytes))
		who.name = fmt.Sprintf("%s, %s%d", ourName, minChunkSize, bytes)
		image.contenders = append(image.contenders, who)
	}
	return b.exportAll(ctx, image)
}

// exportAll builds the image once, with the stock daemon. Each measurement then
// starts a daemon on a copy of that root, so all of them have the very same
// snapshots to make layers of, and none has made one before; or the very same
// layers to convert.
// The Debian base is a stage of the build, not an image from a registry: as such
// it would come compressed already.
func (b *bench) exportAll(ctx context.Context, image exportImage) error {
	b.startSection(image.title)
	tars := filepath.Join(b.work, "tars")
	defer os.RemoveAll(tars)
	return b.withPrepared(ctx, image.target, image.before, func(prepared string) error {
		return turns(b.runs, image.contenders, func(who contender) (err error) {
			var r result
			if who == pgzipAlone {
				r, err = compressAlone(tars)
			} else {
				r, err = b.exportOnce(ctx, prepared, tars, image.target, who)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", who.name, err)
			}
			b.add(cmp.Or(who.work, image.target), who.name, r.readings()...)
			return nil
		})
	})
}

// withPrepared builds a target with the stock daemon, which ends, and hands on its
// root.
func (b *bench) withPrepared(ctx context.Context, target, output string, do func(root string) error) error {
	log.Printf("building %s", target)
	return b.withDaemon(ctx, "buildkitd", "", func(d *daemon) error {
		if _, err := d.build(ctx, target, output); err != nil {
			return err
		}
		if err := d.Stop(); err != nil {
			return err
		}
		return do(d.root())
	})
}

func (b *bench) exportOnce(ctx context.Context, prepared, tars, target string, who contender) (r result, err error) {
	err = b.withDaemon(ctx, who.binary, prepared, func(d *daemon) error {
		if r, err = d.export(ctx, target, "force-compression=true,compression="+who.compression); err != nil {
			return err
		}
		image, err := readImage(filepath.Join(d.root(), "runc-overlayfs", "content", "blobs"), r.digest)
		if err != nil {
			return err
		}
		if strings.HasPrefix(who.compression, "estargz") && !strings.Contains(who.compression, minChunkSize) {
			if err := image.check(); err != nil { // only what is right counts
				return err
			}
		}
		r.layers = image.layers()
		if who == stockGzip {
			return image.unpack(tars)
		}
		return nil
	})
	return r, err
}

// A result is what one export took.
type result struct {
	digest       digest.Digest
	wall, cpu    time.Duration
	profiling    time.Duration // the part of wall in which the image was run and recorded
	idle, memory int64         // before, and at most; bytes
	layers       int64         // bytes of all of them, compressed
}

func (r result) readings() []reading {
	all := []reading{wall(r.wall), {float64(r.cpu), "cpu-ns/op"}}
	if r.profiling > 0 {
		all = append(all, reading{float64(r.profiling), "profiling-ns/op"})
	}
	if r.layers > 0 {
		all = append(all, bytesIn("layers", r.layers))
	}
	if r.memory > 0 {
		all = append(all, bytesIn("peak", r.memory))
	}
	return all
}

// export builds an image, or takes it from the root when it has been built there,
// and makes it one of the daemon's.
func (d *daemon) export(ctx context.Context, target, attributes string, args ...string) (r result, err error) {
	if err := d.forgetPeak(); err != nil {
		return r, err
	}
	if r.idle, err = d.peakMemory(); err != nil {
		return r, err
	}
	before, err := d.cpuTime()
	if err != nil {
		return r, err
	}
	metadata := filepath.Join(d.Dir, "metadata.json")
	progress, err := d.build(ctx, target, "type=image,name=bench,push=false,oci-mediatypes=true,"+attributes, append(args, "--metadata-file", metadata)...)
	if err != nil {
		return r, err
	}
	after, err := d.cpuTime()
	if err != nil {
		return r, err
	}
	r.cpu = after - before
	if r.memory, err = d.peakMemory(); err != nil {
		return r, err
	}
	if r.wall, r.profiling, err = exportTime(progress); err != nil {
		return r, err
	}
	var answer map[string]struct {
		Digest digest.Digest `json:"containerimage.digest"`
	}
	err = readJSON(metadata, &answer)
	r.digest = answer[target].Digest
	return r, err
}

// exportTime finds in the progress how long the export and the profile before it
// took by the daemon's clock, and the profile alone. A step that was not taken from the
// cache makes it worthless.
func exportTime(progress string) (took, profiling time.Duration, err error) {
	var begin, end time.Time
	cached := map[string]bool{}
	for v := range vertexes(progress) {
		if strings.Contains(v.Name, "] RUN ") || strings.Contains(v.Name, "] COPY ") {
			cached[v.Name] = cached[v.Name] || v.Cached
		}
		profile, export := strings.HasPrefix(v.Name, "[profile "), strings.HasSuffix(v.Name, "exporting to image")
		if !profile && !export || v.Completed == nil {
			continue
		}
		if begin.IsZero() || v.Started.Before(begin) {
			begin = *v.Started
		}
		if export {
			end = *v.Completed
		} else {
			profiling = max(profiling, v.Completed.Sub(*v.Started)) // besides it one stores the profile
		}
	}
	for name, ok := range cached {
		if !ok {
			return 0, 0, fmt.Errorf("%s ran again", name)
		}
	}
	if end.IsZero() || len(cached) == 0 {
		return 0, 0, errors.New("no export in the progress")
	}
	return end.Sub(begin), profiling, nil
}
