package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// busybox is a base image with a shell and the hardfiles command, pushed once
// for all tests, as gzip, as others push it.
func busybox(t *testing.T) string {
	t.Helper()
	return base(t, "busybox", func(d *daemon, name string) {
		dir := writeFiles(t, map[string]string{"Dockerfile": `
FROM scratch
COPY busybox hardfiles /bin/
RUN ["/bin/busybox", "--install", "-s", "/bin"]
CMD ["sh"]
`})
		run(t, "cp", staticBusybox(t), dir)
		run(t, "cp", hardfiles(t), dir)
		d.build(t, dir, "--output", "type=image,push=true,name="+name)
	})
}

// staticBusybox needs no libraries, as Debian's other busybox does, and so runs in
// an image that has none.
func staticBusybox(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath(bin.Path("busybox"))
	require.NoError(t, err)
	return path
}

// debian is the base image of the demo, from the tar that hack/base made.
func debian(t *testing.T) string {
	t.Helper()
	return base(t, "debian", func(d *daemon, name string) {
		dir := filepath.Join(filepath.Dir(string(bin)), "base")
		require.FileExists(t, filepath.Join(dir, "rootfs.tar"), "run hack/base")
		d.build(t, dir, "--file", "../hack/image/base.Dockerfile", "--output", "type=image,push=true,name="+name)
	})
}

// base pushes an image, unless it has been pushed before.
func base(t *testing.T, name string, push func(d *daemon, name string)) string {
	t.Helper()
	ref := registry(t) + "/" + name + ":bookworm"
	shared.basesMu.Lock()
	defer shared.basesMu.Unlock()
	if !shared.bases[name] {
		push(startDaemon(t, ours), ref)
		shared.bases[name] = true
	}
	return ref
}

// hardfiles builds the command, static, since it runs where no libc is.
var hardfilesOnce sync.Once

func hardfiles(t *testing.T) string {
	t.Helper()
	registry(t) // makes the shared directory
	file := filepath.Join(shared.dir, "hardfiles")
	hardfilesOnce.Do(func() {
		cmd := exec.Command("go", "build", "-o", file, "./hardfiles")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		_, err := output(t, cmd)
		require.NoError(t, err)
	})
	require.FileExists(t, file)
	return file
}
