// Package record records which files of its root filesystem a process of a
// build reads, and writes them as a profile into an output of that process. The
// worker asks a Recorder for the executor of each command. What becomes of a
// profile is not known here.
//
// # Who is recorded
//
// A command that Marks has marked, and nobody else: the worker binds a recording
// executor to it when it resolves its vertex. Nothing that a Dockerfile, an image
// or a client can write makes a mark. The process sees neither mark nor output.
// There are two kinds:
//
//   - A step of the build, recorded in passing. It runs to its own end, and
//     output, signals and exit code are what they are without recording.
//   - A workload (Options.IgnoreExit), started for the sake of its reads. It is
//     stopped by the first rule of Options that holds, and its exit code does
//     not fail the build.
//
// # What is recorded
//
// Regular files of the root filesystem's own superblock that were opened for
// reading, writing or execution, by the process or its children, and that the
// image had before. One that is renamed before its event was looked at, within a
// moment of being opened, is missed. What lies on mounts (cache, bind, tmpfs,
// proc, sysfs) has another superblock and is never seen. Two reads of a profile's
// files in another order make the same profile.
//
// The events are fanotify's, with a mark on the superblock of the overlay, which
// also sees what happens in the mount namespace of the container. The kernel
// asks nobody for permission, so that a stuck daemon cannot hold up a process.
// Each file costs one event: the inode is ignored from then on. BuildKit has the
// overlay mounted for as long as the process runs, and the mark goes there:
// nothing is mounted here, which a daemon that is killed would leave behind.
//
// # What is not recorded
//
// The root filesystem of the native snapshotter is a plain directory on the
// host's own superblock. A mark there would make events of all that happens on
// the host, each of them with a descriptor that may be in the way of an unmount
// elsewhere. A rootless daemon may not mark a superblock, and is not told which
// process opened what. A step with --security=insecure may unmount a filesystem
// that it has mounted from the root filesystem, and an event that waits to be
// taken would keep that busy. A kernel, or the seccomp profile of the daemon's
// container, may lack marks on superblocks (Linux 4.20) or openat2 (Linux 5.6). In
// these cases the log of the step and a warning say so: a step runs as usual, and
// a workload is not started.
//
// Events are lost where the kernel's queue overflows or a file cannot be opened,
// and a workload may be stopped because the disk is full. The summary beside the
// profile says so: whoever finds the output in a cache knows that it is not
// complete. A workload that still reads new files when its period ends is run
// once more with its files cached, which makes the recording complete.
//
// # What a workload may do
//
// It is stopped with all its children, TERM first and then KILL. It writes to the
// daemon's disk, and is stopped when little of that is left; what it wrote is
// deleted as soon as it has ended. What the daemon remembers of it is bounded by
// the files of the image. Where it opens files faster than the daemon takes the
// events, it is watched no longer and the summary says that events were lost.
//
// # Ranges of large files
//
// Which parts of a large file were touched is learned from tracepoints, through
// perf_event_open: filemap:mm_filemap_get_pages (reads), mm_filemap_map_pages and
// mm_filemap_fault (mapped pages), iomap:iomap_dio_rw_begin (reads past the page
// cache). They exist since Linux 6.12, name the inode of the layer below the
// overlay, and tell what was asked for, whether or not the page cache had it.
// Residency of the page cache (cachestat, mincore) does not serve: the host's
// readahead, up to 8 MiB at a time on cloud disks, counts as touched, what the
// build itself has cached counts as touched, dropping it slows the build, and
// cachestat(2) on a file of an overlay looks at the overlay's own inode, which
// has no pages. Pre-content events of fanotify do not exist for overlays, and
// hold up the process.
//
// Ranges are never too small. The tracepoints do not know containers: what the
// daemon itself reads is left out, what another process reads of the same file
// at the same time is counted. What they do not tell is counted as well: pages
// that a read may have taken before those it tells of (batchPages), and what may
// have been mapped by huge pages (addHuge). Where they tell nothing that can be
// relied upon (older kernel, filesystems other than ext4 and XFS, lost samples,
// a file that the process wrote to) a file counts as read whole.
package record

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/moby/buildkit/executor"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/solver/pb"
)

const (
	// OutputDir is where the output for the profile is mounted, for the executor
	// alone.
	OutputDir = "/.buildkitd-esgz-profile"
	// ProfileFile is the file in the output that holds the encoded profile. It
	// depends on what was read and on nothing else.
	ProfileFile = "profile.json"
	// SummaryFile is the file in the output that holds a Summary. It differs
	// from run to run.
	SummaryFile = "summary.json"
)

// A Recorder knows who runs a command. It is safe for concurrent use.
type Recorder struct {
	marks       *Marks
	inner       executor.Executor
	tracepoints func() []tracepoint
}

// NewRecorder returns a recorder of the commands that marks has marked. All are
// run by inner.
func NewRecorder(inner executor.Executor, marks *Marks) *Recorder {
	return &Recorder{marks: marks, inner: inner, tracepoints: sync.OnceValue(keepTracepoints)}
}

// Resolve returns a command as it is run and cached, and who runs it. Both are
// nil for a command that says nothing of marks, which is BuildKit's alone.
//
// The code of a mark is no part of what is cached, so that another daemon finds
// it. A command with a mark that is none is an ordinary one, and cached as such:
// it could leave a profile of its own making where the recorded command is looked
// for otherwise.
func (r *Recorder) Resolve(exec *pb.ExecOp) (*pb.ExecOp, executor.Executor) {
	if !slices.ContainsFunc(exec.GetMounts(), isMark) {
		return nil, nil
	}
	opts, output := r.marks.Of(exec)
	bare := exec.CloneVT()
	for i, mount := range bare.Mounts {
		switch {
		case exec.Mounts[i] == output:
			mount.ResultID = markPrefix + opts.encode()
		case isMark(mount):
			mount.ResultID = ""
		}
	}
	if output == nil {
		return bare, r.inner
	}
	return bare, &recording{Executor: r.inner, opts: opts, tracepoints: r.tracepoints, after: time.After}
}

// A recording is the executor of one marked command.
type recording struct {
	executor.Executor
	opts        Options
	tracepoints func() []tracepoint
	after       func(time.Duration) <-chan time.Time // time.After but in tests
}

func (r *recording) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}) (resourcestypes.Recorder, error) {
	output, mounts, err := cutOutput(mounts)
	if err != nil {
		return nil, err
	}
	run := run{inner: r.Executor, id: id, mounts: mounts, process: process, opts: r.opts, points: r.tracepoints(), after: r.after}
	return run.record(ctx, root, output, started)
}
