package blob

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

var (
	someDigest = digest.FromString("some blob")
	quiet      = log.New(io.Discard, "", 0)
)

// impatient is for reads that must not have to wait.
var impatient = Options{Deadline: time.Nanosecond}

// The sources of builds that have ended do not pile up at a blob of which nothing
// is read any more.
func TestEndedSourcesAreForgotten(t *testing.T) {
	b := NewLine(Options{}).Open(someDigest)
	for i := range 20 {
		ended := i != 7
		b.Add(Source{Repository: "r", Reader: fmt.Sprint(i), Alive: func() bool { return !ended }})
	}
	require.Len(t, b.roster.places, 2, "one that lives, and the last")
}

// A host that has failed is asked before one that has sent wrong bytes.
func TestWrongBytesAreWorseThanFailures(t *testing.T) {
	one, two := (&inProcess{}).host(), (&inProcess{}).host()
	two.Host = "two.example"
	r := &NewLine(Options{}).Open(someDigest, source(one, two)).roster
	pick := func() *host { return r.pick(func(key) bool { return false }) }
	wrong := pick()
	wrong.suspect()
	wrong.fails()
	failed := pick()
	failed.fails()
	require.Equal(t, "two.example", failed.host)
	require.Equal(t, failed, pick())
}

// Hosts are asked in their order, the next one when one fails; a mirror that
// lacks the blob is not asked again for the next range.
func TestMirrors(t *testing.T) {
	blob := contents(1000)
	for name, broken := range map[string]trouble{
		"lacks it":   status(404),
		"denies it":  status(403),
		"is down":    status(503),
		"is cut off": cut(blob, 0, reset),
		"is wrong":   partial("bytes 7-8/9", 2),
		"breaks off": cut(blob, 5, truncate),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mirror, origin := serve(t, blob, broken), serve(t, blob)
			b := NewLine(impatient).Open(origin.digest(), source(mirror.host(), origin.host()))
			wantRange(t, b, blob, 0, 1000)
			wantRange(t, b, blob, 10, 100)
			require.NotEmpty(t, mirror.seen())
			require.LessOrEqual(t, len(mirror.seen()), 2) // net/http itself asks again after a reset
			require.Len(t, origin.seen(), 2)
		})
	}
}

func TestGoodMirror(t *testing.T) {
	blob := contents(1000)
	mirror, origin := serve(t, blob), serve(t, blob)
	b := NewLine(Options{}).Open(origin.digest(), source(mirror.host(), origin.host()))
	wantRange(t, b, blob, 0, 1000)
	require.Empty(t, origin.seen())
}

// The error tells what the registry said, and what mirrors did.
func TestErrorNamesAll(t *testing.T) {
	mirror, origin := serve(t, nil, status(404)), serve(t, nil, status(403))
	e := wantError(t, NewLine(Options{}).Open(someDigest, source(mirror.host(), origin.host())))
	require.Equal(t, fmt.Sprintf("layer %s from %s: 403 Forbidden (%s: 404 Not Found)", someDigest, origin.name(), mirror.name()), e.Error())
}

// One host that may come back is enough to wait for.
func TestMirrorMayComeBack(t *testing.T) {
	blob := contents(1000)
	mirror, origin := serve(t, blob, first(2, status(503))), serve(t, blob, status(404))
	b := NewLine(Options{}).Open(mirror.digest(), source(mirror.host(), origin.host()))
	wantRange(t, b, blob, 0, 1000)
	require.Len(t, mirror.seen(), 3)
}

