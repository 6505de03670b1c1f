package frontend

import (
	"strings"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

func graphOf(t *testing.T, st llb.State) *graph {
	def, err := st.Marshal(t.Context())
	require.NoError(t, err)
	g, err := parse(def.ToPB())
	require.NoError(t, err)
	return g
}

func testMarkOf(ready string) mark { return mark{fakeMarker{}, Recording{Ready: ready}} }

func run(st llb.State, command string) llb.ExecState {
	return st.Run(llb.Args(strings.Fields(command)))
}

func TestSteps(t *testing.T) {
	one := run(llb.Scratch(), "one").Root()
	two := run(one, "two").Root()
	other := run(llb.Scratch(), "other").Root()
	mounting := run(one, "mounts")
	mounting.AddMount("/mnt", other)
	for name, tc := range map[string]struct {
		state llb.State
		want  string
	}{
		"a chain":           {two, "one two"},
		"no step":           {llb.Scratch().File(llb.Mkdir("/a", 0o700)), ""},
		"a copied stage":    {two.File(llb.Copy(other, "/a", "/a").Copy(other, "/b", "/b")), "one two"},
		"a mounted stage":   {mounting.Root(), "one mounts"},
		"output of another": {mounting.GetMount("/mnt"), "other"},
		"linked copies":     {llb.Merge([]llb.State{two, run(llb.Scratch(), "linked").Root()}), "one two linked"},
		"a diff":            {llb.Diff(one, two), "one two"},
		"needs another":     {two.Requires("id", other), "one two"},
	} {
		t.Run(name, func(t *testing.T) {
			g := graphOf(t, tc.state)
			var got []string
			for _, d := range g.steps() {
				got = append(got, g.ops[d].GetExec().Meta.Args...)
			}
			require.Equal(t, tc.want, strings.Join(got, " "))
		})
	}
}

func TestImages(t *testing.T) {
	for name, tc := range map[string]struct {
		state llb.State
		want  string
	}{
		"scratch":        {llb.Scratch().File(llb.Mkdir("/a", 0o700)), ""},
		"steps":          {run(llb.Image("a"), "one").File(llb.Mkdir("/a", 0o700)), "a"},
		"a copied image": {llb.Image("a").File(llb.Copy(llb.Image("b"), "/", "/")), "a"},
		"merged":         {llb.Merge([]llb.State{llb.Image("a"), run(llb.Image("b"), "one").Root()}), "a b"},
		"the context":    {llb.Local("context"), ""},
		"a layout":       {llb.OCILayout("l@sha256:" + strings.Repeat("0", 64)), "l"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, op := range graphOf(t, tc.state).images() {
				id := op.GetSource().Identifier
				id = id[strings.LastIndex(id, "/")+1:]
				got = append(got, id[:1])
			}
			require.Equal(t, tc.want, strings.Join(got, " "))
		})
	}
}

func TestParseHostile(t *testing.T) {
	encode := func(ops ...*pb.Op) *pb.Definition {
		def := &pb.Definition{}
		for _, op := range ops {
			dt, err := op.Marshal()
			require.NoError(t, err)
			def.Def = append(def.Def, dt)
		}
		return def
	}
	input := func(op *pb.Op, index int64) *pb.Op {
		dt, err := op.Marshal()
		require.NoError(t, err)
		return &pb.Op{Inputs: []*pb.Input{{Digest: string(digest.FromBytes(dt)), Index: index}}}
	}
	for _, def := range []*pb.Definition{nil, {}, {Def: [][]byte{{0xff}}}, encode(&pb.Op{})} {
		_, err := parse(def)
		require.Error(t, err)
	}
	for _, op := range []*pb.Op{
		{},
		{Op: &pb.Op_Exec{}},
		{Op: &pb.Op_Exec{Exec: &pb.ExecOp{Mounts: []*pb.Mount{{Dest: "/", Input: 7}}}}},
		{Op: &pb.Op_File{}},
		{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{Input: 9}}}}},
		{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{Input: 0}}}}},
		{Op: &pb.Op_Diff{}},
		{Op: &pb.Op_Passthrough{}},
		{Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{Outputs: []int64{-4}}}},
		{Op: &pb.Op_Merge{}, Inputs: []*pb.Input{{Digest: "unknown"}}},
	} {
		for _, index := range []int64{0, 3, -1} {
			g, err := parse(encode(op, input(op, index)))
			require.NoError(t, err)
			require.Empty(t, g.steps())
			_, err = testMarkOf("b").steps(g, g.steps())
			if len(op.Inputs) > 0 {
				require.ErrorContains(t, err, "without its input unknown")
			}
		}
	}
}

