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

// startsSection compares the cold starts.
func startsSection(all []*subject) section {
	r := &results{}
	for _, s := range all {
		for i := range s.ours.starts {
			for _, side := range []*side{&s.theirs, &s.ours} {
				at := side.starts[i]
				r.add(s.name, side.tag, wall(at.took), bytesIn("fetched", at.bytes()), reading{float64(len(at.requests)), "requests"}, reading{float64(side.prefetches(at)), "prefetches"})
			}
		}
	}
	return r.section(fmt.Sprintf("Cold starts behind %s and %d Mbit/s", nodeLink.Delay, nodeLink.BytesPerSecond*8/1e6))
}

func megabytes(n int64) float64 { return float64(n) / 1e6 }

func ratio[T int64 | time.Duration](ours, theirs T) float64 { return float64(ours) / float64(theirs) }

// prefetches is in how many requests the layer that took most got what lies in
// front of its landmark. Before it reads anything the snapshotter asks where the
// blob is, with a request for two bytes.
func (s *side) prefetches(c start) int {
	landmarks := map[digest.Digest]int64{}
	for _, l := range s.layers {
		landmarks[l.digest] = l.landmark
	}
	most, requests := 0, map[digest.Digest]int{}
	for _, r := range c.requests {
		var from int64
		if _, err := fmt.Sscanf(r.Range, "bytes=%d-", &from); err == nil && r.Range != "bytes=0-1" && from < landmarks[digest.Digest(r.Blob)] {
			requests[digest.Digest(r.Blob)]++
			most = max(most, requests[digest.Digest(r.Blob)])
		}
	}
	return most
}
