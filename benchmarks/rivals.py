"""Measure the service beside four others that would serve the same model file, and write results/rivals.csv.

    python benchmarks/rivals.py [--rounds ROUNDS] [--seconds SECONDS] [--only litserve,bentoml]

Each of the others gets an environment of its own in .venv-rivals/ and runs the program in its folder here: the same model
file, the same decoding (`Predictor`), two workers, and every way to set it that its documentation names for throughput. Services take turns, one at a time, so that none disturbs another; what
counts are ratios within a round. One that cannot be installed or does not start is left out with a word."""
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
from fastcore.script import call_parse

from fashion_nbdev.benchmark import command_line, free_port, last_line
from fashion_nbdev.core import model_path
from fashion_nbdev.load import closed_loop, http_request, open_loop, pictures, summary
from fashion_nbdev.predict import Predictor
from fashion_nbdev.results import conditions, write_results
from fashion_nbdev.sla import RATES
from fashion_nbdev.timing import spread

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NEEDED = ('numpy', 'pillow', 'onnxruntime', 'pyyaml', 'fastcore') # by the predictor, in the versions that are pinned here


@dataclass(frozen=True)
class Service:
    "How one of them is installed, started and asked"
    pins: tuple # for pip; empty: this project's own
    command: tuple # run in its folder; PORT is filled in
    path: str = '/v1/predict'
    env: tuple = () # further variables
    folder: str = '' # of its program and its environment


_LITSERVE = Service(('litserve==0.2.19',), ('python', 'app.py'), env=(('API_SERVERS', '1'),), folder='litserve')
_BENTOML = Service(('bentoml==1.4.39',), ('bentoml', 'serve', 'app:Classify', '--port', 'PORT'), path='/v1/one', folder='bentoml')
_RAY = Service(('ray[serve]==2.60.0',), ('python', 'app.py'), env=(('RAY_SERVE_THROUGHPUT_OPTIMIZED', '1'), ('RAY_AUTH_MODE', 'disabled'), ('RAY_USAGE_STATS_ENABLED', '0')), folder='ray')
SERVICES = { # those that can put waiting pictures together both ways; LitServe with as many processes for HTTP as it would start by itself, too
    'fashion_serve': Service((), ('fashion_serve', '--host', '127.0.0.1', '--port', 'PORT')),
    'litserve': _LITSERVE,
    'litserve, batches': replace(_LITSERVE, env=(*_LITSERVE.env, ('BATCH', '16'))),
    'litserve, two servers': replace(_LITSERVE, env=(('API_SERVERS', '2'),)),
    'bentoml': _BENTOML,
    'bentoml, batches': replace(_BENTOML, path='/v1/several', env=(('BATCH', '16'),)),
    'ray': _RAY,
    'ray, batches': replace(_RAY, env=(*_RAY.env, ('BATCH', '16'))),
    'mlserver': Service(('mlserver==1.7.1', 'uvloop==0.21.0'), ('mlserver', 'start', '.'), path='/v2/models/shipped/infer', env=(('MLSERVER_HTTP_PORT', 'PORT'), ('MLSERVER_PARALLEL_WORKERS', '2'), ('MLSERVER_GRPC_PORT', '0'), ('MLSERVER_METRICS_PORT', '0'), ('MLSERVER_HOST', '127.0.0.1')), folder='mlserver'),
}


def _pinned() -> list[str]: # such as 'numpy==2.4.6'
    "What the predictor needs, as installed here"
    from importlib.metadata import version
    return [f'{name}=={version(name)}' for name in NEEDED]


def environment(name: str) -> Path: # the folder of its programs
    "Make the environment of a service unless it is there"
    if not SERVICES[name].pins: return Path(sys.executable).parent
    folder = ROOT / '.venv-rivals' / SERVICES[name].folder
    if not (folder / 'complete').exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
        subprocess.run([folder / 'bin/python', '-m', 'pip', 'install', '-q', '--disable-pip-version-check', *SERVICES[name].pins, *_pinned()], check=True)
        (folder / 'complete').touch()
    return folder / 'bin'


def asked(name: str, data: bytes) -> bytes: # a whole HTTP request
    "One picture, in the form that the service takes"
    if name != 'mlserver': return http_request(SERVICES[name].path, data, content_type='application/octet-stream')
    inputs = [dict(name='image', shape=[1], datatype='BYTES', data=[base64.b64encode(data).decode()])]
    return http_request(SERVICES[name].path, json.dumps(dict(inputs=inputs)).encode(), content_type='application/json')


def _answers(url: str, request: bytes) -> bool: return open_loop(url, [request], 1, 1, timeout=5).outcomes == ['200']


def _session(pid: int) -> int | None:
    try: return os.getsid(pid)
    except OSError: return None # gone


def _tree(pid: int) -> list[psutil.Process]:
    "A process, its children, and whatever else is in its session"
    try: children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess: children = []
    return list({p.pid: p for p in [*children, *(p for p in psutil.process_iter() if _session(p.pid) == pid)]}.values())


