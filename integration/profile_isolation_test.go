package integration

import (
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What must be seen nowhere.
const (
	secret = "hunter2-of-the-build"
	trace  = "left-by-the-workload"
)

// secretiveImage's steps get secrets, the client's keys, a cache and an argument.
// Its entrypoint looks for all of them, for the network and for the host, and
// leaves files behind. It fails, so that the log has what it found.
func secretiveImage(t *testing.T) string {
	return writeFiles(t, map[string]string{
		"Dockerfile": `
FROM ` + busybox(t) + `
ARG ARGUMENT
RUN --mount=type=secret,id=token,required --mount=type=secret,id=token,env=TOKEN,required \
    --mount=type=ssh,required --mount=type=cache,target=/cache \
    test $TOKEN = $(cat /run/secrets/token) && test $ARGUMENT = visible && test -S $SSH_AUTH_SOCK && \
    cp /run/secrets/token /cache
COPY look.sh /
ENTRYPOINT ["sh", "/look.sh"]
`,
		"look.sh": `
echo "net: $(ls /sys/class/net)"
echo "mounts: $(cut -d ' ' -f 5 /proc/self/mountinfo | grep -v -E '^/(proc|sys|dev)(/|$)' | sort | tr '\n' ' ')"
echo "processes: $(ls /proc | grep -c -E '^[0-9]+$')"
echo "found: $(find / -xdev -name '*esgz*' -o -xdev -name token -o -xdev -path '/cache/*' | tr '\n' ' ')"
echo "environment: $(env | cut -d = -f 1 | sort | tr '\n' ' ')"
trace=left-by-the-$(echo WORKLOAD | tr A-Z a-z)
mkdir /$trace
echo $trace >/$trace/file
cat /$trace/file >/look.sh; exit 1
`,
	})
}

// The workload has no network, none of the builder's secrets and none of the
// host's files. It leaves no trace, neither in the image nor in the cache.
func TestProfileIsIsolated(t *testing.T) {
	needs(t)
	dir, image := secretiveImage(t), repository(t)+":latest"
	inputs := writeFiles(t, map[string]string{"token": secret, "key": privateKey(t)})
	arguments := []string{"--secret", "id=token,src=" + inputs + "/token", "--ssh", "default=" + inputs + "/key", "--build-arg", "ARGUMENT=visible"}
	d := startDaemon(t, ours)
	build := func(output ...string) *progress { return d.build(t, dir, append(arguments, output...)...) }

	p := build("--output", profiled(image), "--cache-to", maxCache(image+"-cache"))
	_, cached := profileStep(t, p)
	require.False(t, cached)
	logs := p.logs.String()
	require.Contains(t, logs, "net: lo\n")
	require.Contains(t, logs, "mounts: / /etc/hosts /etc/resolv.conf \n")
	require.Regexp(t, `processes: [1-9]\n`, logs)
	require.Contains(t, logs, "found: \n")
	// The image's, the shell's, and what BuildKit gives every step.
	require.Regexp(t, `environment: HOME (OTEL_\S+ )*PATH PWD SHLVL (TRACEPARENT )?\n`, logs)

	p = build("--output", profiled(image+"-run", "estargz-profile=run"))
	require.Empty(t, p.warnings)
	requireNowhere(t, image+"-run", secret)

	build("--output", estargz(image+"-none"))
	requireOnlyOrdered(t, image+"-none", image)
	for _, name := range []string{image, image + "-cache"} {
		requireNowhere(t, name, secret, trace)
	}
}

// requireNowhere looks for words in all that is stored under a name, layers
// uncompressed.
func requireNowhere(t *testing.T, name string, words ...string) {
	t.Helper()
	image := onlyImage(t, name)
	for _, desc := range append(image.Manifest.Layers, image.Manifest.Config) {
		blob, err := image.Blob(t.Context(), desc)
		require.NoError(t, err)
		if strings.HasSuffix(desc.MediaType, "gzip") {
			r, err := gzip.NewReader(bytes.NewReader(blob))
			require.NoError(t, err)
			blob, err = io.ReadAll(r)
			require.NoError(t, err)
		}
		for _, word := range words {
			require.False(t, bytes.Contains(blob, []byte(word)), "%s is in %s %s of %s", word, desc.MediaType, desc.Digest, name)
		}
	}
}

// privateKey is a key as ssh has it, for an agent that the client is.
func privateKey(t *testing.T) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}))
}
