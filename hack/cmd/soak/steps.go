package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/pushed"
)

// An image is in the registry, with files in /data whose sums are known.
type image struct {
	name    string // without the registry
	sums    map[string]string
	estargz bool
	depth   int // of exports upon a base
}

// A step is something that a user of a daemon does.
type step struct {
	name string
	on   *daemon
	do   func(context.Context) error
}

func (w *world) randomStep(r *rand.Rand, d *daemon) step {
	im := w.pick(r)
	switch n := r.IntN(10); {
	case n < 5:
		return d.readStep(r, im)
	case n < 9:
		return d.exportStep(r, im)
	default:
		return d.pruneStep(r)
	}
}

func (w *world) pick(r *rand.Rand) image {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.images[r.IntN(len(w.images))]
}

// add makes an image one to build upon.
func (w *world) add(im image) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.images = append(w.images, im)
	// Those at the beginning are the bases.
	if most := 10; len(w.images) > most {
		w.images = slices.Delete(w.images, len(outputs), len(outputs)+1)
	}
}

func (w *world) newName() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.serial++
	return fmt.Sprint("soak/", w.serial, ":latest")
}

// outputs are the attributes of an export.
var outputs = []string{
	"compression=estargz,force-compression=true,oci-mediatypes=true,estargz-profile=none",
	"compression=estargz,force-compression=true,oci-mediatypes=true", // with a profile
	"compression=estargz,oci-mediatypes=true,estargz-profile=none",
	"compression=gzip,force-compression=true",
	"compression=zstd,oci-mediatypes=true",
	"compression=zstd,force-compression=true,oci-mediatypes=true",
}

// pushBases pushes an image in each way.
func (w *world) pushBases(ctx context.Context, r *rand.Rand) error {
	for _, output := range outputs {
		dir, err := w.temp()
		if err != nil {
			return err
		}
		path, err := exec.LookPath("busybox")
		if err != nil {
			return err
		}
		busybox, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		im := image{name: w.newName(), sums: map[string]string{}, estargz: strings.Contains(output, "estargz")}
		if err := os.WriteFile(filepath.Join(dir, "busybox"), busybox, 0o755); err != nil {
			return err
		}
		for i := range 30 {
			size := 1 + r.IntN(100_000)
			if i < 3 {
				size = 3_000_000 + r.IntN(3_000_000)
			}
			name := fmt.Sprint("base-", i)
			if im.sums[name], err = writeNoise(filepath.Join(dir, name), r, size); err != nil {
				return err
			}
		}
		const dockerfile = `FROM scratch
COPY busybox /bin/
RUN ["/bin/busybox", "--install", "-s", "/bin"]
COPY base-0 base-1 /data/
COPY base-* /data/
CMD ["sh", "-c", "cat /data/base-1 /data/base-2 /data/base-9 >/dev/null"]
`
		d := w.daemons[0]
		if err := d.export(ctx, dir, dockerfile, im, output); err != nil {
			return fmt.Errorf("base: %w", err)
		}
		w.images = append(w.images, im)
	}
	return nil
}

// writeNoise returns the sum of what it wrote, which compresses by a half.
func writeNoise(file string, r *rand.Rand, size int) (sum string, err error) {
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(r.Uint32()) & 0xf
	}
	return fmt.Sprintf("%x", sha256.Sum256(content)), os.WriteFile(file, content, 0o644)
}

// readStep reads files of an image in a RUN step and compares their sums.
func (d *daemon) readStep(r *rand.Rand, im image) step {
	names := slices.Sorted(maps.Keys(im.sums))
	r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	names = names[:1+r.IntN(len(names))]
	salt := r.IntN(3)
	return step{name: fmt.Sprintf("read %d files of %s", len(names), im.name), on: d, do: func(ctx context.Context) error {
		dir, err := d.w.temp()
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		out := filepath.Join(dir, "out")
		if err := d.build(ctx, dir, d.reads(im, names, salt), client.ExportEntry{Type: client.ExporterLocal, OutputDir: out}); err != nil {
			return err
		}
		var want bytes.Buffer
		for _, name := range names {
			fmt.Fprintf(&want, "%s  %s\n", im.sums[name], name)
		}
		got, err := os.ReadFile(filepath.Join(out, "sums"))
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want.Bytes()) {
			return fmt.Errorf("%w sums:\n%swant:\n%s", errWrong, got, want.Bytes())
		}
		return nil
	}}
}

