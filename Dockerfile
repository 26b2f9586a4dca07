# A small open model into an expert, in a container.
#
#   docker build --target cpu  -t znatok:cpu .
#   docker build --target cuda -t znatok:cuda .
#   docker run --rm -it --user "$(id -u):$(id -g)" -v "$PWD:/work" -v znatok-cache:/home/znatok/.cache \
#     znatok:cpu train --data_path mine.jsonl
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" -v znatok-cache:/home/znatok/.cache \
#     -p 127.0.0.1:8000:8000 -e ZNATOK_API_KEY znatok:cpu serve --host 0.0.0.0
#
# On Linux a mounted folder keeps its owner: without --user nothing could be written to it. So home, cache and /work are
# open to any user id, and a new volume takes that over from the folder it is mounted on.
#
# Inside a container a server has to listen on all addresses, so it asks for a key; what is published is this machine's
# own address only.
FROM python:3.12-slim-bookworm AS base
# USER and LOGNAME are for libraries that ask who they are, where the user id has no entry in /etc/passwd
ENV HOME=/home/znatok USER=znatok LOGNAME=znatok PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# the kernels are compiled once, on the processor they will run on
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 znatok \
    && mkdir -p /work /home/znatok/.cache \
    && chmod 1777 /work /home/znatok /home/znatok/.cache
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY locks ./locks
COPY src ./src

FROM base AS cpu
RUN pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-deps --require-hashes --requirement locks/run.txt \
    && pip install --no-deps --no-build-isolation .
USER 10001
WORKDIR /work
EXPOSE 8000 7860
ENTRYPOINT ["znatok"]
CMD ["--help"]

FROM base AS cuda
RUN pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130 \
    && pip install --no-deps --require-hashes --requirement locks/run.txt \
    && pip install --no-deps --no-build-isolation .
USER 10001
WORKDIR /work
EXPOSE 8000 7860
ENTRYPOINT ["znatok"]
CMD ["--help"]
