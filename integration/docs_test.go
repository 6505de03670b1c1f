package integration

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// elsewhere are the commands in the documentation that TestDocs does not run, by
// how they begin, with the reason.
var elsewhere = map[string]string{
	"hack/demo":              "a part of hack/test",
	"hack/test":              "runs this test",
	"BUILDKITD_ESGZ_DAEMON=": "would run other tests inside this one",
	"go install ":            "needs a published version; hack/tools builds the same package",
	"docker login ":          "the tests of credentials log in, see lazy_credentials_test.go",
	"PLATFORMS=linux/amd64 docker buildx bake image":       "TestDaemonImage runs it",
	"docker buildx create --name esgz --driver kubernetes": "TestDaemonImage does as much",
	"kubectl ": "TestDaemonImage applies the manifests",
	"docker buildx create --name esgz --use --driver docker-container": "TestDaemonImage runs it on a Docker engine",
}

// elsewhereSections are the parts of pages whose commands TestDocs does not run, by
// their headings.
var elsewhereSections = map[string]string{
	"Run it":   "needs a Docker engine; TestDaemonImage runs the image in the same ways by podman",
	"Rootless": "TestDaemonImageRootless does, by podman",
}

// TestDocs runs the commands that the documentation shows, page by page and in
// their order, and has the configuration files in it read.
func TestDocs(t *testing.T) {
	needs(t)
	pages, err := filepath.Glob("../docs/*.md")
	require.NoError(t, err)
	for _, file := range append(pages, "../README.md", "../CONTRIBUTING.md") {
		blocks := readBlocks(t, file)
		runs := slices.ContainsFunc(blocks, func(b block) bool { return b.kind != "text" })
		if !runs {
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			r := newReader(t)
			for _, b := range blocks {
				if elsewhereSections[b.section] == "" {
					r.follow(t, b)
				}
			}
		})
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)#]*)(#[^)]*)?\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	// unsaid is what a heading's anchor leaves out.
	unsaid = regexp.MustCompile(`[^a-z0-9 _-]`)
)

// TestDocsLinks follows the links between the pages.
func TestDocsLinks(t *testing.T) {
	pages, err := filepath.Glob("../docs/*.md")
	require.NoError(t, err)
	top, err := filepath.Glob("../*.md")
	require.NoError(t, err)
	for _, page := range append(pages, top...) {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, found := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(found[1], "://") {
				continue
			}
			target := page
			if found[1] != "" {
				target = filepath.Join(filepath.Dir(page), found[1])
			}
			linked, err := os.ReadFile(target)
			require.NoError(t, err, "%s: %s", page, found[0])
			if found[2] != "" {
				require.Contains(t, anchors(string(linked)), found[2], "%s: %s", page, found[0])
			}
		}
	}
}

