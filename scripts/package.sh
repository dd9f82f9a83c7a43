#!/usr/bin/env bash
# package.sh VERSION: make the wheel and the source distribution of that version in dist/, with the pinned tools of serve/build-requirements.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
wanted=${1:?say which version, such as 0.1.0}
version=$(sed -n "s/^__version__ = ['\"]\(.*\)['\"]$/\1/p" fashion_nbdev/__init__.py)
[ "$version" = "$wanted" ] || { echo "package.sh: this is version $version, not $wanted: tag what settings.ini says, or change that first" >&2; exit 1; }
python=$(scripts/environment.sh python)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r serve/build-requirements.txt
"$work/venv/bin/hatchling" build -d "$work/dist"
rm -rf dist
mv "$work/dist" dist
