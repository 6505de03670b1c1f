package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// filesSection compares what both sides put first, and lists what differs.
func filesSection(all []*subject) section {
	sec := section{
		Title: "What is put first, by `ctr-remote image optimize` and by our build",
		Table: table{Columns: []string{"image", "recorded by optimize", "not in ours", "only in ours", "files first, theirs", "ours", "MB first, theirs", "ours", "ratio", "MB uncompressed, theirs", "ours", "ratio"}},
	}
	for _, s := range all {
		missing, extra := s.missing(), s.extra()
		theirs, theirsRead := s.theirs.prioritized()
		ours, oursRead := s.ours.prioritized()
		sec.Table.add(s.name, fmt.Sprint(len(s.recorded)), fmt.Sprint(len(missing)), fmt.Sprint(len(extra)),
			fmt.Sprint(s.theirs.files()), fmt.Sprint(s.ours.files()),
			fmt.Sprintf("%.2f", megabytes(theirs)), fmt.Sprintf("%.2f", megabytes(ours)), fmt.Sprintf("%.3f", ratio(ours, theirs)),
			fmt.Sprintf("%.2f", megabytes(theirsRead)), fmt.Sprintf("%.2f", megabytes(oursRead)), fmt.Sprintf("%.3f", ratio(oursRead, theirsRead)))
		sec.Notes = append(sec.Notes, list(s.name+", not in ours", missing)...)
		sec.Notes = append(sec.Notes, list(s.name+", only in ours", extra)...)
	}
	return sec
}

// list shows as many files as explain a difference.
func list(title string, files []string) []string {
	const most = 40
	if len(files) == 0 {
		return nil
	}
	slices.Sort(files)
	more := ""
	if len(files) > most {
		more = fmt.Sprintf(", and %d more", len(files)-most)
	}
	return []string{title + ": " + strings.Join(files[:min(len(files), most)], "; ") + more}
}

// startsSection compares the medians of the cold starts.
func startsSection(all []*subject) section {
	sec := section{
		Title: fmt.Sprintf("Cold starts behind %s and %d Mbit/s", nodeLink.Delay, nodeLink.BytesPerSecond*8/1e6),
		Table: table{Columns: []string{"image", "s until ready, theirs", "ours", "ratio", "MB fetched, theirs", "ours", "ratio", "requests, theirs", "ours", "prefetch requests a layer, theirs", "ours"}},
		Bars:  &bars{Unit: "s"},
	}
	for _, s := range all {
		t, o := &s.theirs, &s.ours
		sec.Table.add(s.name, fmt.Sprintf("%.2f", t.took().Seconds()), fmt.Sprintf("%.2f", o.took().Seconds()), fmt.Sprintf("%.2f", ratio(o.took(), t.took())),
			fmt.Sprintf("%.1f", megabytes(t.bytes())), fmt.Sprintf("%.1f", megabytes(o.bytes())), fmt.Sprintf("%.2f", ratio(o.bytes(), t.bytes())),
			fmt.Sprint(t.requests()), fmt.Sprint(o.requests()), fmt.Sprint(t.prefetches()), fmt.Sprint(o.prefetches()))
		sec.Bars.add(s.name+", optimized", t.took().Seconds())
		sec.Bars.add(ourName+", "+s.name, o.took().Seconds())
	}
	return sec
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
