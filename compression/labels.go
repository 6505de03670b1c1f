package compression

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// labelEStargz is where BuildKit remembers of a blob whether it is eStargz.
// Sharing it spares either side the other's look.
const labelEStargz = "buildkit.io/compression/estargz"

// labelWritten begins the label of a blob that was written here, Options ends
// it. The options are in the key so that a blob can have been written with
// several.
const labelWritten = "buildkitd-esgz/estargz.chunks."

func writtenHere(labels map[string]string) bool {
	for k := range labels {
		if strings.HasPrefix(k, labelWritten) {
			return true
		}
	}
	return false
}

func writtenWith(labels map[string]string, opts Options) bool {
	_, ok := labels[labelWritten+opts.String()]
	return ok
}

// detect says whether a local blob is eStargz, and remembers the answer.
func detect(ctx context.Context, cs content.Store, info content.Info) (bool, error) {
	if is, err := strconv.ParseBool(info.Labels[labelEStargz]); err == nil {
		return is, nil
	}
	ra, err := cs.ReaderAt(ctx, ocispecs.Descriptor{Digest: info.Digest})
	if err != nil {
		return false, fmt.Errorf("layer %s: %w", info.Digest, err)
	}
	defer ra.Close()
	is := estargz.Detect(ra, ra.Size())
	return is, setLabels(ctx, cs, info, map[string]string{labelEStargz: strconv.FormatBool(is)})
}

// setLabels leaves the blob's other labels as they are.
func setLabels(ctx context.Context, cs content.Store, info content.Info, labels map[string]string) error {
	info.Labels = labels
	fields := make([]string, 0, len(labels))
	for k := range labels {
		fields = append(fields, "labels."+k)
	}
	if _, err := cs.Update(ctx, info, fields...); err != nil {
		return fmt.Errorf("labels of layer %s: %w", info.Digest, err)
	}
	return nil
}
