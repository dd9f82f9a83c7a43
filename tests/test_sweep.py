"A sweep with several runs at once, from its command"
import csv
import subprocess

import psutil
import pytest
from repository import BIN, clean_env

EXPERIMENT = 'name: demo\ndata: {samples: true}\nmodel: {arch: simple_cnn}\ntrain: {epochs: 2, lr: 0.05}\n'
SWEEP = 'config: demo.yaml\nset: []\nseeds: [1, 2]\nrows:\n  recipe: []\n  half the rate: [train.lr=0.025]\n'


def sweep(folder, *args: str) -> tuple[str, list[dict]]:
    "What the command prints and the rows that it writes"
    done = subprocess.run([BIN/'fashion_sweep', '--sweep', 'sweep.yaml', '--out', 'out.csv', *args], cwd=folder, env=clean_env(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with open(folder/'out.csv', encoding='utf-8') as f: return done.stdout, list(csv.DictReader(f))


@pytest.fixture
def folder(tmp_path):
    "Holds an experiment and a sweep of it"
    (tmp_path/'demo.yaml').write_text(EXPERIMENT)
    (tmp_path/'sweep.yaml').write_text(SWEEP)
    return tmp_path


def test_runs_side_by_side_give_what_one_after_the_other_gives(folder):
    said, rows = sweep(folder, '--workers', '2')
    assert [r['row'] for r in rows] == ['recipe', 'half the rate'] and rows[0]['seeds'] == '2'
    assert said.count('start at epoch 1 of 2') == 4
    assert [r['valid_accuracy'] for r in sweep(folder, '--runs', 'others')[1]] == [r['valid_accuracy'] for r in rows]
    assert 'start at epoch' not in sweep(folder, '--workers', '2')[0], 'what is finished is not trained again'


@pytest.mark.parametrize('end', ['kill', 'terminate'])
def test_a_sweep_that_is_ended_leaves_nobody_behind_and_goes_on(folder, end):
    (folder/'demo.yaml').write_text(EXPERIMENT.replace('epochs: 2', 'epochs: 300'))
    command = [BIN/'fashion_sweep', '--sweep', 'sweep.yaml', '--out', 'out.csv', '--workers', '2']
    with subprocess.Popen(command, cwd=folder, env=clean_env(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        first = folder/'runs/demo/recipe-1/checkpoint/last.pt' # the run that is first to go on; the other may be far ahead of it
        assert any('epoch' in line and first.is_file() for line in process.stdout), 'it ended too soon'
        workers = psutil.Process(process.pid).children(recursive=True)
        getattr(process, end)()
        assert len(workers) >= 2 and not psutil.wait_procs(workers, timeout=30)[1]
    checkpoints = list(folder.glob('runs/demo/*/checkpoint/last.pt'))
    assert checkpoints and not list(folder.glob('runs/demo/*/metrics.json'))
    with subprocess.Popen([*command[:-2]], cwd=folder, env=clean_env(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        went_on = next(line for line in process.stdout if 'start at epoch' in line)
        process.kill()
    assert 'start at epoch 1 of' not in went_on, went_on
