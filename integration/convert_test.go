package integration

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/pushed"
)

const (
	dockerList   = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig = "application/vnd.docker.container.image.v1+json"
)

func TestConvert(t *testing.T) {
	needs(t)
	name := repositoryName(t)
	image := registry(t) + "/" + name
	layers := convertible(t)
	d, other := startDaemon(t, ours), startDaemon(t, ours)

	// A conversion changes layers, what the config says of them, and nothing else.
	t.Run("all but layers stays", func(t *testing.T) {
		for tag, s := range map[string]source{
			":oci-index":       {kind: ocispecs.MediaTypeImageIndex, layers: ocispecs.MediaTypeImageLayerZstd, config: fullConfig},
			":docker-list":     {kind: dockerList, layers: dockerLayer, config: fullConfig},
			":oci-manifest":    {kind: ocispecs.MediaTypeImageManifest, layers: ocispecs.MediaTypeImageLayer, config: fullConfig},
			":docker-manifest": {kind: dockerManifest, layers: dockerLayer, config: fullConfig},
		} {
			t.Run(tag, func(t *testing.T) {
				s.push(t, image+tag, layers)
				p := d.build(t, tempDir(t), "--output", profiled(image+tag+"-converted", "estargz-convert="+image+tag))
				require.Empty(t, slices.DeleteFunc(p.warnings, isForeign))
				requireConverted(t, image+tag, image+tag+"-converted", layers)
			})
		}
	})

	// Layers that are eStargz already are kept, and not pulled. The platforms are
	// those that are asked for.
	t.Run("once more", func(t *testing.T) {
		p := countingProxy(t)
		other.build(t, tempDir(t), "--platform", "linux/arm64", "--attest", "type=provenance,mode=max",
			"--output", estargz(image+":twice", "estargz-convert="+p.address+"/"+name+":oci-index-converted"))
		once, twice := resolve(t, image+":oci-index-converted"), onlyImage(t, image+":twice")
		require.Equal(t, once.Images[1].Config, twice.Config)
		require.Equal(t, digestsOf(once.Images[1].Manifest.Layers), digestsOf(twice.Manifest.Layers))
		require.EqualValues(t, 1, p.requests.Load(), "no blob but the config is read")
		attestations := resolve(t, image+":twice").Attestations
		require.Len(t, attestations, 1)
		provenance, err := attestations[0].Blob(t.Context(), attestations[0].Manifest.Layers[0])
		require.NoError(t, err)
		require.Contains(t, string(provenance), once.Digest.Encoded(), "the source is a material")
	})

	// What a history lacks is added, the same by every daemon.
	plain := source{kind: ocispecs.MediaTypeImageManifest, layers: ocispecs.MediaTypeImageLayerGzip, config: plainConfig}
	t.Run("without history", func(t *testing.T) {
		plain.push(t, image+":plain", layers)
		for i, d := range []*daemon{d, other} {
			d.buildctl(t, "build", "--frontend", "dockerfile.v0", "--output", estargz(fmt.Sprintf("%s:plain-%d", image, i), "estargz-convert="+image+":plain"))
		}
		require.Equal(t, resolve(t, image+":plain-0").Digest, resolve(t, image+":plain-1").Digest)
		config := onlyImage(t, image+":plain-0").Config
		require.Len(t, config.History, len(layers))
		require.Zero(t, config.Created.Unix())
	})

	// An index need not name platforms, and may have what is no image.
	t.Run("without platforms", func(t *testing.T) {
		index := ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex}
		for _, architecture := range []string{"arm64", "amd64", "s390x"} {
			desc := plain.pushManifest(t, image+":unnamed-"+architecture, ocispecs.MediaTypeImageManifest, architecture, layers)
			index.Manifests = append(index.Manifests, desc)
		}
		config, err := pushed.PushBlob(t.Context(), image, "application/vnd.example", []byte("{}"))
		require.NoError(t, err)
		artifact, err := pushed.PushManifest(t.Context(), image+":artifact", ocispecs.MediaTypeImageManifest, ocispecs.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest, Config: config, Layers: []ocispecs.Descriptor{},
		})
		require.NoError(t, err)
		index.Manifests = append(index.Manifests, artifact)
		_, err = pushed.PushManifest(t.Context(), image+":unnamed", index.MediaType, index)
		require.NoError(t, err)
		p := d.build(t, tempDir(t), "--output", estargz(image+":named", "estargz-convert="+image+":unnamed"))
		var found []string
		for _, im := range resolve(t, image+":named").Images {
			found = append(found, platforms.Format(*im.Descriptor.Platform))
		}
		require.Equal(t, []string{"linux/arm64", "linux/amd64", "linux/s390x"}, found)
		require.Contains(t, strings.Join(p.warnings, "\n"), "leaves out manifest "+artifact.Digest.String())

		index.Manifests = []ocispecs.Descriptor{artifact, index.Manifests[0]}
		first, err := pushed.PushManifest(t.Context(), image+":unnamed", index.MediaType, index)
		require.NoError(t, err)
		d.build(t, tempDir(t), "--output", estargz(image+":named", "estargz-convert="+image+"@"+first.Digest.String()))
		require.Len(t, resolve(t, image+":named").Images, 1)
	})

	t.Run("refused", func(t *testing.T) {
		for named, args := range map[string][]string{
			"leave label:a out":           {"estargz-convert=" + image + ":plain", "--label", "a=b"},
			"leave target out":            {"estargz-convert=" + image + ":plain", "--target", "a"},
			"is for linux/amd64, not for": {"estargz-convert=" + image + ":plain", "--platform", "linux/arm64"},
			":missing: not found":         {"estargz-convert=" + image + ":missing"},
		} {
			_, err := d.tryBuild(t, tempDir(t), append(args[1:], "--output", estargz(image+":refused", args[0]))...)
			require.ErrorContains(t, err, named)
		}
	})
}

