# syntax=docker/dockerfile:1
# The studio and the live avatar in a container, on the CPU, as an ordinary user. See docs/guides/comfyui-and-docker.md.
FROM python:3.11-slim-bookworm AS build

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/flowportrait
ENV PATH=/opt/flowportrait/bin:$PATH
WORKDIR /build

# The large packages come first, so that a change of the code does not fetch them again.
COPY requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c requirements.lock torch --index-url "$TORCH_INDEX"
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY LICENSES LICENSES
COPY weights weights
COPY src src
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c requirements.lock ./weights '.[live,studio,voice]'

FROM python:3.11-slim-bookworm

# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libgl1 libgles2 libglib2.0-0 \
    && useradd --create-home --uid 10001 flowportrait \
    && install --directory --owner=flowportrait --group=flowportrait /data
COPY --from=build /opt/flowportrait /opt/flowportrait

ENV PATH=/opt/flowportrait/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_CONFIG_HOME=/data/config \
    PORT=7860
USER 10001:10001
WORKDIR /data
VOLUME /data

HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['PORT']}/\", timeout=4)"]

# The studio listens on the loopback address alone, so the container shares the network of its host: see compose.yaml.
CMD ["sh", "-c", "exec flowportrait studio --folder studio --port \"$PORT\""]
