"Write README.md from nbs/index.ipynb: markdown, code and stored outputs, without the hidden cells"
import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from posixpath import normpath

from execnb.nbio import read_nb

ROOT = Path(__file__).resolve().parents[1]
MADE = '<!-- Made from nbs/index.ipynb by `make docs`; change it there. -->'
LINK = re.compile(r'(\]\(|(?:src|href)=")(?![a-z]+:|#|/)([^)"\s]+)')


def from_root(text: str) -> str:
    "Links and images relative to nbs/ made relative to the top of the repository"
    return LINK.sub(lambda m: m[1] + normpath(f'nbs/{m[2]}'), text)


def fenced(text: str, language: str) -> str:
    return f'```{language}\n{text.strip()}\n```'


def outputs(cell: dict) -> Iterator[str]:
    "What a cell showed: printed text, markdown, values; pictures belong into nbs/images"
    for out in cell.outputs:
        data = out.get('data', {})
        if out.output_type == 'error': raise SystemExit(f'readme.py: a cell of index.ipynb failed: {out.evalue}')
        if 'text' in out: yield fenced(''.join(out.text), 'text')
        elif 'text/markdown' in data: yield from_root(''.join(data['text/markdown']).strip())
        elif 'text/plain' in data and not any(kind.startswith('image/') for kind in data): yield fenced(''.join(data['text/plain']), 'text')


def parts(nb: dict) -> Iterator[str]:
    "The pieces of the README, cell by cell"
    for cell in nb.cells:
        lines = cell.source.splitlines()
        directives = {line[2:].strip().split(':')[0]: line.partition(':')[2].strip() for line in lines if line.startswith('#|')}
        code = '\n'.join(line for line in lines if not line.startswith('#|'))
        if 'hide' in directives or not code.strip(): continue
        if cell.cell_type == 'markdown': yield from_root(cell.source.strip())
        if cell.cell_type != 'code': continue
        if directives.get('echo') != 'false': yield fenced(code, 'python')
        yield from outputs(cell)


def render(path: Path = ROOT/'nbs/index.ipynb') -> str:
    "README.md for the notebook at `path`"
    return '\n\n'.join([MADE, *parts(read_nb(path))]) + '\n'


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing; exit with 1 if README.md differs')
    check, readme, text = parser.parse_args().check, ROOT/'README.md', render()
    if check and readme.read_text(encoding='utf-8') != text: sys.exit('README.md is not what nbs/index.ipynb says: run `make docs`.')
    if not check: readme.write_text(text, encoding='utf-8')
