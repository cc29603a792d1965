# The environment of all nodes, head and workers: Python, the packages of uv.lock, and jsfree.
#
#   docker build -t <registry>/jsfree:0.1.0-ray2.60.0 .
#
# No CUDA base image is needed: torch's wheel installs the CUDA libraries (runtime, cuBLAS, cuDNN, NCCL) as packages.
# The host must have the NVIDIA driver (release 580 or newer, for CUDA 13) and the NVIDIA container toolkit, which
# mounts the driver's libraries into the container.

FROM python:3.11.13-slim-bookworm AS environment
ENV UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /opt/jsfree
# Dependencies first: a change of code then invalidates megabytes of layers, not gigabytes.
COPY pyproject.toml uv.lock ./
RUN uv sync --frozen --no-dev --extra aws --no-install-project

FROM python:3.11.13-slim-bookworm
# Used at run time: ssh and rsync by `ray up`, wget by KubeRay's probes, a C compiler by Triton when torch.compile
# builds its first kernel, and libraries that libfabric needs for EFA and InfiniBand.
# Not pinned, since Debian removes old package versions; the base image's tag pins the release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        gcc libc6-dev libhwloc15 libibverbs1 ibverbs-providers libnuma1 librdmacm1 \
        openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/*

# uid 1000 is also the login user of the hosts' cloud images, so files mounted from there are readable.
# Login shells, which `ray up` and KubeRay use, reset PATH: profile.d restores it.
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
# Install the project as a package, so that `python -m ray_jobs.cli` works from any folder.
RUN --mount=type=bind,from=environment,source=/usr/local/bin/uv,target=/usr/local/bin/uv \
    --mount=type=bind,target=/source \
    cp -r /source /tmp/source \
    && uv pip install --no-cache --no-deps /tmp/source \
    && rm -rf /tmp/source

USER 1000:1000
CMD ["jsfree", "--help"]
