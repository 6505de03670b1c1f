package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"path/filepath"
	"slices"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
)

// A subject is an image that is made in two ways, which are compared.
type subject struct {
	name  string // of its Dockerfile
	ready string // in the line that says that it is ready; none if it ends by itself

	recorded     []record // what the optimizer saw
	ours, theirs side
}

// A side is one way of making the image, with what was measured of it.
type side struct {
	tag    string
	layers []layer
	starts []start
}

func (s *subject) sides() []*side { return []*side{&s.ours, &s.theirs} }

func subjects() []*subject {
	all := []*subject{
		{name: "python"},
		{name: "node", ready: "listening as uid 1500"},
		{name: "postgres", ready: "database system is ready to accept connections"},
		{name: "sqlite"},
	}
	for _, s := range all {
		s.ours.tag, s.theirs.tag = "profiled", "optimized"
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
func profile(ctx context.Context, c *config) (sections []section, err error) {
	r, err := startRegistry(ctx, c)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	all := subjects()
	if err := buildSubjects(ctx, c, r, all); err != nil {
		return nil, err
	}
	for _, s := range all {
		log.Printf("optimizing %s", s.name)
		if err := s.optimize(ctx, c, r); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if err := startSubjects(ctx, c, r, all); err != nil {
		return nil, err
	}
	return []section{filesSection(all), startsSection(all)}, nil
}

// optimize makes the other side's image, and reads both back.
func (s *subject) optimize(ctx context.Context, c *config, r *registry) (err error) {
	n, err := startNode(ctx, c)
	if err != nil {
		return err
	}
	recorded := filepath.Join(c.work, s.name+".json")
	err = n.run(ctx, "optimize", sameLevel, "-record-out", recorded, r.ref(s.name, plain), r.ref(s.name, s.theirs.tag))
	if err := errors.Join(err, n.stop()); err != nil {
		return err
	}
	if s.recorded, err = readRecord(recorded); err != nil {
		return err
	}
	for _, side := range s.sides() {
		if side.layers, err = readLayers(ctx, r.ref(s.name, side.tag)); err != nil {
			return err
		}
	}
	return nil
}

// The line that a node pulls over.
var nodeLink = shaped.Link{Delay: 20 * time.Millisecond, BytesPerSecond: 400e6 / 8}

// startSubjects starts every image cold, each time on a node of its own.
func startSubjects(ctx context.Context, c *config, r *registry, all []*subject) (err error) {
	line, err := shaped.New(r.Address, nodeLink)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, line.Close()) }()
	for run := range c.runs {
		for _, s := range all {
			sides := s.sides()
			if run%2 == 1 { // who goes first has no advantage in the end
				slices.Reverse(sides)
			}
			for _, side := range sides {
				cold, err := startCold(ctx, c, line, s.name+":"+side.tag, s.ready)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", s.name, side.tag, err)
				}
				log.Printf("run %d of %d, %s, %s: %.2fs, %.1f MB", run+1, c.runs, s.name, side.tag, cold.took.Seconds(), float64(cold.bytes())/1e6)
				side.starts = append(side.starts, cold)
			}
		}
	}
	return nil
}