func TestHeadersAndNamespace(t *testing.T) {
	blob := contents(1000)
	mirror, origin := serve(t, blob, status(404)), serve(t, blob)
	hosts := []docker.RegistryHost{mirror.host(), origin.host()}
	hosts[0].Path = "/v2/proxy"
	hosts[0].Header = http.Header{"X-Mirror": {"yes"}}
	hosts[1].Header = http.Header{"X-Origin": {"one", "two"}, "User-Agent": {"builder/1"}}
	s := source(hosts...)
	s.Registry = origin.name()
	b := NewLine(Options{}).Open(origin.digest(), s)
	wantRange(t, b, blob, 0, 1000)

	asked := mirror.seen()[0]
	require.Equal(t, "/v2/proxy/library/image/blobs/"+origin.digest().String()+"?ns="+strings.ReplaceAll(origin.name(), ":", "%3A"), asked.URL.RequestURI())
	require.Equal(t, "yes", asked.Header.Get("X-Mirror"))
	asked = origin.seen()[0]
	require.Equal(t, "/v2/library/image/blobs/"+origin.digest().String(), asked.URL.RequestURI())
	require.Equal(t, []string{"one", "two"}, asked.Header["X-Origin"])
	require.Equal(t, "builder/1", asked.UserAgent())
	require.Empty(t, asked.Header.Get("X-Mirror"))
}

func TestDockerHubIsNoMirror(t *testing.T) {
	hub := docker.RegistryHost{Scheme: "https", Host: "registry-1.docker.io", Path: "/v2"}
	u := blobURL(Source{Registry: "docker.io", Repository: "library/debian"}, hub, "sha256:0")
	require.Equal(t, "https://registry-1.docker.io/v2/library/debian/blobs/sha256:0", u.String())
}

// Added sources are asked first, those that the blob knows stay what they are.
func TestAdd(t *testing.T) {
	blob := contents(1000)
	one, two, three := serve(t, blob), serve(t, blob), serve(t, blob, status(404))
	b := one.open(Options{})
	wantRange(t, b, blob, 0, 10)

	b.Add(source(two.host()))
	wantRange(t, b, blob, 0, 20)
	require.Len(t, one.seen(), 2)
	require.Empty(t, two.seen())

	reader := source(two.host())
	reader.Reader = "session"
	b.Add(reader)
	wantRange(t, b, blob, 0, 20)
	require.Len(t, two.seen(), 1)

	other := source(three.host())
	other.Repository = "other/image"
	b.Add(other)
	wantRange(t, b, blob, 0, 30)
	require.Len(t, three.seen(), 1)
	require.Len(t, two.seen(), 2, "the old source")
	require.Len(t, one.seen(), 2)
}

func TestAddKeepsFew(t *testing.T) {
	b := NewLine(Options{}).Open(someDigest)
	alive := func() bool { return true }
	for i := range 100 {
		b.Add(Source{Repository: fmt.Sprint(i)}, Source{Repository: "the same", Reader: fmt.Sprint(i), Alive: alive})
	}
	require.Len(t, b.roster.places, maxReaderless+100, "no reader that lives is forgotten")
	require.Equal(t, "99", b.roster.places[0].Repository)
}

// Readers of one registry and repository do not get in each other's way, and
// those that are gone are not asked for their credentials.
func TestReaders(t *testing.T) {
	blob := contents(1000)
	var asked []string
	r := serve(t, blob, func(w http.ResponseWriter, req *http.Request) bool {
		asked = append(asked, req.Header.Get("X-Session"))
		return req.Header.Get("X-Session") == "wrong" && status(401)(w, req)
	})
	gone, answered := map[string]bool{}, map[string]int{}
	reader := func(name string) Source {
		h := r.host()
		h.Header = http.Header{"X-Session": {name}}
		s := source(h)
		s.Reader, s.Alive = name, func() bool { return !gone[name] }
		s.Answered = func() { answered[name]++ }
		return s
	}
	b := NewLine(impatient).Open(r.digest(), reader("wrong"), reader("right"))
	wantRange(t, b, blob, 0, 10)
	wantRange(t, b, blob, 10, 10)
	require.Equal(t, []string{"wrong", "right", "right"}, asked)
	require.Equal(t, map[string]int{"right": 2}, answered)

	b.Add(reader("new"))
	gone["right"] = true
	wantRange(t, b, blob, 0, 10)
	gone["new"] = true
	require.ErrorContains(t, wantError(t, b), "401")
	gone["wrong"] = true
	e := wantError(t, b)
	require.ErrorIs(t, e, errEnded)
	require.False(t, e.Temporary())
	require.Empty(t, b.roster.places)
}

