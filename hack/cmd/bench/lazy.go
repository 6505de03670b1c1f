package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
)

// A puller is a daemon that builds upon an image.
type puller struct {
	name        string
	binary      string
	snapshotter string
}

var (
	eager     = puller{"overlayfs", "buildkitd", "overlayfs"}
	stockLazy = puller{"stock stargz", "buildkitd", "stargz"}
	ourLazy   = puller{"buildkitd-esgz stargz", "buildkitd-esgz", "stargz"}
)

// lazyLinks are those that cold builds are measured behind.
var lazyLinks = []shaped.Link{
	{Delay: 20 * time.Millisecond, BytesPerSecond: 400e6 / 8},
	{Delay: 80 * time.Millisecond, BytesPerSecond: 100e6 / 8},
}

// A job is a build upon an image by a puller, measured.
type job struct {
	who      puller
	tag      string
	commands string // of its RUN step
}

// A pulled is what one build took.
type pulled struct {
	wall     time.Duration
	bytes    int64 // of blobs, until the build ended
	requests int   // for blobs
}

const (
	runApp  = `python3 /app/app.py --once`
	readAll = `tar --one-file-system -cf - / 2>/dev/null | wc -c`
)

// lazy measures builds upon an image that is not here yet, and upon one that is.
func lazy(ctx context.Context, c *config) (sections []section, err error) {
	r, err := startRegistry(ctx, c)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	if err := pushLazyImages(ctx, c, r); err != nil {
		return nil, err
	}
	parts := []func(context.Context, *config, *registry) (section, error){warmBuilds, rebuiltBase, mounting}
	for _, link := range slices.Backward(lazyLinks) {
		parts = slices.Insert(parts, 0, func(ctx context.Context, c *config, r *registry) (section, error) { return coldBuilds(ctx, c, r, link) })
	}
	for _, part := range parts {
		s, err := part(ctx, c, r)
		if err != nil {
			return nil, err
		}
		sections = append(sections, s)
	}
	return sections, nil
}

func coldBuilds(ctx context.Context, c *config, r *registry, link shaped.Link) (s section, err error) {
	line, err := shaped.New(r.Address, link)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, line.Close()) }()
	all, title := &results{prefix: fmt.Sprintf("%s, %d Mbit/s: ", link.Delay, link.BytesPerSecond*8/1e6)}, fmt.Sprintf("Cold builds behind %s and %d Mbit/s", link.Delay, link.BytesPerSecond*8/1e6)
	jobs := []*job{
		{who: eager, tag: "gzip", commands: runApp},
		{who: stockLazy, tag: "plain", commands: runApp},
		{who: ourLazy, tag: "plain", commands: runApp},
		{who: stockLazy, tag: "profiled", commands: runApp},
		{who: ourLazy, tag: "profiled", commands: runApp},
		{who: eager, tag: "gzip", commands: readAll},
		{who: ourLazy, tag: "plain", commands: readAll},
	}
	err = turns(c.runs, jobs, func(run int, j *job) error {
		p, err := j.cold(ctx, c, line)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", j.who.name, j.tag, err)
		}
		log.Printf("run %d of %d, %s, %s, %.12s: %.1fs, %.1f MB, %d requests", run, c.runs, j.who.name, j.tag, j.commands, p.wall.Seconds(), float64(p.bytes)/1e6, p.requests)
		all.add(j.commands, j.who.name+" "+j.tag, wall(p.wall), bytesIn("fetched", p.bytes), reading{float64(p.requests), "requests"})
		return nil
	})
	if err != nil {
		return s, err
	}
	return all.section(title), nil
}

// cold builds with a daemon that has nothing yet.
func (j *job) cold(ctx context.Context, c *config, line *shaped.Proxy) (p pulled, err error) {
	d, err := startPuller(ctx, c, j.who)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := dropCaches(); err != nil {
		return p, err
	}
	line.Reset()
	begin := time.Now()
	if _, err := d.run(ctx, line.Addr()+"/demo:"+j.tag, j.commands); err != nil {
		return p, err
	}
	p.wall = time.Since(begin)
	requests := shaped.Blobs(line.Requests())
	p.bytes, p.requests = shaped.Bytes(requests), len(requests)
	return p, nil
}

func startPuller(ctx context.Context, c *config, who puller) (*daemon, error) {
	return startDaemon(ctx, c, who.binary, "", "--oci-worker-snapshotter="+who.snapshotter)
}

// run builds one RUN step upon an image and returns what it printed.
func (d *daemon) run(ctx context.Context, image, commands string) (string, error) {
	dir, err := os.MkdirTemp(d.c.work, "context")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	dockerfile := "FROM " + image + "\nUSER root\nENV PYTHONDONTWRITEBYTECODE=1\nRUN " + commands + "\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		return "", err
	}
	out, err := d.Client(ctx, "buildctl", "build", "--frontend=dockerfile.v0", "--no-cache", "--progress=plain",
		"--local=context="+dir, "--local=dockerfile="+dir).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build upon %s: %w\n%s", image, err, out)
	}
	return string(out), nil
}

// dropCaches makes the kernel forget files and directories that it has read.
func dropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}
