package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/cachedigest"
	"github.com/moby/buildkit/util/cachestore"
	"github.com/opencontainers/go-digest"
)

// rootPath is the digest of "/", which selects everything of a build step's
// result. BuildKit uses it without ever saving the text.
var rootPath = digest.FromString("/")

// lookupText returns what was hashed to id, and the same for the digests in it.
func lookupText(ctx context.Context, id digest.Digest) (*cachedigest.Record, error) {
	if id == rootPath {
		return &cachedigest.Record{
			Digest: id,
			Type:   cachedigest.TypeString,
			Data:   []cachedigest.Frame{{ID: cachedigest.FrameIDData, Data: []byte("/")}},
		}, nil
	}
	get := func(id digest.Digest) (cachedigest.Type, []cachedigest.Frame, error) {
		kind, frames, err := cachedigest.GetDefaultDB().Get(ctx, id.String())
		if err != nil {
			return "", nil, fmt.Errorf("plain text of %s: %w", id, err)
		}
		return kind, frames, nil
	}
	kind, frames, err := get(id)
	if err != nil {
		return nil, err
	}
	record := &cachedigest.Record{Digest: id, Type: kind, Data: frames}
	if err := record.LoadSubRecords(get); err != nil {
		return nil, fmt.Errorf("digests in %s: %w", id, err)
	}
	return record, nil
}

// allTexts returns all that was saved.
func allTexts(ctx context.Context) ([]*cachedigest.Record, error) {
	var records []*cachedigest.Record
	byDigest := map[digest.Digest]*cachedigest.Record{}
	err := cachedigest.GetDefaultDB().All(ctx, func(key string, kind cachedigest.Type, frames []cachedigest.Frame) error {
		id, err := digest.Parse(key)
		if err != nil {
			return fmt.Errorf("key %q: %w", key, err)
		}
		byDigest[id] = &cachedigest.Record{Digest: id, Type: kind, Data: cloned(frames)}
		records = append(records, byDigest[id])
		return nil
	})
	if err != nil {
		return nil, err
	}
	get := func(id digest.Digest) (cachedigest.Type, []cachedigest.Frame, error) {
		if record, ok := byDigest[id]; ok {
			return record.Type, record.Data, nil
		}
		return "", nil, fmt.Errorf("plain text of %s: %w", id, cachedigest.ErrNotFound)
	}
	for _, record := range records {
		if err := record.LoadSubRecords(get); err != nil {
			return nil, fmt.Errorf("digests in %s: %w", record.Digest, err)
		}
	}
	return records, nil
}

// cloned copies frames out of the database, whose memory is theirs only as
// long as the transaction lasts.
func cloned(frames []cachedigest.Frame) []cachedigest.Frame {
	out := slices.Clone(frames)
	for i := range out {
		out[i].Data = slices.Clone(out[i].Data)
	}
	return out
}

// textsOf returns what is known about the digests of a cache key.
func textsOf(ctx context.Context, record *cachestore.Record) []*cachedigest.Record {
	ids := map[digest.Digest]struct{}{record.Digest: {}}
	for _, link := range record.Parents {
		ids[link.Digest] = struct{}{}
		ids[link.Selector] = struct{}{}
	}
	delete(ids, "")
	var texts []*cachedigest.Record
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		text, err := lookupText(ctx, id)
		switch {
		case err == nil:
			texts = append(texts, text)
		case !errors.Is(err, cachedigest.ErrNotFound):
			bklog.G(ctx).WithError(err).Error("cache debug info")
		}
	}
	return texts
}

func printText(w io.Writer, record *cachedigest.Record) {
	fmt.Fprintf(w, "%s (%s):\n", record.Digest, record.Type)
	for _, sub := range record.SubRecords {
		fmt.Fprintf(w, "  %s (%s):\n", sub.Digest, sub.Type)
	}
	for _, frame := range record.Data {
		switch frame.ID {
		case cachedigest.FrameIDData:
			fmt.Fprintf(w, "  %s: %s\n", frame.ID, frame.Data)
		case cachedigest.FrameIDSkip:
			fmt.Fprintf(w, "  skipping %d bytes\n", binary.LittleEndian.Uint32(frame.Data))
		}
	}
	for _, sub := range record.SubRecords {
		fmt.Fprintln(w)
		printText(w, sub)
	}
}

func printKeys(w io.Writer, records []*keyRecord) {
	for _, record := range records {
		printKey(w, record)
		fmt.Fprintln(w)
	}
}

func printKey(w io.Writer, record *keyRecord) {
	fmt.Fprintf(w, "ID: %d", record.ID)
	if record.Random {
		fmt.Fprint(w, " (random)")
	}
	fmt.Fprintln(w)
	if record.Digest != "" {
		fmt.Fprintf(w, "Digest: %s\n", record.Digest)
	}
	printParents(w, record.Parents)
	printChildren(w, record.ChildIDs)
	if len(record.Debug) > 0 {
		fmt.Fprintln(w, "Plaintexts:")
	}
	for _, text := range record.Debug {
		printText(w, text)
		fmt.Fprintln(w)
	}
}

func printParents(w io.Writer, parents []cachestore.Link) {
	if len(parents) == 0 {
		return
	}
	sorted := slices.SortedStableFunc(slices.Values(parents), func(a, b cachestore.Link) int {
		return cmp.Or(cmp.Compare(a.Input, b.Input), cmp.Compare(a.Digest, b.Digest))
	})
	fmt.Fprintln(w, "Parents:")
	for _, link := range sorted {
		fmt.Fprintf(w, "  Input %d:\t%d\t%s\n", link.Input, link.Record.ID, link.Digest)
		if link.Selector != "" {
			fmt.Fprintf(w, "    Selector: %s\n", link.Selector)
		}
	}
}

func printChildren(w io.Writer, children map[int]map[int]struct{}) {
	if len(children) == 0 {
		return
	}
	fmt.Fprintln(w, "Children:")
	for _, input := range slices.Sorted(maps.Keys(children)) {
		var ids []string
		for _, id := range slices.Sorted(maps.Keys(children[input])) {
			ids = append(ids, fmt.Sprint(id))
		}
		fmt.Fprintf(w, "  Input %d:\t %s\n", input, strings.Join(ids, ", "))
	}
}
