"Training that is killed at any moment, or whose disk is full, goes on and ends as if nothing had happened"
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from repository import ROOT

KILLS = 20
CONTEXT = multiprocessing.get_context('forkserver') # libraries are loaded once, a training takes a second
CONTEXT.set_forkserver_preload(['fashion_nbdev.improvements', 'mlflow'])


def train(folder: Path, runs: str, epochs: int):
    "What `fashion_train` does on a console, in the process of its own that it is called in"
    from fashion_nbdev.improvements import fashion_train
    os.chdir(folder)
    with open(folder/'said.txt', 'a') as out:
        os.dup2(out.fileno(), 1), os.dup2(out.fileno(), 2)
    sys.argv = ['fashion_train', '--config', str(ROOT/'configs/short.yaml'), '--run', 'one', '--replace_run', '--verbose', '--runs', runs, '--set', f'train.epochs={epochs}']
    exec('fashion_train()', dict(fashion_train=fashion_train, __name__='__main__', __file__='fashion_train'))


def started(folder: Path, runs: str = 'runs', epochs: int = 30) -> multiprocessing.Process:
    folder.mkdir(exist_ok=True)
    process = CONTEXT.Process(target=train, args=(folder, runs, epochs), daemon=True)
    process.start()
    return process


def ended(process: multiprocessing.Process) -> int:
    process.join(300)
    assert process.exitcode is not None, 'still training'
    return process.exitcode


def wait_for(path: Path, process: multiprocessing.Process):
    while not path.exists():
        assert process.is_alive(), f'ended without {path.name}'
        time.sleep(.01)


def result(run: Path) -> tuple: # what must be the same in every run
    metrics = json.loads((run/'metrics.json').read_text())
    history = [{k: v for k, v in row.items() if k != 'seconds'} for row in metrics['history']]
    return metrics['valid_accuracy'], metrics['best_epoch'], metrics['per_class'], history, [p.read_bytes() for p in sorted(run.glob('*_model/*.safetensors'))]


def starts(said: Path) -> int: # times that training has begun or gone on
    return len(re.findall(r', \d+ images$', said.read_text(), re.M)) if said.exists() else 0


def test_twenty_kills_change_nothing(tmp_path):
    whole = started(tmp_path/'whole')
    wait_for(tmp_path/'whole/runs/short/one/checkpoint/last.pt', whole)
    begun = time.monotonic()
    assert ended(whole) == 0
    epoch, rng, said = (time.monotonic() - begun)/29, random.Random(42), tmp_path/'killed/said.txt'
    for _ in range(KILLS):
        before = starts(said)
        process = started(tmp_path/'killed')
        if rng.random() < .2: time.sleep(rng.uniform(0, .5)) # before it trains
        else:
            while process.is_alive() and starts(said) == before: time.sleep(.005)
            time.sleep(rng.uniform(0, 1.2*epoch))
        assert process.is_alive(), said.read_text()[-1000:]
        process.kill()
        ended(process)
    assert ended(started(tmp_path/'killed')) == 0, (tmp_path/'killed/said.txt').read_text()[-1000:]
    assert result(tmp_path/'killed/runs/short/one') == result(tmp_path/'whole/runs/short/one')


MOUNT = 'mount', '-t', 'tmpfs', '-o', 'size=48m', 'none'


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 48 MB: mounted by root, on a machine of CI with sudo, or in a user namespace, seen through the process that holds it"
    place = tmp_path/'disk'
    place.mkdir()
    for sudo in ([], *([['sudo', '-n']] if os.environ.get('CI') and shutil.which('sudo') else [])):
        if subprocess.run([*sudo, *MOUNT, place], capture_output=True).returncode: continue
        yield place
        return subprocess.run([*sudo, 'umount', '--lazy', place], check=True)
    if not shutil.which('unshare'): pytest.skip('no small file system can be mounted here: that takes root, or unshare (util-linux)')
    with subprocess.Popen(['unshare', '-rm', 'sh', '-c', '"$@" && echo mounted && exec cat', 'sh', *MOUNT, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as holder:
        if not holder.stdout.readline(): pytest.skip(f'no small file system can be mounted here, as another user than root: {holder.stderr.read().strip()}')
        yield Path(f'/proc/{holder.pid}/root{place}')
        holder.stdin.close()


def test_full_disk_is_one_clear_line_and_loses_nothing(tmp_path, small_disk):
    process = started(tmp_path/'own', str(small_disk), epochs=60)
    wait_for(small_disk/'short/one/checkpoint/last.pt', process)
    with open(small_disk/'filler', 'wb') as filler:
        while process.is_alive():
            try: filler.write(bytes(1 << 16)), filler.flush()
            except OSError: time.sleep(.01) # full; when a checkpoint is replaced, there is room again
    said = (tmp_path/'own/said.txt').read_text()
    assert ended(process) == 2 and 'Traceback' not in said, said[-2000:]
    assert 'No space left on device' in said.strip().splitlines()[-1], said[-500:]
    assert not [p for p in small_disk.rglob('*') if p.suffix in ('.tmp', '.part')]
    (small_disk/'filler').unlink()
    assert ended(started(tmp_path/'own', str(small_disk), epochs=60)) == 0
    assert len(result(small_disk/'short/one')[3]) == 60
