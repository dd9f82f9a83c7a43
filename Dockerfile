# Notebooks, training and every check, in the environment of `make env`; an NVIDIA card is used where there is one. (The service's image: serve/Dockerfile)
#   docker build -t fashion_train .
#   docker run --rm --gpus all --shm-size 2g --user "$(id -u):$(id -g)" -v "$PWD:/fashion" fashion_train fashion_train --config configs/fashion_mnist.yaml
#   docker run --rm -p 127.0.0.1:8888:8888 -v "$PWD:/fashion" --user "$(id -u):$(id -g)" fashion_train jupyter lab --ip 0.0.0.0
# Your checkout, mounted over /fashion, is what runs and where runs/ are kept; without it, the code of the day the image was made.
FROM docker.io/library/python:3.13-slim-trixie@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# What torch.compile and the checks call.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends chromium chromium-driver curl g++ git make \
 && rm -rf /var/lib/apt/lists/* \
 && git config --system --add safe.directory /fashion
WORKDIR /fashion
# Dependencies first: they change less often than the code, so their layer (7 GB) is kept. EXTRAS=train leaves out notebooks and tests.
ARG EXTRAS=dev
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY fashion_nbdev/__init__.py fashion_nbdev/
RUN python3 -m venv /opt/fashion \
 && /opt/fashion/bin/pip install --constraint constraints.txt --editable ".[$EXTRAS]"
COPY . .
# Anybody may write there: who runs it is chosen with --user, so that files in a mounted checkout are theirs.
RUN chmod -R a+rwX /fashion
# Downloads are kept in the mounted checkout's data/, which git leaves alone.
ENV PATH=/opt/fashion/bin:$PATH HOME=/tmp FASHION_CACHE_DIR=/fashion/data PYTHONUNBUFFERED=1
USER 10001:10001
CMD ["bash"]
