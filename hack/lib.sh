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

# Nothing here is for a containerd that the user works with.
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
        # A signal ends wait, but not a command that the shell runs in the foreground.
        flock 9 &
        served+=($!)
        wait $!
        unset 'served[-1]'
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

remove_scratch() {
    # Deepest mounts first. The kernel writes a space as \040.
    awk -v dir="$work/" '{ gsub(/\\040/, " ", $5) } index($5, dir) == 1 { print $5 }' /proc/self/mountinfo |
        sort -r | while IFS= read -r dir; do umount -l "$dir"; done
    # Those that were killed may have been writing.
    rm -rf "$work" || { sleep 2 && rm -rf "$work"; }
}

# stop PID: asks it to end, and kills it when it has not after a minute, which it says.
stop() {
    local tries
    kill -TERM "$1" 2>/dev/null || return 0
    for ((tries = 0; tries < 600; tries++)); do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.1
    done
    say "Process $1 has not ended after a minute, and is killed: $(tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline")"
    kill -KILL "$1" 2>/dev/null || true
}