def _memory_mb(pid: int) -> float:
    "Of all processes, what several share counted once"
    return sum(p.memory_full_info().pss for p in _tree(pid)) / 1e6


def _stop(process: subprocess.Popen):
    for sent in (signal.SIGTERM, signal.SIGKILL):
        for p in _tree(process.pid): p.send_signal(sent)
        if not psutil.wait_procs(_tree(process.pid), timeout=10)[1]: break
    process.wait()


@contextmanager
def running(name: str, model: Path, request: bytes, patience: float = 120) -> Iterator[tuple]: # address, seconds to the first answer, pid
    "A service in a session of its own, until the end of a `with` block"
    service, port = SERVICES[name], free_port()
    fill = lambda words: [str(port) if word == 'PORT' else word for word in words]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        shutil.copy(model, folder)
        env = os.environ | dict(MODEL=str(model), PORT=str(port), FASHION_MODELS_DIR=folder, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', PATH=f'{environment(name)}:{os.environ["PATH"]}')
        env |= dict(zip([k for k, _ in service.env], fill(v for _, v in service.env)))
        begun = time.perf_counter()
        process = subprocess.Popen(fill(service.command), cwd=HERE / service.folder, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            while not _answers(url := f'http://127.0.0.1:{port}', request):
                if process.poll() is not None or time.perf_counter() - begun > patience:
                    log.seek(0)
                    raise RuntimeError(f'did not answer: {last_line(log.read())}')
                time.sleep(.02)
            yield url, time.perf_counter() - begun, process.pid
        finally: _stop(process)


def measure(name: str, model: str, seconds: float) -> dict:
    "One service once: start, what it can do within 100 ms, a hundred a second, three times too much"
    requests = [asked(name, data) for data in pictures(model)]
    with running(name, model_path(model), requests[0]) as (url, ready, pid):
        closed_loop(url, requests, 8, seconds) # warm
        tried = [summary(closed_loop(url, requests, clients, seconds)) for clients in (2, 4, 8, 16, 32)]
        most = max((r['answered_per_s'] for r in tried if r.get('p95_ms', 1e9) <= 100), default=0.0)
        at_100 = summary(open_loop(url, requests, 100, 2*seconds))
        memory = _memory_mb(pid)
        peak = max(r['answered_per_s'] for r in tried)
        over = summary(open_loop(url, requests, 3*peak, 2*seconds))
    return dict(per_s=most, p99_at_100_ms=at_100.get('p99_ms'), failed_at_100=at_100['failed'] + at_100['shed'], memory_mb=memory, ready_s=ready,
                overload_goodput=over['answered_per_s']/peak, overload_p95_ms=over.get('p95_ms'), overload_shed=over['shed'], overload_failed=over['failed'])


def _median(rows: list[dict], key: str) -> float | None:
    found = [r[key] for r in rows if r[key] is not None]
    return float(np.median(found)) if found else None


def compare(names: list[str], model: str, rounds: int, seconds: float) -> list[dict]:
    "All services in turns"
    found = {name: [] for name in names}
    for i in range(rounds):
        for name in names[::1 if i % 2 else -1]:
            if found[name] is None: continue
            try: found[name].append(measure(name, model, seconds))
            except (RuntimeError, subprocess.CalledProcessError) as e:
                print(f'{name} is left out: {e}', flush=True)
                found[name] = None
                continue
            print(f'{model}, round {i + 1}, {name}: ' + ', '.join(f'{k} {v:.4g}' for k, v in found[name][-1].items() if v is not None), flush=True)
    ours = [r['per_s'] for r in found['fashion_serve']]
    version = Predictor.load(model).info.version
    row = lambda name, rows: dict(model=model, service=name, pins=' '.join(SERVICES[name].pins), version=version) | {k: _median(rows, k) for k in rows[0]} | _ours_is(ours, [r['per_s'] for r in rows])
    return [row(name, rows) for name, rows in found.items() if rows]


def _ours_is(ours: list[float], theirs: list[float]) -> dict:
    return spread([a/b if b else np.inf for a, b in zip(ours, theirs)], 'ours_is') if any(theirs) else dict.fromkeys(('ours_is', 'ours_is_low', 'ours_is_high'))


@call_parse
def main(
    rounds: int = 3, # turns of each
    seconds: float = 2.0, # of each measurement in a turn
    only: str = '', # folders of the services to measure, with commas; all if not given
    out: str = 'results/rivals.csv',
):
    "Measure the service beside LitServe, BentoML, Ray Serve and MLServer"
    names = ['fashion_serve', *(n for n in SERVICES if n != 'fashion_serve' and (not only or SERVICES[n].folder in only.split(',')))]
    rows = [row for model in RATES for row in compare(names, model, rounds, seconds)]
    print(f'  -> {write_results(out, rows, ["model", "service"], **conditions(command_line("python benchmarks/rivals.py", rounds=rounds, seconds=f"{seconds:g}", only=only), n_runs=rounds))}')
