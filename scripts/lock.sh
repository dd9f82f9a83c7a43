#!/usr/bin/env bash
# lock.sh PYTHON: write constraints.txt and the three hashed files of serve/ from pyproject.toml (make lock).
# Existing pins are kept where they still fit; UPGRADE=1 takes the newest of everything.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 uv_version=0.13.9
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "uv==$uv_version"

compile() { # compile OUT SOURCE OPTION...: resolve once for every platform and Python, keeping the pins of OUT
    local out=$1 source=$2; shift 2
    if [ -f "$out" ] && [ -z "${UPGRADE:-}" ]; then cp "$out" "$work/out.txt"; else rm -f "$work/out.txt"; fi
    "$work/venv/bin/uv" pip compile --quiet --no-python-downloads --universal --python-version 3.11 --no-annotate --no-header \
        --output-file "$work/out.txt" "$@" "$source"
    { cat "$work/header.txt"; cat "$work/out.txt"; } > "$out.part"
    mv "$out.part" "$out"
}

cat > "$work/header.txt" <<'TXT'
# Every package of every extra, pinned for Python 3.11 to 3.13 on Linux, macOS and Windows.
# Made from pyproject.toml by `make lock` (uv pip compile --universal); do not edit.
TXT
compile constraints.txt pyproject.toml --all-extras

cat > "$work/header.txt" <<'TXT'
# The serving environment, without torch: the versions of constraints.txt, with hashes.
# Made from pyproject.toml by `make lock` (uv pip compile --universal --generate-hashes); do not edit.
TXT
UPGRADE=1 compile serve/requirements.txt pyproject.toml --extra serve --extra trace --generate-hashes --constraint constraints.txt

cat > "$work/header.txt" <<'TXT'
# For PROVIDER=openvino, beside requirements.txt: the versions of constraints.txt, with hashes.
# Made from pyproject.toml by `make lock` (uv pip compile --universal --generate-hashes); do not edit.
TXT
UPGRADE=1 compile serve/openvino-requirements.txt pyproject.toml --extra openvino --generate-hashes --constraint constraints.txt

cat > "$work/header.txt" <<'TXT'
# What builds this project's own package: the versions of constraints.txt, with hashes.
# Made from pyproject.toml by `make lock` (uv pip compile --universal --generate-hashes); do not edit.
TXT
"$python" - > "$work/build.in" <<'PY'
import tomllib
print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['build'], sep='\n')
PY
UPGRADE=1 compile serve/build-requirements.txt "$work/build.in" --generate-hashes --constraint constraints.txt