// A foreign image gets no profile, and BuildKit notes that nobody has asked for it.
func isForeign(warning string) bool {
	return warning == "profile of linux/arm64: this builder cannot run it" ||
		warning == "Requested platforms linux/amd64 do not match result platforms linux/amd64,linux/arm64"
}

// A source is an image with layers of one kind, for two platforms if its kind is
// an index.
type source struct {
	kind, layers string // media types
	config       func(architecture string) map[string]any
}

func (s source) push(t *testing.T, ref string, layers [][]byte) {
	t.Helper()
	if s.kind != ocispecs.MediaTypeImageIndex && s.kind != dockerList {
		s.pushManifest(t, ref, s.kind, "amd64", layers)
		return
	}
	kind := dockerManifest
	if s.kind == ocispecs.MediaTypeImageIndex {
		kind = ocispecs.MediaTypeImageManifest
	}
	index := ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: s.kind}
	for _, p := range []ocispecs.Platform{
		{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64", Variant: "v8"},
	} {
		desc := s.pushManifest(t, ref+"-"+p.Architecture, kind, p.Architecture, layers)
		desc.Platform = &p
		desc.Annotations = s.annotations("descriptor of " + p.Architecture)
		index.Manifests = append(index.Manifests, desc)
	}
	index.Annotations = s.annotations("index")
	_, err := pushed.PushManifest(t.Context(), ref, s.kind, index)
	require.NoError(t, err)
}

func (s source) annotations(of string) map[string]string {
	if s.layers == dockerLayer {
		return nil
	}
	return map[string]string{"org.example.of": of, "com.example/key": "a b,c=d \"é\""}
}

func (s source) pushManifest(t *testing.T, ref, kind, architecture string, layers [][]byte) ocispecs.Descriptor {
	t.Helper()
	config := s.config(architecture)
	manifest := ocispecs.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: kind, Annotations: s.annotations("manifest of " + architecture)}
	diffIDs := []digest.Digest{}
	for _, layer := range layers {
		blob := layer
		switch s.layers {
		case ocispecs.MediaTypeImageLayerZstd:
			blob = zstdOf(t, layer)
		case ocispecs.MediaTypeImageLayerGzip, dockerLayer:
			blob = gzipOf(t, layer)
		}
		desc, err := pushed.PushBlob(t.Context(), ref, s.layers, blob)
		require.NoError(t, err)
		manifest.Layers = append(manifest.Layers, desc)
		diffIDs = append(diffIDs, digest.FromBytes(layer))
	}
	config["rootfs"] = map[string]any{"type": "layers", "diff_ids": diffIDs}
	raw, err := json.Marshal(config)
	require.NoError(t, err)
	configType := ocispecs.MediaTypeImageConfig
	if kind == dockerManifest {
		configType = dockerConfig
	}
	manifest.Config, err = pushed.PushBlob(t.Context(), ref, configType, raw)
	require.NoError(t, err)
	desc, err := pushed.PushManifest(t.Context(), ref, kind, manifest)
	require.NoError(t, err)
	return desc
}

// fullConfig is a config with all fields that Docker knows, and with some that it
// knew once.
func fullConfig(architecture string) map[string]any {
	at := func(day int) string { return fmt.Sprintf("2021-03-%02dT05:06:07.123456789Z", day) }
	container := map[string]any{
		"Hostname": "0123456789ab", "Domainname": "example", "User": "12:34", "AttachStdin": false, "Tty": true,
		"ExposedPorts": map[string]any{"80/tcp": struct{}{}, "53/udp": struct{}{}},
		"Env":          []string{"PATH=/bin", "EMPTY=", "EQUAL=a=b", "SPACE=a b"},
		"Entrypoint":   []string{"busybox", "cat"}, "Cmd": []string{"/srv/read"},
		"Image": "sha256:0123", "ArgsEscaped": true, "NetworkDisabled": true, "MacAddress": "02:42:ac:11:00:02",
		"Volumes": map[string]any{"/data": struct{}{}}, "WorkingDir": "/srv/",
		"Labels":      map[string]string{"org.example.one": "1", "two": "a \"b\" <c> & é", "empty": ""},
		"OnBuild":     []string{"RUN exit 1", "COPY missing /"},
		"Shell":       []string{"/bin/sh", "-euc"},
		"StopSignal":  "SIGUSR1",
		"StopTimeout": 7,
		"Healthcheck": map[string]any{"Test": []string{"CMD-SHELL", "cat /srv/read"}, "Interval": 5e9, "Timeout": 1e9, "StartPeriod": 2e9, "StartInterval": 3e9, "Retries": 4},
	}
	return map[string]any{
		"architecture": architecture, "os": "linux", "author": "someone", "created": at(9),
		"docker_version": "20.10.7", "container": "0123", "container_config": container, "config": container,
		"history": []map[string]any{
			{"created": at(1), "created_by": "a layer of the base", "comment": "imported"},
			{"created": at(2), "created_by": "ENV EMPTY=", "empty_layer": true},
			{"created": at(3), "created_by": "the second", "author": "someone else"},
			{"created": at(4), "created_by": "the third"},
			{"created": at(5), "created_by": "the fourth"},
			{"created": at(6), "created_by": "LABEL", "empty_layer": true, "comment": "buildkit.dockerfile.v0"},
		},
	}
}