// Whoever shares what a reader has begun reads on when that one is gone, and is
// followed in turn. Those that are known are not added again.
func TestSuccessors(t *testing.T) {
	blob := contents(1000)
	var asked []string
	r := serve(t, blob, func(_ http.ResponseWriter, req *http.Request) bool {
		asked = append(asked, req.Header.Get("X-Session"))
		return false
	})
	gone, next := map[string]bool{}, map[string][]string{"first": {"second", "third"}, "second": {"third"}}
	var reader func(name string) Source
	reader = func(name string) Source {
		h := r.host()
		h.Header = http.Header{"X-Session": {name}}
		s := source(h)
		s.Reader, s.Alive = name, func() bool { return !gone[name] }
		s.Successors = func(d digest.Digest) (sources []Source) {
			require.Equal(t, r.digest(), d)
			for _, name := range next[name] {
				sources = append(sources, reader(name))
			}
			return sources
		}
		return s
	}
	b := NewLine(impatient).Open(r.digest(), reader("first"))
	for i, name := range []string{"first", "second", "third"} {
		wantRange(t, b, blob, int64(10*i), 10)
		gone[name] = true
	}
	require.Equal(t, []string{"first", "second", "third"}, asked)
	require.ErrorIs(t, wantError(t, b), errEnded)
	require.Empty(t, b.roster.places)
}

// What has failed once is asked again after a while, in its turn.
func TestGrudge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := contents(100)
		bad := true
		first := &inProcess{serve: func(w http.ResponseWriter, r *http.Request) {
			if bad {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			sendBlob(w, r, blob)
		}}
		second := &inProcess{serve: func(w http.ResponseWriter, r *http.Request) { sendBlob(w, r, blob) }}
		other := second.host()
		other.Host = "other.example"
		b := NewLine(Options{}).Open(someDigest, source(first.host(), other))
		wantRange(t, b, blob, 0, 10)
		bad = false
		wantRange(t, b, blob, 0, 10)
		require.Equal(t, 1, first.requests())
		time.Sleep(grudge)
		wantRange(t, b, blob, 0, 10)
		require.Equal(t, 2, first.requests())
		require.Equal(t, 2, second.requests())
	})
}

// A probe takes any answer, and reads none of it.
func TestProbe(t *testing.T) {
	for name, f := range map[string]trouble{
		"a range": func(http.ResponseWriter, *http.Request) bool { return false },
		"whole":   unranged(false),
		"endless": endless,
	} {
		r := serve(t, contents(100_000), f)
		b := r.open(impatient)
		require.NoError(t, b.Probe(t.Context()), name)
		require.Equal(t, []string{"bytes=0-0"}, r.ranges(), name)
		require.Zero(t, b.spool.have)
		require.Zero(t, b.line.Stats().Running)
	}
	require.ErrorContains(t, serve(t, nil, status(403)).open(impatient).Probe(t.Context()), "403 Forbidden")
}

// A read that waits for a registry goes on as soon as there is another source.
func TestAddWakes(t *testing.T) {
	blob := contents(1000)
	bad, good := serve(t, blob, status(503, "Retry-After", "100")), serve(t, blob)
	b := bad.open(Options{})
	done := make(chan error, 1)
	go func() {
		_, err := read(t.Context(), b.With(Wanted), 0, 10)
		done <- err
	}()
	eventually(t, func() bool { b.roster.mu.Lock(); defer b.roster.mu.Unlock(); return b.roster.added != nil })
	s := source(good.host())
	s.Repository = "other/image"
	b.Add(s)
	require.NoError(t, <-done)
}

