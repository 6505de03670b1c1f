# The image of the daemon, as buildx's docker-container and kubernetes drivers
# expect one: the entrypoint is the daemon, all else is flags, and buildctl is
# there for their probes and their dial-stdio.
#
# Bases are arguments for those who have mirrors of them.
ARG GOLANG=golang:1.26-bookworm
ARG DEBIAN=debian:bookworm-slim

FROM ${GOLANG} AS build
WORKDIR /src
RUN --mount=type=bind,source=go.mod,target=go.mod \
    --mount=type=bind,source=go.sum,target=go.sum \
    --mount=type=cache,target=/go/pkg/mod \
    go mod download
RUN --mount=type=bind,target=. \
    --mount=type=cache,target=/go/pkg/mod \
    --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o /out/buildkitd-esgz ./cmd/buildkitd-esgz && \
    CGO_ENABLED=0 go build -trimpath -ldflags "-s -w \
      -X github.com/moby/buildkit/version.Version=$(go list -m -f '{{.Version}}' github.com/moby/buildkit)" \
      -o /out/buildctl github.com/moby/buildkit/cmd/buildctl

# Where no base with Go is at hand, binaries that were built outside take the
# place of the stage above: buildx build --build-context build=DIR, with
# DIR/out/buildkitd-esgz and DIR/out/buildctl.
FROM ${DEBIAN}
# fuse3 and its fusermount for lazy mounts, git for git sources, iptables for
# the network of build steps.
RUN apt-get update && \
    apt-get install -y --no-install-recommends ca-certificates fuse3 git iptables openssh-client pigz runc xz-utils && \
    rm -rf /var/lib/apt/lists/*
COPY --from=build /out/ /usr/bin/
# By this name buildx asks for the version.
RUN ln -s buildkitd-esgz /usr/bin/buildkitd
VOLUME /var/lib/buildkit
ENTRYPOINT ["buildkitd-esgz"]