// plainConfig has no history and no time, as other builders leave them out.
func plainConfig(architecture string) map[string]any {
	return map[string]any{"architecture": architecture, "os": "linux", "config": map[string]any{"Cmd": []string{"/bin/cat", "/srv/read"}}}
}

// convertible are layers with what a conversion could lose, as tars.
func convertible(t *testing.T) [][]byte {
	t.Helper()
	busybox, err := os.ReadFile(staticBusybox(t))
	require.NoError(t, err)
	old := time.Unix(1_000_000_000, 0)
	attributes := map[string]string{"SCHILY.xattr.user.note": "a note\n", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	dir := func(name string, mode int64) tarEntry {
		return tarEntry{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode, ModTime: old}, nil}
	}
	return [][]byte{
		tarOf(t,
			dir("bin/", 0o755),
			tarEntry{tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, ModTime: old}, busybox},
			tarEntry{tar.Header{Name: "bin/cat", Typeflag: tar.TypeSymlink, Linkname: "busybox", ModTime: old}, nil}),
		tarOf(t,
			dir("srv/", 0o1777), dir("srv/gone/", 0o700),
			tarEntry{tar.Header{Name: "srv/gone/a", Typeflag: tar.TypeReg, Mode: 0o600}, []byte("a")},
			tarEntry{tar.Header{Name: "srv/read", Typeflag: tar.TypeReg, Mode: 0o6755, Uid: 3_000_000, Gid: 12, Uname: "user", Gname: "group", ModTime: old, PAXRecords: attributes}, []byte("read")},
			tarEntry{tar.Header{Name: "srv/unread", Typeflag: tar.TypeReg, Mode: 0o604, ModTime: old}, bytes.Repeat([]byte("unread"), 1000)},
			tarEntry{tar.Header{Name: "srv/hard", Typeflag: tar.TypeLink, Linkname: "srv/unread", ModTime: old}, nil},
			tarEntry{tar.Header{Name: "srv/device", Typeflag: tar.TypeChar, Mode: 0o620, Devmajor: 7, Devminor: 300}, nil},
			tarEntry{tar.Header{Name: "srv/fifo", Typeflag: tar.TypeFifo, Mode: 0o644}, nil}),
		tarOf(t), // not a single file
		tarOf(t,
			dir("srv/", 0o755),
			tarEntry{tar.Header{Name: "srv/.wh.unread", Typeflag: tar.TypeReg}, nil},
			dir("srv/gone/", 0o700),
			tarEntry{tar.Header{Name: "srv/gone/.wh..wh..opq", Typeflag: tar.TypeReg}, nil}),
	}
}

// requireConverted compares all of an image to what it was converted from.
func requireConverted(t *testing.T, source, converted string, layers [][]byte) {
	t.Helper()
	want, got := resolve(t, source), resolve(t, converted)
	requireEStargz(t, converted)
	require.Equal(t, want.Index == nil, got.Index == nil)
	if want.Index != nil {
		require.Equal(t, want.Index.Annotations, got.Index.Annotations)
	}
	require.Len(t, got.Images, len(want.Images))
	var entries strings.Builder
	for i, layer := range layers {
		writeEntries(t, &entries, i, layer)
	}
	for i, w := range want.Images {
		g := got.Images[i]
		require.Equal(t, w.Manifest.Annotations, g.Manifest.Annotations)
		require.Equal(t, w.Descriptor.Annotations, g.Descriptor.Annotations)
		if w.Descriptor.Platform != nil {
			require.Equal(t, platforms.Normalize(*w.Descriptor.Platform), *g.Descriptor.Platform)
		}
		require.Equal(t, configWithoutLayers(t, w), configWithoutLayers(t, g))
		require.Len(t, g.Manifest.Layers, len(layers))
		requireSame(t, entries.String(), contents(t, g))
		want := []string{"no landmark", "no landmark", "no landmark", "no landmark"}
		if g.Config.Architecture == "amd64" {
			want = []string{"bin/busybox", "srv/read", "nothing", "nothing"}
		}
		require.Equal(t, want, prioritized(t, g))
	}
}