// reads is a Dockerfile that makes the sums of files of an image. Busybox notices a
// full disk when it copies, and not when it writes sums.
func (d *daemon) reads(im image, names []string, salt int) string {
	return fmt.Sprintf("FROM %s/%s AS all\nRUN cd /data && sums=$(sha256sum %s) && echo \"$sums\" | cat >/sums # %d\nFROM scratch\nCOPY --from=all /sums /\n",
		d.gate.address, im.name, strings.Join(names, " "), salt)
}

// exportStep pushes an image with one more file.
func (d *daemon) exportStep(r *rand.Rand, base image) step {
	for base.depth > 3 {
		base = d.w.pick(r)
	}
	output := outputs[r.IntN(len(outputs))]
	im := image{name: d.w.newName(), sums: maps.Clone(base.sums), depth: base.depth + 1, estargz: strings.Contains(output, "estargz") && strings.Contains(output, "force")}
	seed, size, file := r.Uint64(), 1+r.IntN(3_000_000), fmt.Sprint("more-", im.depth)
	run := r.IntN(2) == 0
	return step{name: fmt.Sprintf("export %s upon %s with %s", im.name, base.name, output), on: d, do: func(ctx context.Context) error {
		dir, err := d.w.temp()
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		sum, err := writeNoise(filepath.Join(dir, file), rand.New(rand.NewPCG(seed, 0)), size)
		if err != nil {
			return err
		}
		im.sums[file] = sum
		dockerfile := fmt.Sprintf("FROM %s/%s\nCOPY %s /data/\n", d.gate.address, base.name, file)
		if run {
			dockerfile += "RUN cat /data/base-5 >/five\n"
		}
		if err := d.export(ctx, dir, dockerfile, im, output); err != nil {
			return err
		}
		d.w.add(im)
		return nil
	}}
}

// export pushes an image and checks its layers.
func (d *daemon) export(ctx context.Context, dir, dockerfile string, im image, output string) error {
	attrs := map[string]string{"name": d.gate.address + "/" + im.name, "push": "true"}
	for attr := range strings.SplitSeq(output, ",") {
		key, value, _ := strings.Cut(attr, "=")
		attrs[key] = value
	}
	if err := d.build(ctx, dir, dockerfile, client.ExportEntry{Type: client.ExporterImage, Attrs: attrs}); err != nil {
		return err
	}
	found, err := pushed.Resolve(ctx, d.w.registry.Address+"/"+im.name)
	if err != nil {
		return fmt.Errorf("%w image %s: %w", errWrong, im.name, err)
	}
	for _, f := range found.Images {
		if im.estargz && strings.Contains(output, "force") {
			_, err = f.CheckEStargz(ctx)
		}
		for _, layer := range f.Manifest.Layers {
			if err == nil {
				_, err = f.Blob(ctx, layer)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("%w image %s: %w", errWrong, im.name, err)
	}
	return nil
}

func (d *daemon) pruneStep(r *rand.Rand) step {
	opts := []client.PruneOption{client.PruneAll}
	if r.IntN(2) == 0 {
		opts = []client.PruneOption{client.WithKeepOpt(0, int64(r.IntN(100))<<20, 0, 0)}
	}
	return step{name: "prune", on: d, do: func(ctx context.Context) error { return d.client.Prune(ctx, nil, opts...) }}
}

// build runs a Dockerfile upon the files of a directory.
func (d *daemon) build(ctx context.Context, dir, dockerfile string, to client.ExportEntry) error {
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		return err
	}
	mount, err := fsutil.NewFS(dir)
	if err != nil {
		return err
	}
	status := make(chan *client.SolveStatus)
	var logs bytes.Buffer
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for s := range status {
			for _, l := range s.Logs {
				logs.Write(l.Data)
			}
		}
		return nil
	})
	g.Go(func() error {
		_, err := d.client.Solve(ctx, nil, client.SolveOpt{
			Frontend:    "dockerfile.v0",
			LocalMounts: map[string]fsutil.FS{"context": mount, "dockerfile": mount},
			Exports:     []client.ExportEntry{to},
			Session:     []session.Attachable{d.w.logins},
		}, status)
		return err
	})
	if err := g.Wait(); err != nil {
		return fmt.Errorf("%w\n%s", err, logs.Bytes())
	}
	return nil
}
