# An application that reads a small part of a very large file: of 300 MB of
# orders the last ones, and those of a few customers by an index.
ARG BASE
FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends sqlite3 \
 && rm -rf /var/lib/apt/lists/*
COPY bench/orders.sql bench/report.sql /data/
RUN sqlite3 /data/orders.db </data/orders.sql
CMD ["sh", "-c", "sqlite3 -readonly /data/orders.db </data/report.sql"]
