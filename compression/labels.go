package compression

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/labels"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// labelEStargz is where BuildKit remembers of a blob whether it is eStargz.
// Sharing it spares either side the other's look.
const labelEStargz = "buildkit.io/compression/estargz"

// The descriptor of a blob, as BuildKit keeps it in labels. BuildKit itself sets
// them only after its cache record names the blob, and a daemon killed in
// between would export the layer without the digest of its TOC ever after. So
// they are here before anybody names the blob.
const (
	labelMediaType  = "buildkit.io/blob/mediatype"
	labelAnnotation = "buildkit.io/blob/annotation."
)

// labelWritten begins the label of a blob that was written here, Options ends
// it. The options are in the key so that a blob can have been written with
// several.
const labelWritten = "buildkitd-esgz/estargz.chunks."

func writtenHere(of map[string]string) bool {
	for k := range of {
		if strings.HasPrefix(k, labelWritten) {
			return true
		}
	}
	return false
}

func writtenWith(of map[string]string, opts Options) bool {
	_, ok := of[labelWritten+opts.String()]
	return ok
}

// annotationsOf are those of the descriptor of a blob.
func annotationsOf(blob *estargz.Info) map[string]string {
	return map[string]string{
		labels.LabelUncompressed:           blob.DiffID.String(),
		estargz.TOCDigestAnnotation:        blob.TOCDigest.String(),
		estargz.UncompressedSizeAnnotation: strconv.FormatInt(blob.UncompressedSize, 10),
	}
}

// labelsOf are those of a blob with these annotations.
func labelsOf(annotations map[string]string) map[string]string {
	set := map[string]string{
		labels.LabelUncompressed: annotations[labels.LabelUncompressed],
		labelEStargz:             "true",
		labelMediaType:           Type{}.MediaType(),
	}
	for k, v := range annotations {
		set[labelAnnotation+k] = v
	}
	return set
}

// detect says whether a local blob is eStargz, and remembers the answer, unless
// the blob could not be read.
func detect(ctx context.Context, cs content.Store, info content.Info) (bool, error) {
	if is, err := strconv.ParseBool(info.Labels[labelEStargz]); err == nil {
		return is, nil
	}
	ra, err := cs.ReaderAt(ctx, ocispecs.Descriptor{Digest: info.Digest})
	if err != nil {
		return false, fmt.Errorf("layer %s: %w", info.Digest, err)
	}
	defer ra.Close()
	in := &readerAt{ReaderAt: ra}
	is := estargz.Detect(in, ra.Size())
	if in.err != nil {
		return false, fmt.Errorf("layer %s: %w", info.Digest, in.err)
	}
	return is, setLabels(ctx, cs, info, map[string]string{labelEStargz: strconv.FormatBool(is)})
}

// A readerAt remembers that a read failed, which says nothing about what is read.
type readerAt struct {
	io.ReaderAt
	err error
}

func (r *readerAt) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.ReaderAt.ReadAt(p, off)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// setLabels leaves the blob's other labels as they are. An empty value removes a
// label.
func setLabels(ctx context.Context, cs content.Store, info content.Info, set map[string]string) error {
	info.Labels = set
	fields := make([]string, 0, len(set))
	for k := range set {
		fields = append(fields, "labels."+k)
	}
	if _, err := cs.Update(ctx, info, fields...); err != nil {
		return fmt.Errorf("labels of layer %s: %w", info.Digest, err)
	}
	return nil
}
