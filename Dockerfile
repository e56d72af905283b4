# `triscale serve` with an exported network, on a CPU, without torch:
#   docker build -t triscale .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/model.onnx:/models/model.onnx:ro" triscale

FROM python:3.13.9-slim-bookworm AS build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
# Without the extra `train`, which brings torch.
RUN python -m venv /opt/triscale \
    && /opt/triscale/bin/pip install --no-cache-dir --only-binary=:all: -c constraints.txt '.[runtime,serve]' \
    && /opt/triscale/bin/pip uninstall --yes pip

FROM python:3.13.9-slim-bookworm
COPY --from=build /opt/triscale /opt/triscale
ENV PATH=/opt/triscale/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /models
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["triscale"]
CMD ["serve", "/models/model.onnx", "--host", "0.0.0.0"]
