# Eight layers of a GiB each, of what Debian has.
ARG BASE
FROM ${BASE}
COPY <<'SCRIPT' /fill
all() { find /usr /var -xdev -type f -print0 | sort -z | xargs -0 cat; }
for n in $(seq 8); do
    mkdir -p /data/$1/$n
    { all; all; } 2>/dev/null | head -c 128M | split -a 4 -b 1M - /data/$1/$n/
done
SCRIPT
RUN sh /fill 1
RUN sh /fill 2
RUN sh /fill 3
RUN sh /fill 4
RUN sh /fill 5
RUN sh /fill 6
RUN sh /fill 7
RUN sh /fill 8
