# A file of 300 MB that cannot be compressed, and what reads it.
ARG BASE
FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends fio \
 && rm -rf /var/lib/apt/lists/*
RUN head -c 300000000 /dev/urandom >/large
