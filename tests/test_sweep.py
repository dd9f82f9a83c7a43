"A sweep with several runs at once, from its command"
import csv
import subprocess

from repository import BIN, clean_env

EXPERIMENT = 'name: demo\ndata: {samples: true}\nmodel: {arch: simple_cnn}\ntrain: {epochs: 2, lr: 0.05}\n'
SWEEP = 'config: demo.yaml\nset: []\nseeds: [1, 2]\nrows:\n  recipe: []\n  half the rate: [train.lr=0.025]\n'


def sweep(folder, *args: str) -> tuple[str, list[dict]]:
    "What the command prints and the rows that it writes"
    done = subprocess.run([BIN/'fashion_sweep', '--sweep', 'sweep.yaml', '--out', 'out.csv', *args], cwd=folder, env=clean_env(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with open(folder/'out.csv', encoding='utf-8') as f: return done.stdout, list(csv.DictReader(f))


def test_runs_side_by_side_give_what_one_after_the_other_gives(tmp_path):
    for name in ('one', 'two'):
        (tmp_path/name).mkdir()
        (tmp_path/name/'demo.yaml').write_text(EXPERIMENT)
        (tmp_path/name/'sweep.yaml').write_text(SWEEP)
    said, rows = sweep(tmp_path/'two', '--workers', '2')
    assert [r['row'] for r in rows] == ['recipe', 'half the rate'] and rows[0]['seeds'] == '2'
    assert said.count('start at epoch 1 of 2') == 4
    assert [r['valid_accuracy'] for r in sweep(tmp_path/'one')[1]] == [r['valid_accuracy'] for r in rows]
    assert 'start at epoch' not in sweep(tmp_path/'two', '--workers', '2')[0], 'what is finished is not trained again'
