package blob

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// A span is a range of a blob: n bytes from off on, or the last n.
type span struct{ off, n int64 }

const (
	suffix  int64 = -1 // the off of the last n bytes
	unknown int64 = -1 // the size of a blob
)

// String is the header that asks for the span.
func (s span) String() string {
	if s.off == suffix {
		return fmt.Sprintf("bytes=-%d", s.n)
	}
	return fmt.Sprintf("bytes=%d-%d", s.off, s.off+s.n-1)
}

// A reply is the body of a host's answer.
type reply struct {
	io.ReadCloser
	at    span  // what comes
	size  int64 // of the blob, if not unknown
	whole bool  // the server has ignored the range and sends all of the blob

	host  *host // that sent it
	local bool  // it was sent before

	since  time.Time
	bytes  int64
	paused bool // the reader has made it wait, which says nothing about the line
}

func (r *reply) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if !r.local {
		r.bytes += int64(n)
		r.host.counts.bytes.Add(int64(n))
	}
	return n, err
}

func (r *reply) Close() error {
	if !r.local && !r.paused {
		r.host.peer.carried(r.bytes, time.Since(r.since))
	}
	return r.ReadCloser.Close()
}

// check says what an answer is to the question for a range.
func (h *host) check(resp *http.Response, want span) (*reply, error) {
	r := &reply{ReadCloser: resp.Body, size: unknown, host: h, since: time.Now()}
	switch resp.StatusCode {
	case http.StatusPartialContent:
		var err error
		if r.at, r.size, err = parseContentRange(resp.Header.Get("Content-Range")); err != nil {
			return nil, err
		}
		if resp.ContentLength >= 0 && resp.ContentLength != r.at.n {
			return nil, &fault{fmt.Sprintf("%d bytes for the range %q", resp.ContentLength, resp.Header.Get("Content-Range"))}
		}
		return r, r.answers(want)
	case http.StatusOK:
		r.whole, r.size = true, resp.ContentLength
		r.at = span{0, r.size}
		return r, nil
	}
	return nil, newStatusError(resp)
}

// answers tells whether the reply is what was asked for. It may be shorter.
func (r *reply) answers(want span) error {
	if want.off == suffix {
		if r.size == unknown || r.at.n != min(want.n, r.size) {
			return &fault{fmt.Sprintf("asked for the last %d bytes, got %v of %d", want.n, r.at, r.size)}
		}
		return nil
	}
	if r.at.off != want.off || r.at.n > want.n {
		return &fault{fmt.Sprintf("asked for %v, got %v", want, r.at)}
	}
	return nil
}

func outside(want span, size int64) error {
	return fmt.Errorf("asked for %v: %w, the blob has %d bytes", want, errRange, size)
}

// parseContentRange reads "bytes first-last/size", in which the size may be
// unknown: "*".
func parseContentRange(s string) (span, int64, error) {
	bad := &fault{fmt.Sprintf("Content-Range %q", s)}
	bytes, total, ok := strings.Cut(strings.TrimPrefix(s, "bytes "), "/")
	first, last, ok2 := strings.Cut(bytes, "-")
	if !ok || !ok2 {
		return span{}, 0, bad
	}
	from, err := strconv.ParseUint(first, 10, 62)
	to, err2 := strconv.ParseUint(last, 10, 62)
	if err != nil || err2 != nil || from > to {
		return span{}, 0, bad
	}
	size := unknown
	if total != "*" {
		n, err := strconv.ParseUint(total, 10, 62)
		if err != nil || to >= n {
			return span{}, 0, bad
		}
		size = int64(n)
	}
	return span{int64(from), int64(to - from + 1)}, size, nil
}

// discard leaves the connection fit for another request if little is left of
// the body.
func discard(resp *http.Response) {
	io.CopyN(io.Discard, resp.Body, maxDetail)
	resp.Body.Close()
}
