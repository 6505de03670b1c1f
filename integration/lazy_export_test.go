package integration

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/seed"
)

// forced are the attributes of an export that converts layers.
func forced(compression string) string {
	return "oci-mediatypes=true,force-compression=true,compression=" + compression
}

// A build upon a lazy base is exported in every way and every compression, from
// the cache of a daemon that was killed and started again, too.
func TestLazyRestartExport(t *testing.T) {
	needs(t)
	const (
		command = "hardfiles random /three 1000000 3 && rm -r /small/7 /small/8"
		eStargz = "estargz,estargz-profile=none"
	)
	name, plain := pushLazy(t), startDaemon(t, ours)
	want := localFiles(t, plain, upon(t, registry(t)+"/"+name, command))
	require.Contains(t, want, "/three")
	require.NotContains(t, want, "/small/7 ")

	// lazily builds, and returns a daemon that has nothing of the base but what
	// the build has read.
	lazily := func(t *testing.T, restart bool) (d *daemon, dir string, g *gate) {
		d, g = startLazy(t, onDemand), newGate(t)
		dir = upon(t, g.address+"/"+name, command)
		d.build(t, dir)
		if restart {
			d.Kill()
			d.start(t)
		}
		return d, dir, g
	}
	for _, c := range []struct {
		compression, mediaType string
		restart, keepsBase     bool
	}{
		{"gzip", ocispecs.MediaTypeImageLayerGzip, true, true}, // which eStargz is, too
		{"zstd", ocispecs.MediaTypeImageLayerZstd, true, false},
		{"zstd", ocispecs.MediaTypeImageLayerZstd, false, false},
		{"uncompressed", ocispecs.MediaTypeImageLayer, true, false},
		{eStargz, ocispecs.MediaTypeImageLayerGzip, true, true},
		{eStargz, ocispecs.MediaTypeImageLayerGzip, false, true},
	} {
		t.Run(fmt.Sprintf("%s, restart %v", c.compression, c.restart), func(t *testing.T) {
			d, dir, g := lazily(t, c.restart)
			image := repository(t) + ":latest"
			requireRunCached(t, d.build(t, dir, "--output", "type=image,name="+image+","+forced(c.compression)))
			if c.keepsBase {
				g.requireLazy(t, name)
			}
			requireRunCached(t, d.build(t, dir, "--output", "type=image,push=true,name="+image+","+forced(c.compression)))
			base := registry(t) + "/" + name
			if c.compression == eStargz {
				requireEStargz(t, image)
			}
			if !c.keepsBase { // BuildKit makes the same of layers that are not lazy
				base = repository(t) + ":base"
				plain.build(t, from(t, registry(t)+"/"+name), "--output", "type=image,push=true,name="+base+","+forced(c.compression))
			}
			layers := onlyImage(t, image).Manifest.Layers
			for i, layer := range onlyImage(t, base).Manifest.Layers {
				require.Equal(t, layer.Digest, layers[i].Digest)
			}
			for _, layer := range layers {
				require.Equal(t, c.mediaType, layer.MediaType)
			}
			requireSame(t, want, localFiles(t, plain, from(t, image)))
		})
	}

	t.Run("one compression after the other", func(t *testing.T) {
		d, dir, _ := lazily(t, true)
		for _, compression := range []string{"zstd", "gzip", eStargz, "uncompressed", "zstd"} {
			layout := filepath.Join(tempDir(t), "layout")
			d.build(t, dir, "--output", "type=oci,tar=false,dest="+layout+","+forced(compression))
			requireSame(t, want, localFiles(t, plain, from(t, "it"), "--build-context", "it="+layoutContext(t, layout)))
		}
	})
	t.Run("files", func(t *testing.T) {
		d, dir, _ := lazily(t, true)
		requireSame(t, want, localFiles(t, d, dir))
	})
	t.Run("tars", func(t *testing.T) {
		for _, kind := range []string{"oci", "docker"} {
			d, dir, _ := lazily(t, true)
			layout := tempDir(t)
			archive := filepath.Join(tempDir(t), "it.tar")
			d.build(t, dir, "--output", "type="+kind+",name=it,dest="+archive+","+forced("zstd"))
			run(t, "tar", "-C", layout, "-xf", archive)
			requireWholeBlobs(t, layout)
			requireSame(t, want, localFiles(t, plain, from(t, "it"), "--build-context", "it="+layoutContext(t, layout)))
		}
	})
	t.Run("two at once", func(t *testing.T) {
		d, dir, _ := lazily(t, true)
		images := []string{repository(t) + ":a", repository(t) + ":b", repository(t) + ":c"}
		var both sync.WaitGroup
		both.Go(func() {
			if _, err := d.tryBuild(t, dir, "--output", "type=image,push=true,name="+images[0]+","+forced("zstd")); err != nil {
				t.Error(err)
			}
		})
		d.build(t, dir, "--output", "type=image,push=true,name="+images[1]+","+forced("zstd"),
			"--output", "type=image,push=true,name="+images[2]+","+forced("uncompressed"))
		both.Wait()
		for _, image := range images {
			requireSame(t, want, localFiles(t, plain, from(t, image)))
		}
	})
	for _, compression := range []string{"zstd", "estargz"} {
		t.Run("cache as "+compression, func(t *testing.T) {
			d, dir, _ := lazily(t, true)
			cache := repository(t) + ":cache"
			d.build(t, dir, "--output", "type=cacheonly", "--cache-to", "type=registry,mode=max,image-manifest=true,ref="+cache+","+forced(compression))
			again := startDaemon(t, ours)
			requireRunCached(t, again.build(t, dir, "--output", "type=cacheonly", "--cache-from", "type=registry,ref="+cache))
			requireSame(t, want, localFiles(t, again, dir))
		})
		t.Run("inline cache in "+compression, func(t *testing.T) {
			d, _, g := lazily(t, true)
			// A step upon the cached one: BuildKit gets these layers past LoadRef.
			dir := upon(t, g.address+"/"+name, command+"\nRUN echo more >/more")
			image := repository(t) + ":latest"
			d.build(t, dir, "--cache-to", "type=inline", "--output", "type=image,push=true,name="+image+","+forced(compression))
			requireRunCached(t, startDaemon(t, ours).build(t, dir, "--output", "type=cacheonly", "--cache-from", "type=registry,ref="+image))
		})
	}

	t.Run("registry gone", func(t *testing.T) {
		g := newGate(t)
		repository, _, _ := strings.Cut(name, ":")
		dir := upon(t, g.address+"/"+repository+"@"+resolve(t, registry(t)+"/"+name).Digest.String(), command)
		d := startLazy(t, onDemand)
		d.build(t, dir, "--output", "type=image,name=it,"+forced(eStargz))
		d.Kill()
		g.server.Close()
		d.start(t)
		d.build(t, dir, "--output", "type=image,name=it,"+forced(eStargz))
		_, err := d.tryBuild(t, dir, "--output", "type=image,name=it,"+forced("zstd"))
		require.ErrorContains(t, err, g.address)
		require.ErrorContains(t, err, "connection refused")
		require.ErrorContains(t, err, "layers as zstd: layer sha256:")
	})
}

