# An application that does its work and ends.
ARG BASE
FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-pandas python3-flask \
 && rm -rf /var/lib/apt/lists/*
COPY app.py sales.csv /app/
WORKDIR /app
USER nobody
ENTRYPOINT ["python3", "app.py", "--once"]
