#     docker build -t entangle . && docker run -it entangle python -m entangle.examples.example
#
# A container's /dev/shm holds 64 MB by default; larger values then go through files in /tmp.
# `docker run --shm-size=1g ...` keeps them in memory.
ARG BASE=python:3.13-slim
FROM ${BASE}

ARG EXTRAS=http,gpu
COPY . /src
# A virtual environment works in any base image, also if the system manages Python packages.
RUN python3 -m venv /opt/entangle \
    && /opt/entangle/bin/pip install --no-cache-dir "/src[${EXTRAS}]" \
    && rm -rf /src \
    && useradd --create-home --shell /bin/bash entangle

ENV PATH=/opt/entangle/bin:$PATH \
    PYTHONUNBUFFERED=1
USER entangle
WORKDIR /home/entangle
CMD ["bash"]
