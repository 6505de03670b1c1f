# The daemon's own image, for builders that buildx makes (docker-container,
# kubernetes) and for all else that starts moby/buildkit: what that image has is
# here under the same names. docker-bake.hcl has the usual ways to build it.
#
# Nothing runs on the target platform, so no emulation is needed to build the
# image of another one.

# Bases, for those who have mirrors or others of them. DEBIAN may be any image
# with apt and sources that have both architectures. BINFMT has the emulators for
# steps of other platforms: "debian-emulators" is the stage of that name below, and
# "scratch" leaves them out.
ARG GOLANG=golang:1.26-bookworm
ARG DEBIAN=debian:bookworm-slim
ARG BINFMT=tonistiigi/binfmt:buildkit-v10.2.3-66

FROM --platform=$BUILDPLATFORM ${GOLANG} AS go
WORKDIR /src
ARG GOPROXY

FROM go AS build
ARG TARGETARCH
ARG REVISION
RUN --mount=type=bind,target=. \
    --mount=type=cache,target=/go/pkg/mod \
    --mount=type=cache,target=/root/.cache/go-build \
    GOARCH=$TARGETARCH hack/daemon/programs /out

FROM scratch AS binaries
COPY --from=build /out/bin/ /

FROM scratch AS rootlesskit
COPY --from=build /out/rootless/ /

# The unit tests, without those that need root.
FROM go AS test
ARG TESTS=./...
RUN --mount=type=bind,target=. \
    --mount=type=cache,target=/go/pkg/mod \
    --mount=type=cache,target=/root/.cache/go-build \
    go vet ${TESTS} && go test -short ${TESTS}

FROM --platform=$BUILDPLATFORM ${DEBIAN} AS packages
ARG TARGETARCH
ENV PACKAGES="base-files base-passwd ca-certificates coreutils dash fuse3 git grep \
    iptables mawk mount netbase openssh-client openssl pigz runc sed util-linux xz-utils"

FROM packages AS rootfs
RUN --mount=type=bind,source=hack/daemon/rootfs,target=/rootfs-of \
    /rootfs-of /rootfs $TARGETARCH $PACKAGES && \
    mkdir -p /rootfs/etc/cdi /rootfs/etc/buildkit/cdi /rootfs/run/cdi

# With the bit for root these two would need CAP_SYS_ADMIN, which a container does
# not have. With a capability they act as the user, who owns the namespace.
FROM packages AS rootfs-rootless
RUN apt-get update && apt-get install -y --no-install-recommends libcap2-bin
RUN --mount=type=bind,source=hack/daemon/rootfs,target=/rootfs-of \
    /rootfs-of /rootfs $TARGETARCH $PACKAGES fuse-overlayfs uidmap && \
    cd /rootfs && \
    echo user:x:1000:1000::/home/user:/bin/sh >>etc/passwd && \
    echo user:x:1000: >>etc/group && \
    echo user:100000:65536 | tee etc/subuid >etc/subgid && \
    chmod u-s usr/bin/newuidmap usr/bin/newgidmap && \
    setcap cap_setuid+ep usr/bin/newuidmap && \
    setcap cap_setgid+ep usr/bin/newgidmap && \
    mkdir -p run/user/1000 home/user/.local/tmp home/user/.local/share/buildkit && \
    chown -R 1000:1000 run/user/1000 home/user

# Debian's emulators, which are not BuildKit's: what an emulated program starts is
# emulated only when the kernel knows them. hack/daemon/buildkitd-binfmt tells it, by
# Debian's descriptions of the programs that are not the machine's own.
FROM packages AS unpacked-emulators
RUN dpkg --add-architecture $TARGETARCH && apt-get -o Acquire::Languages=none update && \
    apt-get download qemu-user-static:$TARGETARCH && dpkg-deb --extract qemu-user-static_*.deb /unpacked
RUN mkdir /emulators && cd /unpacked/usr && \
    case $TARGETARCH in amd64) others=aarch64 ;; arm64) others="i386 x86_64" ;; esac && \
    for arch in arm ppc64le riscv64 s390x $others; do \
        cp -p bin/qemu-$arch-static /emulators/buildkit-qemu-$arch && \
        if [ -e lib/binfmt.d/qemu-$arch.conf ]; then cp -p lib/binfmt.d/qemu-$arch.conf /emulators/; fi; \
    done

FROM scratch AS debian-emulators
COPY --from=unpacked-emulators /emulators/ /

FROM ${BINFMT} AS binfmt

FROM scratch AS common
ARG REVISION
LABEL org.opencontainers.image.title="buildkitd-esgz" \
      org.opencontainers.image.source="https://github.com/buildkitd-esgz/buildkitd-esgz" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"

FROM common AS rootless
COPY --from=rootfs-rootless /rootfs/ /
COPY --from=binfmt /buildkit-qemu-* /usr/bin/
COPY --from=binfmt /qemu-*.conf /usr/lib/binfmt.d/
COPY --from=binaries / /usr/bin/
COPY --from=rootlesskit / /usr/bin/
COPY hack/daemon/buildkitd-binfmt /usr/bin/
# By number, since Kubernetes asks whether it is root's.
USER 1000:1000
ENV HOME=/home/user USER=user XDG_RUNTIME_DIR=/run/user/1000 TMPDIR=/home/user/.local/tmp \
    BUILDKIT_HOST=unix:///run/user/1000/buildkit/buildkitd.sock
VOLUME /home/user/.local/share/buildkit
ENTRYPOINT ["rootlesskit", "buildkitd"]

# What a builder reads until its first step, for estargz-profile=stage. Programs
# are read to their end: how much of one is read by running it differs by machine,
# and so would the digest.
FROM rootless AS profile-rootless
RUN rootlesskit --version && runc --version && cd /usr/bin && \
    cat rootlesskit buildkitd buildctl ../sbin/runc >/dev/null

FROM common AS image
COPY --from=rootfs /rootfs/ /
COPY --from=binfmt /buildkit-qemu-* /usr/bin/
COPY --from=binfmt /qemu-*.conf /usr/lib/binfmt.d/
COPY --from=binaries / /usr/bin/
COPY hack/daemon/buildkitd-binfmt hack/daemon/buildkitd-entrypoint /usr/bin/
# The daemon moves itself to a group below the root, so that the root may have
# groups with controllers.
ENV BUILDKIT_SETUP_CGROUPV2_ROOT=1
VOLUME /var/lib/buildkit
ENTRYPOINT ["buildkitd-entrypoint"]

FROM image AS profile
RUN buildkitd-entrypoint --version && runc --version && cd /usr/bin && \
    cat buildkitd buildctl ../sbin/runc >/dev/null

FROM image
