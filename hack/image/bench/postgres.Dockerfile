# A database that runs until stopped.
ARG BASE
FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends postgresql-15 \
 && rm -rf /var/lib/apt/lists/*
ENV PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/data
RUN install -d -o postgres -g postgres -m 700 /data
USER postgres
RUN initdb --encoding=UTF8 --locale=C.UTF-8
STOPSIGNAL SIGINT
CMD ["postgres", "-k", "/tmp", "-h", "127.0.0.1"]
