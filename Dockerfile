# langfuse-etl: the service and all commands. State is in /data (for SQLite and exports); the rest may be read-only.
FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/langfuse-etl
WORKDIR /src
# The packages first: they change less often than the code.
COPY requirements.lock ./
RUN /opt/langfuse-etl/bin/pip install --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY etl etl
COPY migrations migrations
RUN /opt/langfuse-etl/bin/pip install --no-deps . && /opt/langfuse-etl/bin/pip uninstall --yes pip

FROM python:3.11-slim
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data langfuse-etl \
    && install --directory --owner=langfuse-etl --group=langfuse-etl /data
COPY --from=build /opt/langfuse-etl /opt/langfuse-etl
ENV PATH=/opt/langfuse-etl/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LANGFUSE_ETL_SERVICE__LISTEN=0.0.0.0:9464
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 9464
# For `run`; switch it off where the image runs another command.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 9464, timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["langfuse-etl"]
CMD ["run"]
