# FASSD-Net on NVIDIA GPUs: as cpu.Dockerfile, with the CUDA kernels.
#
#     docker build -f docker/cuda.Dockerfile --build-arg ARCHITECTURES=8.6 -t fassd:cuda .
#     docker run --rm --gpus all --user "$(id -u)" -e HOME=/tmp -v "$PWD:/work" fassd:cuda predict street.jpg -o out/
#
# ARCHITECTURES: compute capabilities of the GPUs that it will run on, as in "8.6" or "8.0;9.0+PTX".
# Each takes its minutes; empty, the defaults of setup.py.

ARG CUDA=13.0.2
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/fassd
ENV PATH="/opt/fassd/bin:$PATH" PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Of the toolkit's major version: nvcc of another one is refused.
RUN pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130
WORKDIR /source
COPY . .
ARG ARCHITECTURES=""
# -v: what has been compiled is shown as it is built.
# hadolint ignore=DL3013
RUN TORCH_CUDA_ARCH_LIST="$ARCHITECTURES" FASSD_KERNELS_CUDA=1 pip install -v ".[serve,video]"

# PyTorch's wheels bring the CUDA libraries; the driver is the host's. Triton wants a C compiler.
FROM ubuntu:24.04
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3 python3-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/fassd /opt/fassd
ENV PATH="/opt/fassd/bin:$PATH" NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN useradd --create-home --uid 1001 fassd
USER 1001
WORKDIR /work
EXPOSE 8000
ENTRYPOINT ["fassd"]
CMD ["--help"]
