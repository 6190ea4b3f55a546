# Debian's packages in place of the images that docker-compose.yml names, where no registry can be reached. Each stage
# is tagged with such a name by tests/test_compose.py; `debian` is a root made by debootstrap.

FROM debian AS python
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv \
    && ln -s python3 /usr/bin/python
CMD ["python"]

FROM python AS ministack
ARG VERSION
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir "ministack==$VERSION"
ENV PATH=/venv/bin:$PATH
CMD ["python", "-m", "ministack"]

# The official image's promises as far as the files here rely on them: a database of the superuser's on first start,
# with POSTGRES_PASSWORD, then /docker-entrypoint-initdb.d/*.sql on a server with the command's settings, without TCP.
FROM debian AS postgres
RUN apt-get update && apt-get install --yes --no-install-recommends postgresql-17 \
    && install --directory --owner postgres /var/lib/postgresql/data
ENV PATH=/usr/lib/postgresql/17/bin:$PATH PGDATA=/var/lib/postgresql/data HOME=/var/lib/postgresql
COPY --chmod=755 <<'SCRIPT' /usr/local/bin/entrypoint
#!/bin/bash
set -euo pipefail
shopt -s nullglob
if test "$(id -u)" = 0; then
    chown postgres "$PGDATA"
    exec setpriv --reuid postgres --regid postgres --init-groups "$0" "$@"
fi
if ! test -s "$PGDATA/PG_VERSION"; then
    initdb --username=postgres --auth-host=scram-sha-256 --auth-local=trust --pwfile=<(echo "$POSTGRES_PASSWORD")
    echo "host all all all ${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}" >> "$PGDATA/pg_hba.conf"
    echo "listen_addresses = '*'" >> "$PGDATA/postgresql.conf"
    echo "unix_socket_directories = '/tmp'" >> "$PGDATA/postgresql.conf"
    pg_ctl start --wait --options="$(printf '%q ' "${@:2}") -c listen_addresses=''"
    for file in /docker-entrypoint-initdb.d/*.sql; do
        psql --no-psqlrc --host=/tmp --username=postgres --set=ON_ERROR_STOP=1 --file="$file"
    done
    pg_ctl stop --wait --mode=fast
fi
exec "$@"
SCRIPT
ENTRYPOINT ["entrypoint"]
CMD ["postgres"]
STOPSIGNAL SIGINT

FROM debian AS prometheus
RUN apt-get update && apt-get install --yes --no-install-recommends prometheus
USER nobody
WORKDIR /tmp
ENTRYPOINT ["prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/tmp/prometheus"]

FROM debian AS postgres-exporter
RUN apt-get update && apt-get install --yes --no-install-recommends prometheus-postgres-exporter
USER nobody
ENTRYPOINT ["prometheus-postgres-exporter"]
