package record

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"
)

// markPrefix begins the ResultID of the mount that is a mark. BuildKit itself
// uses that field for mounts of containers only, never for those of commands.
const markPrefix = "buildkitd-esgz.record.v1:"

// Marks tell the commands that are to be recorded from all others. A mark is one
// more mount, an output for the profile, whose ResultID holds the options and a
// code made of them, of the whole command and of a key that never leaves the
// process. A client sees the marks of its own builds and may send such a command
// again, upon other inputs; it cannot make a mark for another command or with
// other options. Inputs are not covered: a source policy may replace them on the
// way to the worker. A Marks is safe for concurrent use.
type Marks struct{ key [sha256.Size]byte }

// NewMarks returns marks that nobody else can make.
func NewMarks() *Marks {
	m := &Marks{}
	rand.Read(m.key[:]) // never fails
	return m
}

// errTaken is the reason not to mark a command.
var errTaken = errors.New("it has a mount or an output where those of its recording would be")

// Put marks a command, in the place of a mark that it has. The command stays as
// it is if it cannot be marked.
func (m *Marks) Put(exec *pb.ExecOp, o Options) error {
	if exec.GetMeta() == nil || !countsOutputs(exec) {
		return errTaken
	}
	mount := markOf(exec)
	if mount == nil {
		if slices.ContainsFunc(exec.Mounts, func(other *pb.Mount) bool { return inTheWay(exec, other) }) {
			return errTaken
		}
		mount = newMark(outputs(exec))
		exec.Mounts = append(exec.Mounts, mount)
	}
	mount.ResultID = markPrefix + o.encode()
	mount.ResultID += ":" + m.code(exec)
	return nil
}

// Of returns how a command is to be recorded, and the output for the profile; no
// output if the command has no mark that this Marks made.
func (m *Marks) Of(exec *pb.ExecOp) (Options, *pb.Mount) {
	mount := markOf(exec)
	if mount == nil || !countsOutputs(exec) {
		return Options{}, nil
	}
	text, code := cutCode(mount.ResultID)
	signed := exec.CloneVT()
	markOf(signed).ResultID = markPrefix + text
	if !hmac.Equal([]byte(code), []byte(m.code(signed))) {
		return Options{}, nil
	}
	opts, err := parseOptions(text)
	if err != nil {
		return Options{}, nil
	}
	return *opts, mount
}

// code authenticates a command whose mark has no code yet. Devices are left out:
// the solver gives them other names.
func (m *Marks) code(exec *pb.ExecOp) string {
	signed := exec.CloneVT()
	signed.CdiDevices = nil
	// This encoding takes strings as they are, the standard one UTF-8 only. It is
	// the same each time, since a command has no maps.
	encoded, err := signed.MarshalVT()
	if err != nil {
		return "" // never
	}
	mac := hmac.New(sha256.New, m.key[:])
	mac.Write(encoded)
	return hex.EncodeToString(mac.Sum(nil))
}

// cutCode takes a mark apart.
func cutCode(mark string) (options, code string) {
	text := strings.TrimPrefix(mark, markPrefix)
	at := strings.LastIndexByte(text, ':')
	if at < 0 {
		return text, ""
	}
	return text[:at], text[at+1:]
}

func newMark(output int64) *pb.Mount {
	return &pb.Mount{Input: int64(pb.Empty), Dest: OutputDir, Output: output, ResultID: markPrefix}
}

// markOf returns the mount that is the mark of a command, whoever made it, if it
// is in all else what Put makes and nothing is in its way.
func markOf(exec *pb.ExecOp) *pb.Mount {
	var mark *pb.Mount
	for _, mount := range exec.GetMounts() {
		if !inTheWay(exec, mount) {
			continue
		}
		like := newMark(mount.Output)
		like.ResultID = mount.ResultID
		if mark != nil || !isMark(mount) || mount.Output == int64(pb.SkipOutput) || !mount.EqualVT(like) {
			return nil
		}
		mark = mount
	}
	return mark
}

func isMark(mount *pb.Mount) bool { return strings.HasPrefix(mount.GetResultID(), markPrefix) }

// inTheWay tells whether a mount is where the output is, or says that it is a
// mark.
func inTheWay(exec *pb.ExecOp, mount *pb.Mount) bool {
	dest := mount.GetDest()
	if !path.IsAbs(dest) {
		dest = path.Join("/", exec.GetMeta().GetCwd(), dest)
	}
	return path.Clean(dest) == OutputDir || isMark(mount)
}

// countsOutputs tells whether the outputs of a command have the numbers that
// BuildKit gives to its results. A client may send others.
func countsOutputs(exec *pb.ExecOp) bool {
	var n int64
	for _, mount := range exec.GetMounts() {
		switch {
		case mount == nil:
			return false
		case !isOutput(mount):
		case mount.Output != n || mount.MountType != pb.MountType_BIND:
			return false
		default:
			n++
		}
	}
	return true
}

func outputs(exec *pb.ExecOp) (n int64) {
	for _, mount := range exec.GetMounts() {
		if isOutput(mount) {
			n++
		}
	}
	return n
}

// isOutput tells whether a mount becomes a result. Secrets and the like do not,
// although the number of their output is often zero, that of the root.
func isOutput(mount *pb.Mount) bool {
	switch mount.MountType {
	case pb.MountType_SECRET, pb.MountType_SSH, pb.MountType_TMPFS:
		return false
	}
	return mount.Output != int64(pb.SkipOutput)
}
