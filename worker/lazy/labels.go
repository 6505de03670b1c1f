package lazy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/opencontainers/go-digest"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/blob"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// The labels by which BuildKit's cache tells a snapshotter where a layer is.
// They stand there twice: bare, to stay with the snapshot, and each followed by
// a dot and an ID for the time of one call, since one layer may be in several
// places. Sessions come with the latter only, with a number before that ID. The
// label with the digest of the TOC is named like the annotation.
const (
	refLabel     = "containerd.io/snapshot/remote/stargz.reference"
	digestLabel  = "containerd.io/snapshot/remote/stargz.digest"
	layersLabel  = "containerd.io/snapshot/remote/stargz.layers"
	sessionLabel = "containerd.io/snapshot/remote/stargz.session"
)

// Hosts returns the hosts that have the images of a reference, with the
// credentials of a session, or with none if that is empty.
type Hosts func(ref reference.Spec, session string) ([]docker.RegistryHost, error)

func keyOf(labels map[string]string) (store.Key, error) {
	if labels[estargz.TOCDigestAnnotation] == "" {
		return store.Key{}, errors.New("it is no eStargz, or its descriptor does not tell the digest of its TOC")
	}
	return newKey(labels[digestLabel], labels[estargz.TOCDigestAnnotation])
}

func newKey(blob, toc string) (key store.Key, err error) {
	if key.Blob, err = digest.Parse(blob); err != nil {
		return key, fmt.Errorf("digest %q of the layer: %w", blob, err)
	}
	if key.TOC, err = digest.Parse(toc); err != nil {
		return key, fmt.Errorf("digest %q of the TOC: %w", toc, err)
	}
	return key, nil
}

func idOf(key store.Key) string { return key.Blob.String() + "@" + key.TOC.String() }

func parseID(id string) (store.Key, error) {
	blob, toc, _ := strings.Cut(id, "@")
	return newKey(blob, toc)
}

// others are the layers of the same image above this one.
func others(labels map[string]string) []digest.Digest {
	var digests []digest.Digest
	for text := range strings.SplitSeq(labels[layersLabel], ",") {
		d, err := digest.Parse(text)
		if err == nil && text != labels[digestLabel] {
			digests = append(digests, d)
		}
	}
	return digests
}

// places are where the labels say that the layer is: one for each session that
// came with a place. A place may have the layer in another blob than the snapshot's:
// BuildKit names snapshots by the digest of the TOC.
func (l *Layers) places(labels map[string]string) []blob.Source {
	var sources []blob.Source
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		id, ok := strings.CutPrefix(key, refLabel+".")
		if !ok {
			continue
		}
		sessions := sessionsOf(labels, id)
		if len(sessions) == 0 {
			sessions = []string{""}
		}
		for _, session := range sessions {
			sources = l.appendPlace(sources, labels[key], otherBlob(labels, id), session)
		}
	}
	if len(sources) == 0 {
		sources = l.appendPlace(sources, labels[refLabel], "", "")
	}
	return sources
}

// otherBlob is the blob of a call's place if it is not the snapshot's.
func otherBlob(labels map[string]string, id string) digest.Digest {
	d, err := digest.Parse(labels[digestLabel+"."+id])
	if err != nil || d.String() == labels[digestLabel] {
		return ""
	}
	return d
}

// appendPlace leaves out what cannot be understood: another place may do.
func (l *Layers) appendPlace(sources []blob.Source, ref string, other digest.Digest, session string) []blob.Source {
	spec, err := reference.Parse(ref)
	if err != nil {
		return sources
	}
	return append(sources, l.source(spec, other, session))
}

func (l *Layers) source(spec reference.Spec, other digest.Digest, session string) blob.Source {
	s := blob.Source{
		Digest:     other,
		Registry:   spec.Hostname(),
		Repository: strings.TrimPrefix(spec.Locator, spec.Hostname()+"/"),
		Reader:     session,
		Hosts:      func() ([]docker.RegistryHost, error) { return l.opts.Hosts(spec, session) },
	}
	if session != "" {
		s.Alive = func() bool { return l.opts.Alive(session) }
		s.Answered = func() { l.access.grant(grant{session, placeOf(s)}) }
		s.Successors = func(d digest.Digest) []blob.Source {
			var sources []blob.Source
			for _, other := range l.successors(session, d) {
				sources = append(sources, l.source(spec, s.Digest, other))
			}
			return sources
		}
	}
	return s
}

// public are the same places for whoever may read them without credentials, as
// long as no build does.
func (l *Layers) public(labels map[string]string) []blob.Source {
	var sources []blob.Source
	for key, ref := range labels {
		if id, ok := strings.CutPrefix(key, refLabel+"."); ok {
			sources = l.appendPlace(sources, ref, otherBlob(labels, id), "")
		}
	}
	return sources
}

// CallLabels are those that BuildKit adds to a lazy snapshot for some sessions: kept are
// the labels by which the snapshot can be prepared.
func CallLabels(kept map[string]string, sessions []string) map[string]string {
	const id = ".call"
	call := map[string]string{}
	for name, value := range kept {
		if !strings.HasPrefix(name, sessionLabel) { // an annotation of the image may be called so
			call[name+id] = value
		}
	}
	for i, session := range sessions {
		call[sessionLabel+"."+strconv.Itoa(i)+id] = session
	}
	return call
}

func sessionsOf(labels map[string]string, id string) []string {
	var sessions []string
	for i := 0; ; i++ {
		session, ok := labels[sessionLabel+"."+strconv.Itoa(i)+"."+id]
		if !ok {
			return sessions
		}
		sessions = append(sessions, session)
	}
}

// An Origin says where a mounted layer came from.
type Origin struct {
	Ref         string            // of the image
	Snapshot    map[string]string // labels by which it can be prepared again
	Annotations map[string]string // of its descriptor
}

// Origin returns that of the layer of a snapshot with this blob.
func (l *Layers) Origin(blob digest.Digest) (o Origin, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.mounts {
		if m.key.Blob == blob {
			return m.origin, true
		}
	}
	return o, false
}

func originOf(labels map[string]string) Origin {
	kept := map[string]string{}
	for _, name := range []string{refLabel, digestLabel, layersLabel, estargz.TOCDigestAnnotation} {
		kept[name] = labels[name]
	}
	return Origin{Ref: labels[refLabel], Snapshot: kept, Annotations: map[string]string{estargz.TOCDigestAnnotation: labels[estargz.TOCDigestAnnotation]}}
}

// KeptLabels leaves out the labels that came for one call only, which must not be
// kept: they name sessions.
func KeptLabels(labels map[string]string) map[string]string {
	var ends []string
	for name := range labels {
		id, ok := strings.CutPrefix(name, refLabel+".")
		if !ok {
			id, ok = strings.CutPrefix(name, sessionLabel+".")
			_, id, _ = strings.Cut(id, ".") // behind the number
		}
		if ok && id != "" {
			ends = append(ends, "."+id)
		}
	}
	kept := map[string]string{}
	for name, value := range labels {
		if !slices.ContainsFunc(ends, func(end string) bool { return strings.HasSuffix(name, end) }) {
			kept[name] = value
		}
	}
	return kept
}

type callKey struct{}

// WithLabels returns a context for a call that brings labels which are not to be
// kept.
func WithLabels(ctx context.Context, labels map[string]string) context.Context {
	return context.WithValue(ctx, callKey{}, labels)
}

func callLabels(ctx context.Context) (labels map[string]string, ok bool) {
	labels, ok = ctx.Value(callKey{}).(map[string]string)
	return labels, ok
}
