package main

import (
	"context"
	"fmt"
	"log"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// A subject is an image that is made in two ways, which are compared.
type subject struct {
	name  string // of its Dockerfile
	ready string // in the line that says that it is ready; none if it ends by itself

	recorded     map[file]int64 // what the optimizer saw, and how often
	theirs, ours side
}

func (s *subject) sides() []*side { return []*side{&s.theirs, &s.ours} }

func subjects() []*subject {
	all := []*subject{
		{name: "python"},
		{name: "node", ready: "listening as uid 1500"},
		{name: "postgres", ready: "database system is ready to accept connections"},
		{name: "sqlite"},
	}
	for _, s := range all {
		s.theirs = side{name: "ctr-remote image optimize", tag: "optimized"}
		s.ours = side{name: ourName, tag: "profiled"}
	}
	return all
}

// sameLevel has the optimizer compress as our daemon and stock gzip do. Its default
// is 9.
const sameLevel = "-estargz-compression-level=6"

// plain is the tag of the image that the optimizer starts from.
const plain = "gzip"

// profile builds each image once, and exports it twice: as our daemon does it
// by default, and as gzip, which the optimizer then converts. So both sides
// have the same files. They are compared, and started cold in turns.
func (b *bench) profile(ctx context.Context) error {
	return b.withRegistry(ctx, func(r *registry) error {
		all := subjects()
		if err := b.pushSubjects(ctx, r, all); err != nil {
			return err
		}
		b.startSection("What is put first, by `ctr-remote image optimize` and by our build")
		for _, s := range all {
			log.Printf("optimizing %s", s.name)
			if err := b.optimize(ctx, r, s); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			b.addFiles(s)
		}
		b.startSection("Cold starts behind " + describe(nodeLink))
		return r.withLine(nodeLink, func(line *shaped.Proxy) error { return b.startSubjects(ctx, line, all) })
	})
}

// pushSubjects builds the images with our daemon, and pushes each of them twice.
// The daemon's gzip layers are those of the stock one.
func (b *bench) pushSubjects(ctx context.Context, r *registry, all []*subject) error {
	return b.withDaemon(ctx, ourName, "", func(d *daemon) error {
		for _, s := range all {
			for tag, compression := range map[string]string{plain: "gzip", s.ours.tag: "estargz"} {
				log.Printf("pushing %s, %s", s.name, tag)
				if _, err := d.push(ctx, s.name, r.ref(s.name, tag), compression); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// optimize makes the other side's image, and reads both back.
func (b *bench) optimize(ctx context.Context, r *registry, s *subject) error {
	recorded := filepath.Join(b.work, s.name+".json")
	err := b.withNode(ctx, func(n *harness.Node) error {
		return run(n.Client(ctx, "optimize", sameLevel, "-record-out", recorded, r.ref(s.name, plain), r.ref(s.name, s.theirs.tag)))
	})
	if err != nil {
		return err
	}
	if s.recorded, err = readRecord(recorded); err != nil {
		return err
	}
	for _, side := range s.sides() {
		if err := side.read(ctx, r.ref(s.name, side.tag)); err != nil {
			return err
		}
	}
	return nil
}

// addFiles compares what both sides put first, and logs what differs.
func (b *bench) addFiles(s *subject) {
	missing, more := s.ours.without(s.recorded), s.theirs.without(s.ours.first)
	log.Printf("%s: recorded by optimize, and not first in ours: %v; only in ours: %v", s.name, missing, more)
	b.add(s.name, s.theirs.name, append(s.theirs.readings(), count("files-recorded", len(s.recorded)))...)
	b.add(s.name, s.ours.name, append(s.ours.readings(), count("recorded-files-missing", len(missing)), count("files-more", len(more)))...)
}

// readings are what the side puts first, as it is fetched and as it is read.
func (s *side) readings() []reading {
	var compressed, uncompressed int64
	for _, landmark := range s.landmarks {
		compressed += landmark
	}
	for _, size := range s.first {
		uncompressed += size
	}
	return []reading{bytesIn("first", compressed), bytesIn("uncompressed", uncompressed), count("files-first", len(s.first))}
}

// The line that a node pulls over.
var nodeLink = shaped.Link{Delay: 20 * time.Millisecond, BytesPerSecond: 400e6 / 8}

func describe(link shaped.Link) string {
	return fmt.Sprintf("%s and %d Mbit/s", link.Delay, link.BytesPerSecond*8/1e6)
}

// startSubjects starts every image cold, each time on a node of its own.
func (b *bench) startSubjects(ctx context.Context, line *shaped.Proxy, all []*subject) error {
	type start struct {
		*subject
		*side
	}
	var starts []start
	for _, s := range all {
		for _, side := range s.sides() {
			starts = append(starts, start{s, side})
		}
	}
	return turns(b.runs, starts, func(s start) error {
		took, requests, err := b.startCold(ctx, line, s.subject.name+":"+s.tag, s.ready)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", s.subject.name, s.tag, err)
		}
		b.add(s.subject.name, s.side.name, wall(took), bytesIn("fetched", shaped.Bytes(requests)),
			count("requests", len(requests)), count("prefetches", s.prefetches(requests)))
		return nil
	})
}

// prefetches is in how many requests the layer that took most got what lies in
// front of its landmark. Before it reads anything the snapshotter asks where the
// blob is, with a request for two bytes.
func (s *side) prefetches(all []shaped.Request) (most int) {
	requests := map[string]int{}
	for _, r := range all {
		var from int64
		if _, err := fmt.Sscanf(r.Range, "bytes=%d-", &from); err == nil && r.Range != "bytes=0-1" && from < s.landmarks[digest.Digest(r.Blob)] {
			requests[r.Blob]++
			most = max(most, requests[r.Blob])
		}
	}
	return most
}
