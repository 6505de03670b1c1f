package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// filesTable compares what both sides put first, and lists what differs.
func filesTable(all []*subject) string {
	var b, notes strings.Builder
	b.WriteString("| image | recorded by optimize | not in ours | only in ours | files first, theirs | ours | MB first, theirs | ours | ratio | MB uncompressed, theirs | ours | ratio |\n")
	b.WriteString("|---|" + strings.Repeat("---:|", 11) + "\n")
	for _, s := range all {
		missing, extra := s.missing(), s.extra()
		theirs, theirsRead := s.theirs.prioritized()
		ours, oursRead := s.ours.prioritized()
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d | %.2f | %.2f | %.3f | %.2f | %.2f | %.3f |\n", s.name, len(s.recorded), len(missing), len(extra),
			s.theirs.files(), s.ours.files(), megabytes(theirs), megabytes(ours), ratio(ours, theirs),
			megabytes(theirsRead), megabytes(oursRead), ratio(oursRead, theirsRead))
		list(&notes, s.name+", not in ours", missing)
		list(&notes, s.name+", only in ours", extra)
	}
	return b.String() + notes.String()
}

// list shows as many files as explain a difference.
func list(b *strings.Builder, title string, files []string) {
	const most = 40
	slices.Sort(files)
	if len(files) > 0 {
		fmt.Fprintf(b, "\n%s:\n", title)
	}
	for i, f := range files {
		if i == most {
			fmt.Fprintf(b, "- and %d more\n", len(files)-most)
			return
		}
		fmt.Fprintf(b, "- %s\n", f)
	}
}

// startsTable compares the medians of the cold starts.
func startsTable(all []*subject) string {
	var b strings.Builder
	b.WriteString("| image | s until ready, theirs | ours | ratio | MB fetched, theirs | ours | ratio | requests, theirs | ours | prefetch requests a layer, theirs | ours |\n")
	b.WriteString("|---|" + strings.Repeat("---:|", 10) + "\n")
	for _, s := range all {
		t, o := &s.theirs, &s.ours
		fmt.Fprintf(&b, "| %s | %.2f | %.2f | %.2f | %.1f | %.1f | %.2f | %d | %d | %d | %d |\n", s.name,
			t.took().Seconds(), o.took().Seconds(), ratio(o.took(), t.took()),
			megabytes(t.bytes()), megabytes(o.bytes()), ratio(o.bytes(), t.bytes()),
			t.requests(), o.requests(), t.prefetches(), o.prefetches())
	}
	return b.String()
}

func megabytes(n int64) float64 { return float64(n) / 1e6 }

func ratio[T int64 | time.Duration](ours, theirs T) float64 { return float64(ours) / float64(theirs) }

func (s *side) took() time.Duration {
	return median(s.starts, func(c start) time.Duration { return c.took })
}

func (s *side) bytes() int64 { return median(s.starts, start.bytes) }

func (s *side) requests() int {
	return median(s.starts, func(c start) int { return len(c.requests) })
}

// prefetches is in how many requests the layer that took most got what lies in
// front of its landmark. Before it reads anything the snapshotter asks where the
// blob is, with a request for two bytes.
func (s *side) prefetches() int {
	landmarks := map[digest.Digest]int64{}
	for _, l := range s.layers {
		landmarks[l.digest] = l.landmark
	}
	return median(s.starts, func(c start) int {
		most, requests := 0, map[digest.Digest]int{}
		for _, r := range c.requests {
			var from int64
			if _, err := fmt.Sscanf(r.Range, "bytes=%d-", &from); err == nil && r.Range != "bytes=0-1" && from < landmarks[digest.Digest(r.Blob)] {
				requests[digest.Digest(r.Blob)]++
				most = max(most, requests[digest.Digest(r.Blob)])
			}
		}
		return most
	})
}
