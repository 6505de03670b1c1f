package profile_test

import (
	"context"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

// layer has files by their names, directories with a slash at the end, and
// symlinks as "name -> target".
func layer(files ...string) profile.Layer {
	nodes := map[string]profile.Node{"": {Kind: profile.Directory}}
	for _, f := range files {
		name, target, link := strings.Cut(f, " -> ")
		name, dir := strings.CutSuffix(name, "/")
		for i, c := range name {
			if c == '/' {
				nodes[name[:i]] = profile.Node{Kind: profile.Directory}
			}
		}
		switch {
		case link:
			nodes[name] = profile.Node{Kind: profile.Symlink, Target: target}
		case dir:
			nodes[name] = profile.Node{Kind: profile.Directory}
		default:
			nodes[name] = profile.Node{Kind: profile.Regular}
		}
	}
	return func(path string) (profile.Node, bool) {
		n, ok := nodes[path]
		return n, ok
	}
}

func TestAttribute(t *testing.T) {
	for name, c := range map[string]struct {
		layers []profile.Layer
		read   string
		want   []string // a list for each layer
	}{
		"the only layer":           {[]profile.Layer{layer("a", "d/b")}, "a d/b", []string{"a d/b"}},
		"the topmost":              {[]profile.Layer{layer("a", "b"), layer("a"), layer("c")}, "a b c", []string{"b", "a", "c"}},
		"made by the workload":     {[]profile.Layer{layer("a")}, "tmp/x a", []string{"a"}},
		"deleted":                  {[]profile.Layer{layer("a", "d/b"), layer(".wh.a", ".wh.d")}, "a d/b", []string{"", ""}},
		"deleted and made again":   {[]profile.Layer{layer("a"), layer(".wh.a"), layer("a")}, "a", []string{"", "", "a"}},
		"opaque":                   {[]profile.Layer{layer("d/a", "d/b", "c"), layer("d/.wh..wh..opq", "d/b")}, "c d/a d/b", []string{"c", "d/b"}},
		"under an opaque":          {[]profile.Layer{layer("d/e/a"), layer("d/.wh..wh..opq")}, "d/e/a", []string{"", ""}},
		"a file for the directory": {[]profile.Layer{layer("d/a"), layer("d")}, "d/a d", []string{"", "d"}},
		"linked directory":         {[]profile.Layer{layer("usr/lib/a"), layer("lib -> usr/lib")}, "lib/a", []string{"usr/lib/a", ""}},
		"absolute links":           {[]profile.Layer{layer("usr/lib/a", "lib -> /usr/lib", "usr/lib/b -> ../../lib/a")}, "lib/b", []string{"usr/lib/a"}},
		"one file by two paths":    {[]profile.Layer{layer("usr/lib/a", "lib -> usr/lib")}, "lib/a usr/lib/a", []string{"usr/lib/a"}},
		"circles":                  {[]profile.Layer{layer("a -> b", "b -> a", "d -> d/d")}, "a b d/x", []string{""}},
		"out of the root":          {[]profile.Layer{layer("a", "l -> ../../../a")}, "l", []string{"a"}},
		"directories are no files": {[]profile.Layer{layer("d/a")}, "d", []string{""}},
		"up from a link":           {[]profile.Layer{layer("usr/lib/a", "usr/b", "lib -> usr/lib", "l -> lib/../b")}, "l", []string{"usr/b"}},
		"through a file":           {[]profile.Layer{layer("a", "b", "l -> a/../b", "m -> a/", "n -> a/.")}, "l n", []string{""}},
		"a directory over a link":  {[]profile.Layer{layer("usr/lib/a", "usr/lib/b", "lib -> usr/lib"), layer("lib/a")}, "lib/a lib/b", []string{"", "lib/a"}},
		"opaque root":              {[]profile.Layer{layer("a", "d/b"), layer(".wh..wh..opq", "a")}, "a d/b", []string{"", "a"}},
		"linked over the original": {[]profile.Layer{layer("bin/a"), layer("bin -> usr/bin", "usr/bin/a")}, "bin/a", []string{"", "usr/bin/a"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := &profile.Profile{}
			for _, f := range strings.Fields(c.read) {
				p.Files = append(p.Files, profile.File{Path: f, Size: 1})
			}
			var got []string
			parts, err := p.Attribute(t.Context(), c.layers)
			require.NoError(t, err)
			for _, part := range parts {
				var paths []string
				for _, f := range part.Files {
					paths = append(paths, f.Path)
				}
				got = append(got, strings.Join(paths, " "))
			}
			require.Equal(t, c.want, got)
		})
	}
}

// chain is a layer in which each link leads to the next one, and from there
// through that many directories. It counts the questions.
func chain(links, directories int, questions *int) profile.Layer {
	target := strings.Repeat("/y", directories)
	return func(path string) (profile.Node, bool) {
		*questions++
		if number, ok := strings.CutPrefix(path, "s"); ok && !strings.Contains(path, "/") {
			if i, err := strconv.Atoi(number); err == nil && i < links {
				return profile.Node{Kind: profile.Symlink, Target: "s" + strconv.Itoa(i+1) + target}, true
			}
		}
		return profile.Node{Kind: profile.Directory}, !strings.Contains(path, ".wh.")
	}
}

// A TOC decides how links lead to one another. What it costs to follow them is
// bounded as it is by Linux, for a file and for the stack.
func TestAttributeChains(t *testing.T) {
	for name, c := range map[string]struct {
		links, directories int
		atMost             int // questions to the layer
	}{
		"as many as Linux follows": {40, 10, 3 * 40 * 12},
		"long":                     {1500, 1000, 3 * 42 * 1002},
		"endless":                  {1 << 40, 1000, 3 * 42 * 1002},
		"a target of 16 MB":        {1 << 40, 8 << 20, 10},
	} {
		t.Run(name, func(t *testing.T) {
			var questions int
			p := &profile.Profile{Files: []profile.File{{Path: "s0/run"}, {Path: strings.Repeat("x/", 1<<20) + "run"}}}
			_, err := p.Attribute(t.Context(), []profile.Layer{chain(c.links, c.directories, &questions)})
			require.NoError(t, err)
			require.LessOrEqual(t, questions, c.atMost)
		})
	}
}

func TestAttributeEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var questions int
	p := &profile.Profile{Files: []profile.File{{Path: "s0/run"}}}
	_, err := p.Attribute(ctx, []profile.Layer{chain(40, 1000, &questions)})
	require.ErrorIs(t, err, context.Canceled)
	require.LessOrEqual(t, questions, 1) // about the root
}