// Whatever ends in the middle of an export that converts lazy layers, another one
// at the same time is not harmed, and neither is the next.
func TestLazyExportInterrupted(t *testing.T) {
	needs(t)
	const rounds = 5
	name, random := pushLazy(t), seed.New(t)
	plain, d, g := startDaemon(t, ours), startLazy(t, onDemand), newGate(t)
	dir := upon(t, g.address+"/"+name, "hardfiles random /three 1000000 3")
	want := localFiles(t, plain, dir)
	output := func(tag string) string {
		return "type=image,push=true,name=" + repository(t) + ":" + tag + "," + forced("zstd")
	}
	start := time.Now()
	d.build(t, dir, "--output", output("usual"))
	usual := time.Since(start)
	interrupted := 0
	for round := range rounds {
		tag := fmt.Sprint(round)
		d.buildctl(t, "prune", "--all")
		d.build(t, dir)
		d.Kill()
		d.start(t)
		victim := d.command(t.Context(), "buildx", "build", "--progress=quiet", "--output", output(tag+"-victim"), dir)
		require.NoError(t, victim.Start())
		var others sync.WaitGroup
		others.Go(func() {
			if _, err := d.tryBuild(t, dir, "--output", output(tag)); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(time.Duration(random.Int64N(int64(usual))))
		victim.Process.Kill()
		if victim.Wait() != nil {
			interrupted++
		}
		if round%2 == 1 {
			d.buildctl(t, "prune", "--all")
		}
		others.Wait()
		d.build(t, dir, "--output", output(tag+"-again"))
		requireSame(t, want, localFiles(t, plain, from(t, repository(t)+":"+tag)))
		requireSame(t, want, localFiles(t, plain, from(t, repository(t)+":"+tag+"-again")))
	}
	require.NotZero(t, interrupted, "every export had ended before")
	d.buildctl(t, "prune", "--all")
	requirePruned(t, d)
}

// layoutContext names the image in a layout to buildx.
func layoutContext(t *testing.T, layout string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(layout, "index.json"))
	require.NoError(t, err)
	var index ocispecs.Index
	require.NoError(t, json.Unmarshal(raw, &index))
	require.Len(t, index.Manifests, 1)
	return "oci-layout://" + layout + "@" + index.Manifests[0].Digest.String()
}

func from(t *testing.T, image string) string {
	return writeFiles(t, map[string]string{"Dockerfile": "FROM " + image + "\n"})
}

// localFiles lists the files of a build.
func localFiles(t *testing.T, d *daemon, dir string, args ...string) string {
	t.Helper()
	to := tempDir(t)
	d.build(t, dir, append(args, "--output", "type=local,dest="+to)...)
	return list(t, to)
}

// list has a line for each file. Landmarks, which are files for whoever unpacks an
// eStargz layer, are left out.
func list(t *testing.T, root string) string {
	t.Helper()
	var lines strings.Builder
	require.NoError(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name := "/" + strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
		if name == "/"+prefetchLandmark || name == "/"+noPrefetchLandmark {
			return nil
		}
		var what string
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what = digest.FromBytes(b).String()
		case info.Mode()&fs.ModeSymlink != 0:
			if what, err = os.Readlink(path); err != nil {
				return err
			}
		}
		_, err = fmt.Fprintln(&lines, name, info.Mode(), what)
		return err
	}))
	return lines.String()
}
