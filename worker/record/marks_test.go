package record

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/executor"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/solver/pb"
)

// fake runs nothing.
type fake struct{ executor.Executor }

func (f *fake) Run(context.Context, string, executor.Mount, []executor.Mount, executor.ProcessInfo, chan<- struct{}) (resourcestypes.Recorder, error) {
	return nil, errors.New("run")
}

// command is a RUN step with a cache mount, with names that are not UTF-8.
func command(mounts ...*pb.Mount) *pb.ExecOp {
	return &pb.ExecOp{
		Meta: &pb.Meta{Args: []string{"cat", "\xff"}, Env: []string{"A=\xfe"}, Cwd: "/work"},
		Mounts: append([]*pb.Mount{
			{Dest: pb.RootMount},
			{Dest: "/cache", Input: int64(pb.Empty), Output: int64(pb.SkipOutput), MountType: pb.MountType_CACHE},
		}, mounts...),
	}
}

func TestMarks(t *testing.T) {
	marks, opts := NewMarks(), Options{IgnoreExit: true, Ready: "a:b\xff"}
	exec := command()
	check(t, marks.Put(exec, opts))
	got, output := marks.Of(exec)
	if output != exec.Mounts[2] || output.Output != 1 || output.Dest != OutputDir || !got.IgnoreExit || got.Idle != DefaultIdle {
		t.Errorf("%+v, %v", got, output)
	}
	before := exec.CloneVT()
	check(t, marks.Put(exec, opts))
	if !exec.EqualVT(before) {
		t.Errorf("marked twice: %v, not %v", exec, before)
	}
	check(t, marks.Put(exec, Options{}))
	if got, output := marks.Of(exec); output == nil || got.IgnoreExit || len(exec.Mounts) != 3 {
		t.Errorf("marked in another way: %+v of %v", got, exec)
	}
	exec.CdiDevices = []*pb.CDIDevice{{Name: "renamed by the solver"}}
	if _, output := marks.Of(exec); output == nil {
		t.Error("no mark after a device was renamed")
	}
	encoded, err := exec.MarshalVT()
	check(t, err)
	travelled := &pb.ExecOp{}
	check(t, travelled.UnmarshalVT(encoded))
	if _, output := marks.Of(travelled); output == nil {
		t.Error("no mark after the command travelled")
	}
}

// Whatever is changed of a marked command makes it an unmarked one.
func TestForgedMarks(t *testing.T) {
	marks := NewMarks()
	for name, forge := range map[string]func(*pb.ExecOp){
		"another key": func(e *pb.ExecOp) { check(t, NewMarks().Put(e, Options{})) },
		"no code":     func(e *pb.ExecOp) { e.Mounts[2].ResultID = markPrefix + "{}" },
		"empty code":  func(e *pb.ExecOp) { e.Mounts[2].ResultID = markPrefix + "{}:" },
		"prefix":      func(e *pb.ExecOp) { e.Mounts[2].ResultID = markPrefix },
		"options": func(e *pb.ExecOp) {
			e.Mounts[2].ResultID = strings.Replace(e.Mounts[2].ResultID, "{", `{"ignoreExit":true,`, 1)
		},
		"arguments":       func(e *pb.ExecOp) { e.Meta.Args[0] = "rm" },
		"like arguments":  func(e *pb.ExecOp) { e.Meta.Args[1] = "\xfe" },
		"environment":     func(e *pb.ExecOp) { e.Meta.Env = nil },
		"network":         func(e *pb.ExecOp) { e.Network = pb.NetMode_HOST },
		"security":        func(e *pb.ExecOp) { e.Security = pb.SecurityMode_INSECURE },
		"secret":          func(e *pb.ExecOp) { e.Secretenv = []*pb.SecretEnv{{ID: "a"}} },
		"root":            func(e *pb.ExecOp) { e.Mounts[0].Input = 1 },
		"another mount":   func(e *pb.ExecOp) { e.Mounts = append(e.Mounts, &pb.Mount{Dest: "/x", Output: int64(pb.SkipOutput)}) },
		"input":           func(e *pb.ExecOp) { e.Mounts[2].Input = 0 },
		"readonly":        func(e *pb.ExecOp) { e.Mounts[2].Readonly = true },
		"cache":           func(e *pb.ExecOp) { e.Mounts[2].MountType = pb.MountType_CACHE },
		"place":           func(e *pb.ExecOp) { e.Mounts[2].Dest = "/elsewhere" },
		"no output":       func(e *pb.ExecOp) { e.Mounts[2].Output = int64(pb.SkipOutput) },
		"other output":    func(e *pb.ExecOp) { e.Mounts[2].Output = 0 },
		"on the root":     func(e *pb.ExecOp) { e.Mounts[0].ResultID = e.Mounts[2].ResultID; e.Mounts = e.Mounts[:2] },
		"on the root too": func(e *pb.ExecOp) { e.Mounts[0].ResultID = e.Mounts[2].ResultID },
		"twice":           func(e *pb.ExecOp) { e.Mounts = append(e.Mounts, e.Mounts[2].CloneVT()) },
		"no meta":         func(e *pb.ExecOp) { e.Meta = nil },
	} {
		t.Run(name, func(t *testing.T) {
			exec := command()
			check(t, marks.Put(exec, Options{}))
			forge(exec)
			if opts, output := marks.Of(exec); output != nil {
				t.Fatalf("%+v of %v", opts, exec)
			}
			inner := &fake{}
			bare, by := NewRecorder(inner, marks).Resolve(exec)
			if bare == nil {
				t.Fatal("nothing tells it from an ordinary command, cached as it is")
			}
			if by != inner {
				t.Errorf("run by %+v", by)
			}
			for _, mount := range bare.Mounts {
				if mount.ResultID != "" {
					t.Errorf("cached with %q", mount.ResultID)
				}
			}
		})
	}
}

