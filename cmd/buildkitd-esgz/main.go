// Command buildkitd-esgz is BuildKit's daemon with fast eStargz: a drop-in for
// buildkitd that takes the same flags, configuration and environment.
//
// This package holds flags, configuration, listeners and wiring. What the
// daemon does differently from BuildKit's is in the packages that it wires.
package main

import (
	"context"
	"fmt"
	"os"
	"syscall"

	// The codec that gRPC uses for BuildKit's generated messages.
	_ "github.com/moby/buildkit/util/grpcutil/encoding/proto"
	// Joins the trace of the process that started the daemon.
	_ "github.com/moby/buildkit/util/tracing/childprocess"
	// JAEGER_TRACE and OTEL_TRACES_EXPORTER=jaeger.
	_ "github.com/moby/buildkit/util/tracing/detect/jaeger"

	"github.com/moby/buildkit/util/apicaps"
	"github.com/moby/buildkit/util/stack"
	"github.com/moby/buildkit/util/tracing/detect"
	"github.com/moby/buildkit/version"
	"github.com/sirupsen/logrus"
	fscopy "github.com/tonistiigi/fsutil/copy"
)

func main() {
	setUpProcess()
	if err := newCommand().Run(context.Background(), os.Args); err != nil {
		report(err)
		os.Exit(1)
	}
}

// setUpProcess sets what BuildKit's packages keep in global variables, before
// any of them is used.
func setUpProcess() {
	identify()
	stack.SetVersionInfo(version.Version, version.Revision)
	// The product that error messages of clients name when they ask for an update.
	apicaps.ExportedProduct = "buildkit"
	// Keeps the spans of running builds for the build history.
	detect.Recorder = detect.NewTraceRecorder()
	// Build results have exactly the permissions that the build asked for.
	syscall.Umask(0)
	fscopy.UmaskIsZero = true
}

// report prints why the daemon gave up; the stack is for its developers.
func report(err error) {
	format := "%s: %v\n"
	if logrus.IsLevelEnabled(logrus.DebugLevel) {
		format = "%s: %+v\n"
	}
	fmt.Fprintf(os.Stderr, format, programName, err)
}
