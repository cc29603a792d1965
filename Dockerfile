# The one environment of all nodes, head and workers: Python, the packages of uv.lock, and jsfree itself.
#
#   docker build -t <registry>/jsfree:0.1.0-ray2.60.0 .
#
# A slim Python is enough: torch's wheel brings the CUDA libraries (runtime, cuBLAS, cuDNN, NCCL) as packages of
# its own, so no CUDA base image. From the host come the NVIDIA driver (release 580 or newer, for CUDA 13) and the
# NVIDIA container toolkit, which puts the driver's libraries into the container.

FROM python:3.11.13-slim-bookworm AS environment
ENV UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /opt/jsfree
# First what changes seldom, so that a change of code moves megabytes to the nodes, not gigabytes.
COPY pyproject.toml uv.lock ./
RUN uv sync --frozen --no-dev --extra aws --no-install-project

FROM python:3.11.13-slim-bookworm
# What is used at run time: ssh and rsync by `ray up`, wget by KubeRay's probes, a C compiler by Triton when
# torch.compile makes its first kernel, and the libraries under libfabric that EFA and InfiniBand need.
# Debian keeps no old package versions, so these cannot be pinned; the base image's tag pins the release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        gcc libc6-dev libhwloc15 libibverbs1 ibverbs-providers libnuma1 librdmacm1 \
        openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/*

# uid 1000 is also the user of the cloud images that ssh lands on: files they mount are readable here.
# Login shells, which `ray up` and KubeRay use, forget PATH: profile.d tells them again.
RUN useradd --create-home --uid 1000 --user-group --shell /bin/bash jsfree \
    && install -d -o jsfree -g jsfree /runs /data /scratch \
    && echo "export PATH=/opt/jsfree/.venv/bin:\$PATH" > /etc/profile.d/jsfree.sh
ENV HOME=/home/jsfree \
    PATH="/opt/jsfree/.venv/bin:$PATH" \
    VIRTUAL_ENV=/opt/jsfree/.venv \
    LANG=C.UTF-8 \
    RAY_AUTH_MODE=token \
    RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 \
    RAY_USAGE_STATS_ENABLED=0

WORKDIR /opt/jsfree
COPY --from=environment /opt/jsfree/.venv .venv
COPY LICENSE README.md ./
COPY configs configs
# The project itself as one more package, beside the others: `python -m ray_jobs.cli` works from any folder.
RUN --mount=type=bind,from=environment,source=/usr/local/bin/uv,target=/usr/local/bin/uv \
    --mount=type=bind,target=/source \
    cp -r /source /tmp/source \
    && uv pip install --no-cache --no-deps /tmp/source \
    && rm -rf /tmp/source

USER 1000:1000
CMD ["jsfree", "--help"]
