package record

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
)

// The options are as the kernel tells them, of the root directory @.
func TestParseLayers(t *testing.T) {
	for _, test := range []struct{ name, options, want string }{
		{"one", `rw,lowerdir=@/1,upperdir=@/snapshots/9/fs,workdir=@/snapshots/9/work`, `@/1`},
		{"several", `ro,lowerdir=@/2:@/1`, `@/2 @/1`},
		{"relative", `rw,lowerdir=2/fs:1/fs,upperdir=@/snapshots/9/fs,workdir=@/snapshots/9/work`, `@/snapshots/2/fs @/snapshots/1/fs`},
		{"separate options", `ro,lowerdir+=@/2,lowerdir+=@/c\054d`, `@/2 @/c,d`},
		{"comma", `ro,lowerdir=@/c\134\054d:@/1`, `@/c,d @/1`},
		{"comma without quotes", `ro,lowerdir=@/c\054d`, `@/c,d`},
		{"space", `ro,lowerdir=@/s\040s:@/1`, `@/s%20s @/1`},
		{"colon", `ro,lowerdir=@/a\134:b:@/1`, `@/a:b @/1`},
		{"colon of Linux 6.5", `ro,lowerdir=@/a\072b:@/1`, `@/a:b @/1`},
		{"backslash", `ro,lowerdir=@/e\134\134f`, `@/e\f`},
		{"equals sign", `ro,lowerdir=@/g=h`, `@/g=h`},
		{"gone", `rw,lowerdir=@/gone,upperdir=@/snapshots/9/fs`, ``},
		{"relative and gone", `rw,lowerdir=3/fs,upperdir=@/snapshots/9/fs`, ``},
		{"relative to who knows", `ro,lowerdir=1/fs`, ``},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			for _, dir := range []string{"1", "2", "c,d", "s s", "a:b", `e\f`, "g=h", "snapshots/1/fs", "snapshots/2/fs", "snapshots/9/fs"} {
				check(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
			}
			t.Chdir("/")
			var want []string
			for name := range strings.FieldsSeq(strings.ReplaceAll(test.want, "@", root)) {
				want = append(want, strings.ReplaceAll(name, "%20", " "))
			}
			got, err := parseLayers(strings.ReplaceAll(test.options, "@", root))
			if !slices.Equal(got, want) || (err != nil) != (want == nil) {
				t.Errorf("%q, %v, want %q", got, err, want)
			}
		})
	}
}

// With many layers under a long name, containerd mounts by names relative to the
// directory of all layers.
func TestManyLayers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("a long name ", 10))
	s := newSandboxAt(t, dir)
	var want []string
	for n := 10; n < 70; n++ {
		layer := fmt.Sprintf("%s/%d/fs", dir, n)
		check(t, os.MkdirAll(layer+"/data", 0o755))
		check(t, os.WriteFile(fmt.Sprintf("%s/data/%d", layer, n), []byte("old"), 0o644))
		s.layers = append(s.layers, layer)
		want = append(want, fmt.Sprint(n))
	}
	p, _ := s.record(Options{}, "sh", "-c", "for f in /data/*; do echo new >$f; done; echo made >/data/made; cat /data/*")
	wantPaths(t, p, want...)
	for _, f := range p.Files {
		if strings.HasPrefix(f.Path, "data/") && f.Size != int64(len("old")) {
			t.Errorf("%+v has not the size it has in the image", f)
		}
	}
}

func TestLayersOf(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	root := t.TempDir()
	dirs := map[string]string{}
	for _, name := range []string{"1", "2", "upper", "work", "merged", "plain"} {
		dirs[name] = filepath.Join(root, name)
		check(t, os.Mkdir(dirs[name], 0o755))
	}
	options := []string{"lowerdir=" + dirs["2"] + ":" + dirs["1"], "upperdir=" + dirs["upper"], "workdir=" + dirs["work"]}
	overlay := mount.Mount{Type: "overlay", Source: "overlay", Options: options}
	check(t, overlay.Mount(dirs["merged"]))
	defer func() { check(t, mount.Unmount(dirs["merged"], 0)) }()
	below := []string{dirs["2"], dirs["1"]}
	for name, c := range map[string]struct {
		mount mount.Mount
		want  []string
	}{
		"overlay":         {overlay, below},
		"mounted overlay": {mount.Mount{Type: "bind", Source: dirs["merged"]}, below},
		"plain directory": {mount.Mount{Type: "bind", Source: dirs["plain"]}, []string{dirs["plain"]}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := LayersOf(c.mount)
			check(t, err)
			if !slices.Equal(got, c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}
