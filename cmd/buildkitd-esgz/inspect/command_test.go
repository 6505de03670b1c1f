package inspect

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// ran returns what the command prints.
func ran(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c := Command()
	c.Writer, c.ErrWriter = &out, io.Discard
	err := c.Run(t.Context(), append([]string{"inspect"}, args...))
	return out.String(), err
}

func TestCommand(t *testing.T) {
	s, desc := sample(t)
	layout := s.layout(desc)
	for begins, flags := range map[string][]string{
		layout + ", linux/amd64\n": {layout},
		"{\n  \"name\":":           {"--json", layout},
		"<svg ":                    {layout, "--svg"},
	} {
		out, err := ran(t, flags...)
		require.NoError(t, err)
		require.True(t, strings.HasPrefix(out, begins), out)
	}
	for says, args := range map[string][]string{
		"give the name of one image": {},
		"one image":                  {layout, layout},
		"not both":                   {"--json", "--svg", layout},
		"give one of linux/amd64":    {"--platform", "linux/arm64", layout},
		`metadata no\x0asuch`:        {"--metadata", "no\nsuch", layout},
	} {
		_, err := ran(t, args...)
		require.ErrorContains(t, err, says)
	}
}

// The report of an image with bad layers is printed, and the command fails.
func TestCommandFails(t *testing.T) {
	s := newStore(t)
	for _, format := range []string{"--all", "--json", "--svg"} {
		out, err := ran(t, format, s.layout(s.image("linux/amd64", blobOf(gzipped(t, file("a", 10, "a")).data))))
		require.EqualError(t, err, "inspect: 1 of 1 layers cannot be mounted or checked")
		require.NotEmpty(t, out)
	}
}
