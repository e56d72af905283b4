# `triscale serve` with an exported network, on a CPU, without torch:
#   docker build -t triscale .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/model.onnx:/models/model.onnx:ro" triscale

FROM python:3.13.9-slim-bookworm AS build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
# Of the dependencies only those of two extras: torch, which trains, stays out.
RUN python -m venv /opt/triscale \
    && python -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; print(*extras["runtime"], *extras["serve"], sep="\n")' > requirements.txt \
    && /opt/triscale/bin/pip install --no-cache-dir --only-binary=:all: -c constraints.txt -r requirements.txt \
    && /opt/triscale/bin/pip install --no-cache-dir --no-deps . \
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