// A client may name more results than the one that counts.
func TestSeveralResults(t *testing.T) {
	def, err := run(llb.Scratch(), "one").Root().Marshal(t.Context())
	require.NoError(t, err)
	two := def.ToPB()
	var end pb.Op
	require.NoError(t, end.Unmarshal(two.Def[len(two.Def)-1]))
	end.Inputs = append(end.Inputs, end.Inputs[0])
	two.Def[len(two.Def)-1], err = end.Marshal()
	require.NoError(t, err)
	g, err := parse(two)
	require.NoError(t, err)
	require.Len(t, g.steps(), 1)
}

func TestMarkKeepsWhatItDoesNotTouch(t *testing.T) {
	one := run(llb.Scratch().File(llb.Mkdir("/a", 0o700), llb.IgnoreCache), "one").Root()
	g := graphOf(t, run(one, "two").Root())
	steps := g.steps()
	r, err := testMarkOf("x").steps(g, steps[1:])
	require.NoError(t, err)

	require.Equal(t, steps[0], r.became[steps[0]], "the first step stays as it is")
	require.NotEqual(t, steps[1], r.became[steps[1]])
	require.True(t, r.to.ignoresCache())
	exec := r.to.ops[r.became[steps[1]]].GetExec()
	require.EqualValues(t, 1, testMarkOf("x").Output(exec).Output)
	require.Nil(t, g.ops[steps[1]].GetExec().GetMounts()[0].CacheOpt)
	require.Len(t, g.ops[steps[1]].GetExec().Mounts, 1, "the original is as it was")
}

func TestMarkUnmarkedIsTheSameDefinition(t *testing.T) {
	g := graphOf(t, run(run(llb.Scratch(), "one").Root(), "two").Root())
	r, err := testMarkOf("").steps(g, nil)
	require.NoError(t, err)
	require.Equal(t, g.head.Digest, r.to.head.Digest)
}

// A linked target of bake begins with the marked steps of another build.
func TestMarkedBeforeStaysAsItIs(t *testing.T) {
	m := testMarkOf("x")
	g := graphOf(t, run(run(llb.Scratch(), "one").Root(), "two").Root())
	first, err := m.steps(g, g.steps())
	require.NoError(t, err)
	again, err := m.steps(first.to, first.to.steps())
	require.NoError(t, err)
	require.Equal(t, first.to.head.Digest, again.to.head.Digest)
	profiles, err := again.profiles(m, first.to.steps())
	require.NoError(t, err)
	require.Len(t, profiles, 2)

	other, err := testMarkOf("y").steps(first.to, first.to.steps())
	require.NoError(t, err)
	exec := other.to.ops[digest.Digest(other.to.head.Digest)].GetExec()
	require.Len(t, exec.Mounts, 2)
	require.Contains(t, exec.Mounts[1].ResultID, "y")
}

// A step that has something where the profile would be stays as it is.
func TestUnmarkable(t *testing.T) {
	step := llb.Scratch().Run(llb.Args([]string{"one"}), llb.AddMount(testDir, llb.Scratch(), llb.AsPersistentCacheDir("id", llb.CacheMountShared)))
	g := graphOf(t, step.Root())
	r, err := testMarkOf("x").steps(g, g.steps())
	require.NoError(t, err)
	require.Equal(t, g.head.Digest, r.to.head.Digest)
	require.Nil(t, r.output(fakeMarker{}, g.steps()[0]))
}
