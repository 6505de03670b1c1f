# Shared by the scripts beside it: source it, do not run it.
# shellcheck shell=bash

set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# Everything that is installed, built or downloaded goes here, never into the
# repository.
cache=${BUILDKITD_ESGZ_CACHE:-/var/cache/buildkitd-esgz}
bin=$cache/bin
export PATH=$bin:$PATH

# Go's caches are there, and some services are started without.
export HOME=${HOME:-~}
# Users without rights read what is made here.
umask 022
# Nothing here needs C but the race detector.
export CGO_ENABLED=0

# Git, and go build, which asks it for the revision, refuse another user's clone.
git_options=${GIT_CONFIG_COUNT:-0}
export "GIT_CONFIG_KEY_$git_options=safe.directory" "GIT_CONFIG_VALUE_$git_options=$repo"
export GIT_CONFIG_COUNT=$((git_options + 1))

# Containers are ended at the exit of a script. They must not be those of a containerd
# that the user works with.
unset CONTAINERD_ADDRESS CONTAINERD_NAMESPACE

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

need_root() { [ "$(id -u)" = 0 ] || die "needs root: runc, mounts and apt-get do"; }

work='' step_group='' step_log='' served=()

# step TEXT COMMAND...: runs the command with its output in a log file, shows
# a running clock, and shows the log when the command fails.
step() {
    local text=$1 start=$SECONDS status=0
    shift
    step_log=$(mktemp)
    in_group "$@" >"$step_log" 2>&1
    while kill -0 "$step_group" 2>/dev/null; do
        [ ! -t 2 ] || printf '\r\033[K    %s ... %ds ' "$text" $((SECONDS - start)) >&2
        sleep 0.2
    done
    wait "$step_group" || status=$?
    step_group=''
    [ ! -t 2 ] || printf '\r\033[K' >&2
    if [ "$status" = 0 ]; then
        printf '    %s: %ds\n' "$text" $((SECONDS - start)) >&2
    else
        printf '    %s: failed after %ds\n' "$text" $((SECONDS - start)) >&2
        tail -n 60 "$step_log" >&2
    fi
    rm -f "$step_log"
    return "$status"
}

# in_group COMMAND...: starts it in a process group of its own, $step_group, so
# that clean_up can end all of it.
in_group() {
    set -m
    "$@" </dev/null &
    set +m
    step_group=$!
}

# alone FILE WHAT: waits while another run holds the lock, and holds it until this
# script ends.
alone() {
    exec 9>"$1"
    flock --nonblock 9 || {
        say "Waiting for another run, which $2"
        flock 9
    }
}

# scratch makes $work, a directory that is gone when the script ends, as is all
# that was mounted below it.
scratch() {
    work=$(mktemp -d "${TMPDIR:-/tmp}/buildkitd-esgz.XXXXXX")
    # Daemons in a user namespace have their directories below it.
    chmod 711 "$work"
    # Daemons mount things there while they work.
    mkdir "$work/tmp"
    export TMPDIR=$work/tmp
}

