"What the repository's own tests share: its files, notebooks and settings"
import ast
import configparser
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SKIPPED_FOLDERS = {'.git', '.venv', '.venv-serve', '__pycache__', '.pytest_cache', '.ruff_cache', '.hypothesis', 'runs', '.ipynb_checkpoints'}


def clean_env(**changes: str) -> dict[str, str]:
    "The environment for a child process: one thread, and none of nbdev's own switches"
    env = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'PYTEST_CURRENT_TEST', 'MAKEFLAGS', 'MFLAGS', 'MAKELEVEL')}
    return env | dict(OMP_NUM_THREADS='1', PYTHONDONTWRITEBYTECODE='1') | changes


def load_script(name: str):
    "The module scripts/NAME.py"
    spec = importlib.util.spec_from_file_location(name, ROOT/f'scripts/{name}.py')
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def tool(name: str) -> str:
    "The path of a command of the environment or the machine; skips the test where there is none"
    return shutil.which(name, path=f'{BIN}{os.pathsep}{os.environ["PATH"]}') or pytest.skip(f'{name} is not installed')


def tracked(root: Path = ROOT) -> list[Path]:
    "The files of a clone: tracked or about to be, and not ignored; without git, all but the usual litter"
    if (root/'.git').exists() and shutil.which('git'):
        listed = subprocess.run(['git', 'ls-files', '-z', '-co', '--exclude-standard'], cwd=root, capture_output=True, check=True).stdout
        names = {root/os.fsdecode(f) for f in listed.split(b'\0') if f}
    else: names = {p for p in root.rglob('*') if not SKIPPED_FOLDERS & set(p.relative_to(root).parts)}
    return sorted(p for p in names if p.is_file() and not SKIPPED_FOLDERS & set(p.relative_to(root).parts))


def copy_tree(dest: Path) -> Path:
    "A clone's worth of files in `dest`, which tests may change"
    for p in tracked():
        target = dest/p.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(p, target)
    return dest


def digests(root: Path) -> dict[str, str]:
    "SHA-256 of every file of a tree, by its name"
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in tracked(root)}


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


class Cell(NamedTuple):
    "A notebook's cell"
    place: str # for messages: 'nbs/00_core.ipynb cell 3'
    kind: str # 'code' or 'markdown'
    source: str
    outputs: list

    @property
    def directives(self) -> dict[str, str]:
        "Those of the leading lines, as nbdev reads them"
        found = {}
        for line in self.source.splitlines():
            if not (m := re.match(r'#\|\s*([\w-]+:?)\s*(.*)', line)): break
            found[m[1].rstrip(':')] = m[2].strip()
        return found

    @property
    def exported(self) -> bool:
        return self.kind == 'code' and bool({'export', 'exporti', 'exports'} & self.directives.keys())

    @property
    def tree(self) -> ast.Module:
        lines = [line for line in self.source.splitlines() if not re.match(r'\s*[%!]', line)]
        return ast.parse('\n'.join(lines))


@cache
def cells(path: Path) -> list[Cell]:
    nb = json.loads(path.read_text(encoding='utf-8'))
    where = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
    return [Cell(f'{where} cell {i}', c['cell_type'], ''.join(c['source']), c.get('outputs', [])) for i, c in enumerate(nb['cells'])]


def notebooks() -> list[Path]:
    return sorted((ROOT/'nbs').rglob('*.ipynb'))


def module_notebooks() -> dict[str, Path]:
    "Module name -> its notebook, in reading order"
    found = ((re.fullmatch(r'\d\d[a-z]?_(\w+)', p.stem), p) for p in notebooks())
    return {m[1]: p for m, p in found if m}


def modules() -> dict[str, Path]:
    "Module name -> its exported file"
    return {p.stem: p for p in sorted((ROOT/'fashion_nbdev').glob('*.py')) if p.stem not in ('__init__', '_modidx')}


def pyproject() -> dict:
    return tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))


def settings() -> configparser.SectionProxy:
    parser = configparser.ConfigParser()
    parser.read(ROOT/'settings.ini', encoding='utf-8')
    return parser['DEFAULT']


def imported(path: Path, top_level: bool = False) -> set[str]:
    "Modules that a Python file imports; relative ones as 'fashion_nbdev.x'"
    tree, found = ast.parse(path.read_text(encoding='utf-8')), set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import): found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = f'{path.parent.name}.{node.module or ""}'.rstrip('.') if node.level else node.module
            found |= {f'{base}.{a.name}' for a in node.names} if base == 'fashion_nbdev' else {base}
    return found
