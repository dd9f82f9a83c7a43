#!/usr/bin/env bash
# environment.sh serve|dev: make .venv-serve or .venv, or leave it as it is when it is up to date; environment.sh python: name the Python.
# PYTHON names the Python to use; otherwise the first on PATH that runs, is 3.11 to 3.13 and can make environments.
# The environment counts as made only once its stamp is written, which is the last thing that happens.
set -euo pipefail
cd "$(dirname "$0")/.."

usable() { # usable PYTHON: does it start, is it 3.11 to 3.13, can it make environments with pip? (a pyenv shim may not even start)
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

find_python() {
    local names=${PYTHON:-python3 python3.13 python3.12 python3.11 python} name path lacks_venv=
    for name in $names; do
        while IFS= read -r path; do # every one on PATH: the first may be an empty shim
            if usable "$path"; then echo "$path"; return; fi
            if "$path" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then lacks_venv=$path; fi
        done < <(type -aP "$name")
    done
    if [ -n "$lacks_venv" ]; then
        echo "$lacks_venv cannot make environments: install its venv module (on Debian: apt-get install python3-venv)." >&2
    elif [ -n "${PYTHON:-}" ]; then
        echo "PYTHON=$PYTHON is not a Python from 3.11 to 3.13 that runs; name one that is, such as PYTHON=/usr/bin/python3.12." >&2
    else
        echo "No Python from 3.11 to 3.13 found (tried $names); install one or name it: PYTHON=/path/to/python3.12." >&2
    fi
    return 1
}

case ${1:-} in
    python) find_python; exit ;;
    serve) venv=.venv-serve needs="the serving environment, without torch, under a minute"
           inputs="serve/requirements.txt serve/build-requirements.txt pyproject.toml"
           if [ "${PROVIDER:-}" = openvino ]; then inputs="serve/openvino-requirements.txt $inputs"; fi ;;
    dev)   venv=.venv needs="the development environment, about 7 GB, several minutes"
           inputs="constraints.txt pyproject.toml" ;;
    *)     echo "environment.sh: say serve, dev or python, not '${1:-}'" >&2; exit 2 ;;
esac
stamp=$venv/.made

# What the stamp holds: where the environment lies (environments cannot be moved), its Python, and what it was made from.
identity() { "$venv/bin/python" - "$PWD" $inputs <<'PY'
import hashlib, sys, tomllib
from pathlib import Path
where, *files = sys.argv[1:]
def content(name):
    if name != 'pyproject.toml': return Path(name).read_bytes()
    full = tomllib.loads(Path(name).read_text()) # only what the installation depends on: not ruff's or pytest's settings
    return repr([full['build-system'], full['project'], full['tool']['hatch']]).encode()
print(where.replace(' ', '%20'), '%d.%d' % sys.version_info[:2], hashlib.sha256(b'\0'.join(map(content, files))).hexdigest())
PY
}

minor() { "$1" -c 'import sys; print(*sys.version_info[:2])' 2>/dev/null; }

finished() { # was it finished, here, with the Python that is asked for?
    [ -f "$stamp" ] && [ "$(cut -d' ' -f1 "$stamp")" = "${PWD// /%20}" ] && usable "$venv/bin/python" || return 1
    [ -z "${PYTHON:-}" ] || [ "$(minor "$PYTHON")" = "$(minor "$venv/bin/python")" ]
}

if finished && [ "$(identity)" = "$(cat "$stamp")" ]; then exit 0; fi
python=$(find_python)
started=$SECONDS
echo "Making $venv with $("$python" --version) ($needs) ..."
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
if [ "$1" = serve ]; then
    rm -rf "$venv"
    "$python" -m venv "$venv"
    # shellcheck disable=SC2046 # two words, or none
    pip install --quiet --require-hashes $(printf -- '-r %s ' ${inputs% pyproject.toml})
    pip install --quiet --no-deps --no-build-isolation --editable .
else
    # A finished environment is brought up to date in place; an interrupted one has no stamp and is made anew.
    if finished; then rm -f "$stamp"; else rm -rf "$venv"; "$python" -m venv "$venv"; fi
    pip install --quiet --editable '.[dev]' --constraint constraints.txt
fi
identity > "$stamp.part"
mv "$stamp.part" "$stamp"
echo "Made $venv in $((SECONDS - started)) s."
