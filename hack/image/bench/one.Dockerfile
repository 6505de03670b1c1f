# One layer of some GiB: what Debian has, over and over.
ARG BASE
FROM ${BASE}
ARG GIB=1
RUN all() { find /usr /var -xdev -type f -print0 | sort -z | xargs -0 cat; }; \
    for n in $(seq $((GIB * 8))); do \
        mkdir -p /data/$n \
        && { all; all; } 2>/dev/null | head -c 128M | split -a 4 -b 1M - /data/$n/ \
        || exit 1; \
    done
