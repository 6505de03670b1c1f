# A server that runs until stopped. It works as this user, in this directory and
# with these variables only.
ARG BASE
FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends nodejs node-express node-lodash \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1500 --create-home app
COPY --chown=app --chmod=700 bench/server /srv/server
WORKDIR /srv/server
ENV NODE_PATH=/usr/share/nodejs LANGUAGE=de PORT=8080
USER app
ENTRYPOINT ["node"]
CMD ["server.js"]