// What another daemon marked is cached by the same key here, and by no other
// command's.
func TestResolve(t *testing.T) {
	var bares []*pb.ExecOp
	for range 2 {
		marks, exec, inner := NewMarks(), command(), &fake{}
		check(t, marks.Put(exec, Options{}))
		before := exec.CloneVT()
		bare, by := NewRecorder(inner, marks).Resolve(exec)
		if _, ok := by.(*recording); !ok || !exec.EqualVT(before) {
			t.Errorf("run by %+v; %v", by, exec)
		}
		bares = append(bares, bare)
	}
	if !bares[0].EqualVT(bares[1]) || bares[0].Mounts[2].ResultID == "" {
		t.Errorf("cached as %v\nand as %v", bares[0], bares[1])
	}
	if bare, by := NewRecorder(&fake{}, NewMarks()).Resolve(command(&pb.Mount{Dest: OutputDir, ResultID: "a container's"})); bare != nil || by != nil {
		t.Errorf("an ordinary command is %v of %v", bare, by)
	}
}

// A secret has the number of the root's output, and is none.
func TestMarkBesideSecrets(t *testing.T) {
	for _, kind := range []pb.MountType{pb.MountType_SECRET, pb.MountType_SSH, pb.MountType_TMPFS} {
		marks, exec := NewMarks(), command(&pb.Mount{Dest: "/x", Input: int64(pb.Empty), MountType: kind}, &pb.Mount{Dest: "/y", Output: 1})
		check(t, marks.Put(exec, Options{}))
		if _, output := marks.Of(exec); output == nil || output.Output != 2 {
			t.Errorf("%s: %v", kind, exec)
		}
	}
}

func TestUnmarkable(t *testing.T) {
	const skip = int64(pb.SkipOutput)
	for name, exec := range map[string]*pb.ExecOp{
		"nil":               nil,
		"empty":             {},
		"nil mount":         command(nil),
		"mount":             command(&pb.Mount{Dest: OutputDir, Output: skip}),
		"unclean mount":     command(&pb.Mount{Dest: "/x/.." + OutputDir + "/", Output: skip}),
		"relative mount":    command(&pb.Mount{Dest: ".." + OutputDir, Output: skip}),
		"marked mount":      command(&pb.Mount{Dest: "/x", ResultID: markPrefix, Output: skip}),
		"no mark":           command(&pb.Mount{Dest: OutputDir, Input: int64(pb.Empty), Output: 1}),
		"input as output":   command(&pb.Mount{Dest: OutputDir, Output: 1}),
		"numbers":           command(&pb.Mount{Dest: "/x", Output: 7}),
		"the same number":   command(&pb.Mount{Dest: "/x", Output: 0}),
		"output of a cache": command(&pb.Mount{Dest: "/x", Output: 1, MountType: pb.MountType_CACHE}),
	} {
		before := exec.CloneVT()
		if err := NewMarks().Put(exec, Options{}); err == nil || !exec.EqualVT(before) {
			t.Errorf("%s: %v, %v", name, err, exec)
		}
	}
}

func TestBadOptions(t *testing.T) {
	for text, want := range map[string]string{
		"": "EOF", "{": "EOF", "[]": "array", "{}{}": "follows", `{"perod":1}`: "perod", `{"period":"10s"}`: "period", `{"ready":"("}`: "missing closing )",
	} {
		if _, err := parseOptions(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestCutOutput(t *testing.T) {
	out := executor.Mount{Src: bind("/nowhere"), Dest: OutputDir}
	readonly := out
	readonly.Readonly = true
	other := executor.Mount{Src: bind("/nowhere"), Dest: "/x"}
	for name, mounts := range map[string][]executor.Mount{"none": {other}, "readonly": {readonly}, "two": {out, out}, "no source": {{Dest: OutputDir}}} {
		if _, _, err := cutOutput(mounts); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if src, rest, err := cutOutput([]executor.Mount{out, other}); err != nil || src != out.Src || len(rest) != 1 || rest[0].Dest != "/x" {
		t.Errorf("%v, %v, %v", src, rest, err)
	}
}

// A file in the output is not the daemon's, and a link in it leads nowhere.
func TestOutputIsEmpty(t *testing.T) {
	for _, target := range []string{"", "file", "missing"} {
		dir, elsewhere := t.TempDir(), t.TempDir()
		check(t, os.WriteFile(filepath.Join(elsewhere, "file"), []byte("untouched"), 0o600))
		if target != "" {
			check(t, os.Symlink(filepath.Join(elsewhere, target), filepath.Join(dir, ProfileFile)))
		}
		err := writeNew(dir, map[string][]byte{ProfileFile: []byte("{}")})
		if (err == nil) != (target == "") {
			t.Errorf("%q: %v", target, err)
		}
		if got, err := os.ReadFile(filepath.Join(elsewhere, "file")); string(got) != "untouched" {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := os.Stat(filepath.Join(elsewhere, "missing")); err == nil {
			t.Error("a file was made")
		}
	}
}