clean_up() {
    local status=$? i
    trap '' INT TERM HUP
    if [ -n "$step_group" ]; then
        kill -TERM -- "-$step_group" 2>/dev/null || true
        stop "$step_group"
    fi
    [ -z "${CONTAINERD_ADDRESS:-}" ] || end_containers
    # The last one started goes first, since it uses the others.
    for ((i = ${#served[@]} - 1; i >= 0; i--)); do
        stop "${served[i]}"
    done
    rm -f "$step_log"
    [ -z "$work" ] || remove_scratch
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# contained COMMAND...: takes the place of the shell, with processes and mounts
# of its own. When it ends, or the shell's parent does, however that be, the
# kernel ends and unmounts what is left of them: servers, containers, mounts.
contained() {
    exec setpriv --pdeathsig KILL unshare --pid --fork --kill-child --mount-proc \
        --mount --propagation private -- "$@"
}

# end_containers: a container outlives the command that runs it, and containerd.
end_containers() {
    "$bin/ctr" tasks ls -q 2>/dev/null | while read -r id; do
        "$bin/ctr" tasks rm --force "$id" >/dev/null 2>&1 || true
    done
}

remove_scratch() {
    # Deepest mounts first. The kernel writes a space as \040.
    awk -v dir="$work/" '{ gsub(/\\040/, " ", $5) } index($5, dir) == 1 { print $5 }' /proc/self/mountinfo |
        sort -r | while IFS= read -r dir; do umount -l "$dir"; done
    # Those that were killed may have been writing.
    rm -rf "$work" || { sleep 2 && rm -rf "$work"; }
}

# stop PID: asks it to end, and kills it when it has not after ten seconds.
stop() {
    local tries
    kill -TERM "$1" 2>/dev/null || return 0
    for ((tries = 0; tries < 100; tries++)); do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$1" 2>/dev/null || true
}

# serve NAME COMMAND...: starts a server with its log in $work/NAME.log.
serve() {
    local name=$1
    shift
    : >"$work/$name.log" # an earlier one's would be read as that of this server
    # A session of its own keeps Ctrl-C from it: clean_up ends it in order.
    setsid "$@" >"$work/$name.log" 2>&1 </dev/null &
    served+=($!)
}

# until_ready NAME COMMAND...: waits for a server, and shows its log when it
# does not come up.
until_ready() {
    local name=$1 tries
    shift
    for ((tries = 0; tries < 300; tries++)); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    tail -n 40 "$work/$name.log" >&2
    die "$name did not start"
}

# listens NAME SCRIPT: whether the server NAME has said which address it listens on,
# which a script of sed finds in its log. It is in $address then.
listens() {
    address=$(sed -n "$2" "$work/$1.log")
    [ -n "$address" ]
}

# start_registry: an empty registry on a port of loopback that it chooses, its
# address in $registry.
start_registry() {
    serve registry env REGISTRY_HTTP_ADDR=127.0.0.1:0 REGISTRY_LOG_LEVEL=info \
        REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY="$work/registry" \
        "$bin/docker-registry" serve "$repo/internal/harness/registry.yml"
    until_ready registry listens registry 's/.*listening on \(127\.0\.0\.1:[0-9]*\).*/\1/p'
    registry=$address
    until_ready registry curl -fsS "http://$registry/v2/"
}

# start_daemon BINARY: a build daemon with a root of its own, and a buildx
# builder named esgz that drives it.
start_daemon() {
    serve buildkitd "$1" --root "$work/buildkit" --addr "unix://$work/buildkitd.sock" \
        --containerd-worker=false --oci-worker-net=host
    until_ready buildkitd test -S "$work/buildkitd.sock"
    export BUILDX_CONFIG=$work/buildx BUILDX_BUILDER=esgz
    "$bin/buildx" create --name esgz --driver remote "unix://$work/buildkitd.sock" >/dev/null
}

# push_base: the Debian base, pushed to the registry as what others would
# push, gzip.
push_base() {
    "$bin/buildx" build --provenance=false \
        --output "type=registry,name=$registry/debian:bookworm" \
        --file "$repo/hack/image/base.Dockerfile" "$cache/base"
}

# start_node NAME: containerd with nothing in it, its overlayfs snapshotter,
# which knows nothing of eStargz, and the stock stargz-snapshotter as a proxy
# plugin, all below $work/NAME.
start_node() {
    local dir=$work/$1
    mkdir "$dir"
    serve stargz "$bin/stargz-snapshotter" -prefetch -root "$dir/stargz" -address "$dir/stargz.sock"
    until_ready stargz test -S "$dir/stargz.sock"
    cat >"$dir/containerd.toml" <<-TOML
	version = 3
	root = "$dir/containerd"
	state = "$dir/containerd-state"
	[grpc]
	  address = "$dir/containerd.sock"
	[ttrpc]
	  address = "$dir/containerd.sock.ttrpc"
	[proxy_plugins.stargz]
	  type = "snapshot"
	  address = "$dir/stargz.sock"
	TOML
    # It finds the shim in $PATH.
    serve containerd "$bin/containerd" --config "$dir/containerd.toml"
    export CONTAINERD_ADDRESS=$dir/containerd.sock
    until_ready containerd "$bin/ctr" version
}

# stop_node ends what start_node started last.
stop_node() {
    local i
    end_containers
    unset CONTAINERD_ADDRESS
    for i in 1 2; do
        stop "${served[-1]}"
        unset 'served[-1]'
    done
}

# start_slow_line: what a node in another data centre sees of the registry, 20 ms
# away and with 400 Mbit/s, its address in $far.
start_slow_line() {
    serve slow-line "$bin/shape" -listen 127.0.0.1:0 -to "$registry" -delay 20ms -rate 400 -log "$work/requests"
    until_ready slow-line listens slow-line '/^127\.0\.0\.1:[0-9]*$/p'
    far=$address
    until_ready slow-line curl -fsS "http://$far/v2/"
}

# line_bytes: what came over the slow line so far.
line_bytes() {
    sed -n 's/.*"bytes":\([0-9]*\).*/\1/p' "$work/requests" | awk '{ sum += $1 } END { print sum + 0 }'
}
