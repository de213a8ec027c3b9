# FASSD-Net on CPUs: the command line, the server, and the C++ kernels.
#
#     docker build -f docker/cpu.Dockerfile -t fassd:cpu .
#     docker run --rm --user "$(id -u)" -e HOME=/tmp -v "$PWD:/work" fassd:cpu predict street.jpg -o out/
#     docker run --rm -p 8000:8000 fassd:cpu serve --host 0.0.0.0

FROM python:3.12-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/fassd
ENV PATH="/opt/fassd/bin:$PATH" PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY . .
# The kernels of every instruction set are in one binary, which picks at run time.
# hadolint ignore=DL3013
RUN FASSD_KERNELS_CUDA=0 pip install ".[serve,video]"

FROM python:3.12-slim-bookworm
COPY --from=build /opt/fassd /opt/fassd
ENV PATH="/opt/fassd/bin:$PATH"
RUN useradd --create-home --uid 1001 fassd
USER 1001
WORKDIR /work
EXPOSE 8000
ENTRYPOINT ["fassd"]
CMD ["--help"]
