#!/usr/bin/env bash
# hooks.sh: install git's hooks for this checkout (make hooks): nbdev's, which merge notebooks cell by cell, and pre-commit's (.pre-commit-config.yaml).
set -euo pipefail
cd "$(dirname "$0")/.."
[ -d .git ] || { echo "hooks.sh: this is not the top of a git checkout: clone the repository first" >&2; exit 1; }
.venv/bin/nbdev_install_hooks
# nbdev calls its commands by name; git finds them here without an activated environment as well.
sed -i.bak 's|= nbdev_merge|= .venv/bin/nbdev_merge|' .gitconfig
sed -i.bak 's|^nbdev_trust|.venv/bin/nbdev_trust|' .git/hooks/post-merge
rm -f .gitconfig.bak .git/hooks/post-merge.bak
.venv/bin/pre-commit install
