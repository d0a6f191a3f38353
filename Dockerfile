# docker build -t codec-audio-lm .
# docker run --gpus all --shm-size 8g -v "$PWD:/work" codec-audio-lm python -m pipeline.preprocess data=folder data.root=sounds out=shards
FROM python:3.12-slim-bookworm

# a compiler for DeepSpeed, and git for the address of a clone in W&B
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential git \
    && rm -rf /var/lib/apt/lists/*

# the packages first: they change less often than the code
WORKDIR /opt/codec-audio-lm
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN pip install --no-cache-dir "uv>=0.9,<1" \
    && uv sync --frozen --no-cache --no-install-project --extra notes --extra demo \
    && uv pip install --no-cache --no-deps "tinysoundfont>=0.3"
ENV PATH=/opt/codec-audio-lm/.venv/bin:$PATH

COPY conf ./conf
COPY pipeline ./pipeline
RUN uv sync --frozen --no-cache --inexact --no-editable --extra notes --extra demo

WORKDIR /work
CMD ["python", "-m", "pipeline"]
