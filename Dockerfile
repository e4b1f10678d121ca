# The label server, without the training packages: raters, exports, comparisons.
#
#   docker build -t tiebreak-label .
#   docker run --rm tiebreak-label --help

FROM python:3.11-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --constraint /tmp/constraints.txt "$(ls /tmp/wheels/tiebreak-*.whl)[postgres]" \
    && rm -rf /tmp/wheels /tmp/constraints.txt \
    && useradd --uid 10001 --create-home tiebreak \
    && install --directory --owner tiebreak --group tiebreak /data
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/api/health', timeout=8)"]
ENTRYPOINT ["tiebreak"]
CMD ["label", "--config", "/config/label.yaml", "--host", "0.0.0.0"]
