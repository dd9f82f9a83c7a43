"Every notebook runs from top to bottom, each in a process of its own, as nbdev runs it"
import json
import subprocess
from pathlib import Path

import pytest
from repository import BIN, ROOT, clean_env, copy_tree, notebooks

SECONDS = 300 # far above the 20 that a notebook may take, for machines that are busy


def nbdev_test(notebook: str, root: Path = ROOT) -> subprocess.CompletedProcess:
    "Run one notebook; it counts as passed only if nbdev says so: a name that matches nothing also returns 0"
    done = subprocess.run([BIN/'nbdev_test', '--path', notebook, '--n_workers', '0'], cwd=root, timeout=SECONDS,
                          env=clean_env(PYTHONPATH=str(root)), capture_output=True, text=True)
    if 'Success.' not in done.stdout.splitlines(): done.returncode = done.returncode or 1
    return done


@pytest.mark.parametrize('notebook', [str(p.relative_to(ROOT)) for p in notebooks()])
def test_notebook(notebook):
    done = nbdev_test(notebook)
    assert done.returncode == 0, f'{notebook} failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}'


def test_name_that_matches_nothing_fails():
    assert nbdev_test('nbs/no_such_notebook.ipynb').returncode != 0


def test_failing_cell_fails(tmp_path):
    root, name = copy_tree(tmp_path/'tree'), 'nbs/00_core.ipynb'
    nb = json.loads((root/name).read_text())
    nb['cells'] = [dict(cell_type='code', id='broken', metadata={}, outputs=[], execution_count=None, source=['assert 1 == 2, "on purpose"'])]
    (root/name).write_text(json.dumps(nb))
    done = nbdev_test(name, root)
    assert done.returncode != 0 and 'on purpose' in done.stderr
