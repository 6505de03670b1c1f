package blob

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/opencontainers/go-digest"
)

// An Error says why a read of a blob has ended: all hosts refused it, the
// deadline passed, or the context ended.
type Error struct {
	Digest digest.Digest
	Host   string // the registry that was asked last; empty if none was
	Err    error

	refused bool
}

func (e *Error) Error() string {
	if e.Host == "" {
		return fmt.Sprintf("layer %s: %v", e.Digest, e.Err)
	}
	return fmt.Sprintf("layer %s from %s: %v", e.Digest, e.Host, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Temporary tells whether the same read may succeed at another time: it is
// false if every host has refused it.
func (e *Error) Temporary() bool { return !e.refused }

// A fault is an answer that makes no sense. The next one may.
type fault struct{ what string }

func (f *fault) Error() string { return "wrong answer: " + f.what }

// A credentialsError says why there are no credentials for a request. They come
// over a session, and what that says is mostly text.
type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return "credentials: " + e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

// passes tells whether the text is about a server or a line that may do better
// later. All else is about the credentials.
func (e *credentialsError) passes() bool {
	return errors.Is(e.err, context.DeadlineExceeded) || passing.MatchString(e.err.Error())
}

var passing = regexp.MustCompile(`(?i): (408|425|429|5\d\d)\b|connection re(fused|set)|broken pipe|time(d )?out|deadline exceeded|\bEOF\b|no such host|\bunavailable\b`)

// refusal tells whether an error is one that will be the same the next time.
// Errors that are not known are not.
func refusal(err error) bool {
	var (
		credentials *credentialsError
		status      *statusError
		token       remoteserrors.ErrUnexpectedStatus
		certificate *tls.CertificateVerificationError
		protocol    tls.RecordHeaderError
		file        *fs.PathError
	)
	switch {
	case errors.As(err, &status):
		return !status.temporary()
	case errors.As(err, &token):
		return !overloaded(token.StatusCode)
	case errors.As(err, &credentials):
		return !credentials.passes()
	case errors.As(err, &certificate), errors.As(err, &protocol), errors.As(err, &file):
		return true
	}
	return slices.ContainsFunc(final, func(f error) bool { return errors.Is(err, f) })
}

var final = []error{docker.ErrInvalidAuthorization, errRange, errNobody, errEnded, errSpoolFull}

// overloaded tells whether a status stands for a server that may do better
// later.
func overloaded(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return false
	}
	return status >= 500
}

// A statusError is an answer without the bytes.
type statusError struct {
	code   int
	detail string        // what the server says
	after  time.Duration // after which to come again, if it says so
	size   int64         // of the blob, if it says so
}

func (e *statusError) Error() string {
	s := strings.TrimSpace(fmt.Sprintf("%d %s", e.code, http.StatusText(e.code)))
	if e.detail != "" {
		s += ": " + e.detail
	}
	return s
}

// temporary is also true of a refusal that says when to come again.
func (e *statusError) temporary() bool { return overloaded(e.code) || e.after > 0 }

// maxDetail is how much of an answer is read that has no bytes of the blob.
const maxDetail = 4 << 10

func newStatusError(resp *http.Response) *statusError {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxDetail))
	e := &statusError{code: resp.StatusCode, detail: detail(body), after: retryAfter(resp.Header), size: unknown}
	if total, ok := strings.CutPrefix(resp.Header.Get("Content-Range"), "bytes */"); ok {
		if n, err := strconv.ParseInt(total, 10, 64); err == nil && n >= 0 {
			e.size = n
		}
	}
	return e
}

// detail finds the message in the body of a registry's refusal; storage
// answers in XML, which only says more.
func detail(body []byte) string {
	var registry struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &registry) != nil || len(registry.Errors) == 0 {
		return ""
	}
	e := registry.Errors[0]
	text := strings.Trim(strings.ToLower(e.Code)+": "+e.Message, ": ")
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text)
	return text[:min(len(text), 200)]
}

// retryAfter reads the header, which has seconds or a date.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if date, err := http.ParseTime(v); err == nil {
		return max(time.Until(date), 0)
	}
	return 0
}