// anchors are the places in a page that a link can name.
func anchors(page string) (all []string) {
	for _, h := range heading.FindAllStringSubmatch(page, -1) {
		all = append(all, "#"+strings.ReplaceAll(unsaid.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-"))
	}
	return all
}

// A block is a piece of code in a page.
type block struct {
	kind    string // what stands behind the fence
	text    string
	section string // the heading above it
	place   string // file and line
}

func readBlocks(t *testing.T, file string) (blocks []block) {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	var open *block
	section := ""
	in := bufio.NewScanner(f)
	for n := 1; in.Scan(); n++ {
		line := in.Text()
		switch {
		case open == nil && strings.HasPrefix(line, "```"):
			open = &block{kind: strings.TrimPrefix(line, "```"), section: section, place: fmt.Sprintf("%s:%d", file, n)}
		case open != nil && line == "```":
			blocks = append(blocks, *open)
			open = nil
		case open != nil:
			open.text += line + "\n"
		case heading.MatchString(line):
			section = heading.FindStringSubmatch(line)[1]
		default:
			require.False(t, strings.HasPrefix(line, "    "), "%s:%d: write code with fences and its language, so that it is tested", file, n)
		}
	}
	require.NoError(t, in.Err())
	require.Nil(t, open, "%s: a fence is not closed", file)
	return blocks
}

// A docsReader does what a page says, in a directory with an application.
type docsReader struct {
	dir    string
	names  *strings.Replacer // those of this machine for those in the documentation
	daemon *daemon
}

func newReader(t *testing.T) *docsReader {
	t.Helper()
	bake, err := os.ReadFile("../docker-bake.hcl")
	require.NoError(t, err)
	r := &docsReader{dir: writeFiles(t, map[string]string{
		"docker-bake.hcl": string(bake),
		"Dockerfile":      "FROM " + busybox(t) + "\nCOPY . /app\nCMD [\"cat\", \"/app/serve\"]\n",
		"serve":           "#!/bin/sh\necho ready\n",
		"warm-up.sh":      "#!/bin/sh\ncat /app/serve\n",
		".docker/docker": `#!/bin/sh
case $1 in
buildx) shift; exec buildx "$@" ;;
esac
echo "no docker here: $*" >&2
exit 1
`,
	})}
	for _, script := range []string{"serve", "warm-up.sh", ".docker/docker"} {
		require.NoError(t, os.Chmod(filepath.Join(r.dir, script), 0o755))
	}
	// A reader has a daemon; commands that start one start it again.
	r.daemon = startDaemon(t, ours)
	port, err := freePort()
	require.NoError(t, err)
	r.names = strings.NewReplacer(
		"registry.example/base", busybox(t),
		"registry.example/", repository(t)+"/",
		"registry.example", registry(t),
		"unix:///run/buildkit/buildkitd.sock", r.daemon.Address(),
		"/etc/buildkit/tls", filepath.Join(r.dir, ".docker", "tls"),
		"DNS:builder.example", "IP:127.0.0.1",
		"builder.example:1234", fmt.Sprintf("127.0.0.1:%d", port),
		"0.0.0.0:1234", fmt.Sprintf("127.0.0.1:%d", port))
	return r
}

func (r *docsReader) follow(t *testing.T, b block) {
	t.Helper()
	t.Log(b.place)
	switch b.kind {
	case "sh":
		r.run(t, b)
	case "dockerfile":
		r.write(t, "Dockerfile", b.text)
	case "hcl":
		r.write(t, "docker-bake.hcl", b.text)
		r.shell(t, r.dir, "docker buildx bake app", b.place)
	case "toml":
		r.configure(t, b)
	case "text":
	default:
		require.Fail(t, "code of an unknown language", "%s: %q", b.place, b.kind)
	}
}

func (r *docsReader) write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(r.dir, name)
	require.NoError(t, os.WriteFile(file, []byte(r.names.Replace(text)), 0o644))
	return file
}

// run runs the commands of a block one by one.
func (r *docsReader) run(t *testing.T, b block) {
	t.Helper()
	for line := range strings.Lines(strings.ReplaceAll(b.text, "\\\n", " ")) {
		switch line = strings.TrimSpace(r.names.Replace(line)); {
		case line == "" || r.isElsewhere(line):
		case strings.Contains(line, "docker buildx bake "):
			// This repository's targets take minutes, and bases from elsewhere. That they
			// build is for TestDaemonImage.
			r.shell(t, "..", line+" --print", b.place)
		case strings.HasPrefix(line, "buildkitd-esgz ") && !strings.HasPrefix(line, "buildkitd-esgz inspect "):
			r.restart(t, strings.Fields(line)[1:]...)
		default:
			line = strings.Replace(line, "buildkitd-esgz inspect ", ours+" inspect ", 1)
			r.shell(t, r.dir, line, b.place)
		}
	}
}

func (r *docsReader) shell(t *testing.T, dir, line, place string) {
	t.Helper()
	cmd := r.daemon.command(t.Context(), "sh", "-euc", line)
	cmd.Dir = dir
	cmd.Env = append(cmd.Env, "PATH="+filepath.Join(r.dir, ".docker")+":"+string(bin)+":"+os.Getenv("PATH"))
	_, err := output(t, cmd)
	require.NoError(t, err, "%s: %s", place, line)
}

func (*docsReader) isElsewhere(line string) bool {
	for begins := range elsewhere {
		if strings.HasPrefix(line, begins) {
			return true
		}
	}
	return false
}

// restart gives the daemon other flags.
func (r *docsReader) restart(t *testing.T, flags ...string) {
	t.Helper()
	require.NoError(t, r.daemon.Stop())
	r.daemon.Flags = flags
	r.daemon.start(t)
}

// configure gives a configuration to the daemon, or to containerd if it is one
// of a node.
func (r *docsReader) configure(t *testing.T, b block) {
	t.Helper()
	file := r.write(t, "config.toml", b.text)
	if strings.Contains(b.text, "proxy_plugins") {
		dump := run(t, "containerd", "--config", file, "config", "dump")
		require.Contains(t, dump, "containerd-stargz-grpc.sock", b.place)
		return
	}
	r.restart(t, "--config", file)
}
