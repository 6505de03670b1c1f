# A layer that cannot be compressed.
ARG BASE
FROM ${BASE}
RUN head -c 300000000 /dev/urandom >/random
