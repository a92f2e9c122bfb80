# syntax=docker/dockerfile:1
FROM python:3.11-slim AS build
WORKDIR /build
COPY requirements/runtime.txt .
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --require-hashes -r runtime.txt

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /app spanbill && mkdir -p /app /data && chown spanbill /data
COPY --from=build /venv /venv
WORKDIR /app
COPY gateway gateway
COPY otel otel
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SPANBILL_SERVER__HOST=0.0.0.0 \
    SPANBILL_JOURNAL__DIRECTORY=/data/journal
USER spanbill
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=5s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/ready', timeout=2)"]
CMD ["python", "-m", "gateway", "serve"]
