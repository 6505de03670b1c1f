# Three large files of machine code in one layer.
ARG BASE
FROM ${BASE} AS toolchain
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc g++ \
 && rm -rf /var/lib/apt/lists/*
RUN mkdir /large \
 && find / -xdev -path /large -prune -o -type f -size +64k \( -perm -1 -o -name '*.so*' -o -name '*.a' \) -print0 | sort -z >/tmp/files \
 && xargs -0 cat </tmp/files >/large/all \
 && split -n 3 /large/all /large/part- && rm /large/all
FROM ${BASE}
COPY --from=toolchain /large /large