// Hosts is called again when all hosts have failed: that is where new
// credentials come from.
func TestHostsAreAskedForAgain(t *testing.T) {
	blob := contents(1000)
	r := serve(t, blob, func(w http.ResponseWriter, r *http.Request) bool {
		return r.Header.Get("X-Session") != "2" && status(403)(w, r)
	})
	session := 0
	b := NewLine(Options{}).Open(r.digest(), Source{Hosts: func() ([]docker.RegistryHost, error) {
		session++
		if session == 2 {
			h := r.host()
			h.Header = http.Header{"X-Session": {"2"}}
			return []docker.RegistryHost{h}, nil
		}
		return []docker.RegistryHost{r.host()}, nil
	}})
	wantRange(t, b, blob, 0, 10)
	require.Len(t, r.seen(), 2)
}

func TestHostsThatFailForAWhile(t *testing.T) {
	blob := contents(1000)
	r := serve(t, blob)
	calls := 0
	b := NewLine(Options{}).Open(r.digest(), Source{Hosts: func() ([]docker.RegistryHost, error) {
		if calls++; calls < 3 {
			return nil, errors.New("not now")
		}
		return []docker.RegistryHost{r.host()}, nil
	}})
	wantRange(t, b, blob, 0, 10)
}

// After wrong bytes the next request goes to another host, and to the same one
// past caches if there is no other.
func TestCorrupt(t *testing.T) {
	blob := contents(1000)
	bad, good := serve(t, blob), serve(t, blob)
	b := NewLine(Options{}).Open(good.digest(), source(bad.host(), good.host()))
	for range 2 {
		rc, err := b.With(Wanted).Range(t.Context(), 0, 1000)
		require.NoError(t, err)
		_, err = io.ReadFull(rc, make([]byte, 1000))
		require.NoError(t, err)
		rc.(interface{ Corrupt() }).Corrupt()
		require.NoError(t, rc.Close())
	}
	wantRange(t, b, blob, 0, 10)
	require.Len(t, bad.seen(), 2)
	require.Len(t, good.seen(), 1)
	require.EqualValues(t, 2, b.line.Stats().Corrupt)
	require.Empty(t, bad.seen()[0].Header.Get("Cache-Control"))
	require.Equal(t, "no-cache", bad.seen()[1].Header.Get("Cache-Control"))
	require.NotEqual(t, bad.seen()[0].RemoteAddr, bad.seen()[1].RemoteAddr, "the same connection")
}

// A stream that was corrupt can go on: the rest comes from elsewhere.
func TestCorruptInTheMiddle(t *testing.T) {
	blob := contents(1 << 20)
	bad, good := serve(t, blob), serve(t, blob)
	b := NewLine(Options{}).Open(good.digest(), source(bad.host(), good.host()))
	rc, err := b.With(Wanted).Range(t.Context(), 0, 1<<20)
	require.NoError(t, err)
	defer rc.Close()
	_, err = io.ReadFull(rc, make([]byte, 1000))
	require.NoError(t, err)
	rc.(*Stream).Corrupt()
	rest, err := io.ReadAll(rc)
	require.NoError(t, err)
	require.Equal(t, blob[1000:], rest)
	require.Equal(t, []string{"bytes=1000-1048575"}, good.ranges())
}

// A source behind another one is asked when the first has sent wrong bytes,
// though it did not fail.
func TestCorruptAsksTheNextSource(t *testing.T) {
	blob := contents(1000)
	bad, good := serve(t, blob), serve(t, blob)
	other := source(good.host())
	other.Repository = "other/image"
	b := NewLine(Options{}).Open(good.digest(), source(bad.host()), other)
	rc, err := b.With(Wanted).Range(t.Context(), 0, 10)
	require.NoError(t, err)
	_, err = io.ReadAll(rc)
	require.NoError(t, err)
	rc.(*Stream).Corrupt()
	wantRange(t, b, blob, 0, 10)
	require.Len(t, bad.seen(), 1)
	require.Len(t, good.seen(), 1)
}

// eventually waits until something holds that another goroutine does, however busy
// the machine is.
func eventually(t testing.TB, holds func() bool) {
	t.Helper()
	require.Eventually(t, holds, time.Minute, time.Millisecond)
}
