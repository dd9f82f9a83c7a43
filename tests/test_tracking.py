"Runs are recorded by a real MLflow server that asks for a password, and nothing is lost while it is away"
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from mlflow import MlflowClient
from repository import ROOT, clean_env

from fashion_nbdev.core import FashionError, _from_console
from fashion_nbdev.improvements import fashion_train
from fashion_nbdev.model_file import pack_model, unpack_model
from fashion_nbdev.promote import fashion_promote
from fashion_nbdev.results import read_results
from fashion_nbdev.tracking import EXPERIMENT, Record, fashion_track

NAME, PASSWORD = 'admin', 'correct-horse-battery'
SETTINGS = ('train.epochs=6', 'train.batch_size=32', 'train.lr=0.1', 'data.samples=true', 'model.arch=simple_cnn', 'augment.cutout=9', 'train.compile=false')


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


class Server:
    "`mlflow server` with basic authentication, as DagsHub has it"
    def __init__(self, folder: Path):
        self.folder, self.port, self.process = folder, free_port(), None
        self.url = f'http://127.0.0.1:{self.port}'
        self.env = dict(MLFLOW_TRACKING_URI=self.url, MLFLOW_TRACKING_USERNAME=NAME, MLFLOW_TRACKING_PASSWORD=PASSWORD)
        (folder/'auth.ini').write_text(f'[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\nadmin_username = {NAME}\n'
                                       'authorization_function = mlflow.server.auth:authenticate_request_basic_auth\nauth_cache_ttl_seconds = 600\n')

    def start(self):
        command = [sys.executable, '-m', 'mlflow', 'server', '--app-name', 'basic-auth', '--backend-store-uri', f'sqlite:///{self.folder}/mlflow.db',
                   '--artifacts-destination', str(self.folder/'files'), '--host', '127.0.0.1', '--port', str(self.port), '--workers', '1']
        env = clean_env(MLFLOW_AUTH_CONFIG_PATH=str(self.folder/'auth.ini'), MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD, MLFLOW_FLASK_SERVER_SECRET_KEY='of a test',
                        MLFLOW_SERVER_ENABLE_JOB_EXECUTION='false', MLFLOW_DISABLE_TELEMETRY='true')
        with open(self.folder/'log', 'a') as log:
            self.process = subprocess.Popen(command, env=env, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
        for _ in range(600):
            try: return urllib.request.urlopen(f'{self.url}/health', timeout=5)
            except (urllib.error.URLError, OSError): time.sleep(.2)
            assert self.process.poll() is None, (self.folder/'log').read_text()[-2000:]
        raise AssertionError(f'the server did not start: {(self.folder/"log").read_text()[-2000:]}')

    def signal(self, what: int): os.killpg(self.process.pid, what)
    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    pytest.importorskip('flask_wtf', reason='mlflow[auth] is not installed')
    server = Server(tmp_path_factory.mktemp('mlflow'))
    server.start()
    yield server
    if server.process.poll() is None: server.kill()


@pytest.fixture
def env(server):
    with patch.dict(os.environ, server.env): yield server.env


def arguments(run: str, *settings: str) -> list[str]:
    return ['--config', str(ROOT/'configs/fashion_mnist.yaml'), '--run', run, '--verbose', '--set', *SETTINGS, *settings]


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    "`fashion_train` as the console calls it, in this process: its exit code and all that it says"
    monkeypatch.chdir(tmp_path)
    def run(*settings):
        monkeypatch.setattr(sys, 'argv', ['fashion_train', *arguments('one', *settings)])
        try: _from_console(fashion_train)
        except SystemExit as e: code = e.code
        else: code = 0
        said = capsys.readouterr()
        return code, said.out + said.err
    return run


@contextmanager
def training(folder: Path, *settings: str, env: dict = {}, resume: bool = False):
    "The same in a process of its own"
    (folder/'train.py').write_text('import signal; from fashion_nbdev.improvements import fashion_train; signal.signal(signal.SIGINT, signal.default_int_handler); fashion_train()')
    command = [sys.executable, str(folder/'train.py'), *['--resume']*resume, *arguments('one', *settings)]
    process = subprocess.Popen(command, cwd=folder, env=clean_env(PYTHONPATH=str(ROOT), **env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try: yield process
    finally:
        if process.poll() is None: process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen, words: str):
    "Read what a training prints until it says `words`"
    for line in process.stdout:
        if words in line: return line
    raise AssertionError(process.stderr.read())


def ended(process: subprocess.Popen, code: int = 0) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, out + err
    return out + err


def recorded(folder: Path, run: str = 'one'):
    "MLflow's client and its run of a folder"
    client, record = MlflowClient(os.environ['MLFLOW_TRACKING_URI']), Record(folder/'runs/fashion_mnist'/run)
    return client, client.get_run(record.run_id)


def history(client: MlflowClient, run, key: str) -> list[int]: return [m.step for m in client.get_metric_history(run.info.run_id, key)]


def paths(client: MlflowClient, run, folder: str = '') -> set[str]: return {a.path for a in client.list_artifacts(run.info.run_id, folder or None)}


def test_all_of_a_run_is_recorded(env, tmp_path, train):
    (tmp_path/'dvc.lock').write_text('schema: "2.0"\n')
    code, out = train()
    assert code == 0, out
    client, run = recorded(tmp_path)
    assert client.get_experiment(run.info.experiment_id).name == EXPERIMENT == 'fashion-classification'
    params = run.data.params
    assert {k: params[k] for k in ('model_name', 'dataset_name', 'learning_rate', 'batch_size', 'num_epochs', 'seed', 'weight_decay')} == dict(
        model_name='simple_cnn', dataset_name='fashion_mnist', learning_rate='0.1', batch_size='32', num_epochs='6', seed='42', weight_decay='0.0005')
    assert params['augment.cutout'] == '9' and params['train.label_smoothing'] == '0.1'
    for key in ('train_loss', 'val_loss', 'val_accuracy', 'lr'): assert history(client, run, key) == list(range(6)), key
    for key in ('final_accuracy', 'precision/shirt', 'recall/ankle_boot'): assert 0 <= run.data.metrics[key] <= 1
    assert any(k.startswith('system/cpu') for k in run.data.metrics)
    assert paths(client, run) == {'config.yaml', 'dvc.lock', 'figures', 'logs', 'metrics.json', 'model'}
    assert {'model/config.json', 'figures/confusion.png', 'figures/curves.png'} <= paths(client, run, 'model') | paths(client, run, 'figures')
    assert re.fullmatch('[0-9a-f]{64}', run.data.tags['dvc_data_hash']) and re.match('[0-9a-f]{12}', run.data.tags['git_commit'])
    assert (run.info.status, run.data.tags['config']) == ('FINISHED', 'fashion_mnist')
    assert PASSWORD not in out and not [p for p in tmp_path.rglob('*') if p.is_file() and PASSWORD.encode() in p.read_bytes()]


def test_server_killed_in_the_middle_and_back_later(server, env, tmp_path):
    with training(tmp_path, 'train.epochs=30', env=env) as process:
        wait_for(process, 'epoch 3/30')
        server.kill()
        wait_for(process, 'epoch 8/30') # it goes on
        process.send_signal(signal.SIGSTOP) # but is not to end before the server is back
        server.start()
        process.send_signal(signal.SIGCONT)
        assert 'answers again' in ended(process)
    client, run = recorded(tmp_path)
    for key in ('train_loss', 'val_accuracy'): assert history(client, run, key) == list(range(30))
    assert run.info.status == 'FINISHED' and 'model' in paths(client, run)


@pytest.mark.parametrize('sent', [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_is_killed_then_resumed_while_the_server_hangs(server, env, tmp_path, capsys, sent):
    with training(tmp_path, 'train.epochs=30', env=env) as process:
        wait_for(process, 'epoch 3/30')
        process.send_signal(sent)
        assert 'interrupted' in ended(process, 130)
    client, first = recorded(tmp_path)
    assert first.info.status == 'KILLED' and 'model' not in paths(client, first)
    server.signal(signal.SIGSTOP) # takes connections and never answers
    try:
        with training(tmp_path, 'train.epochs=30', env=env | dict(MLFLOW_HTTP_REQUEST_TIMEOUT='2'), resume=True) as process: out = ended(process)
    finally: server.signal(signal.SIGCONT)
    assert 'not recorded yet: no answer from the MLflow server' in out and 'send them with fashion_track' in out
    assert (tmp_path/'runs/fashion_mnist/one/best_model/config.json').is_file()
    fashion_track(runs=str(tmp_path/'runs'))
    assert 'records sent to http://127.0.0.1' in capsys.readouterr().out
    client, run = recorded(tmp_path)
    assert (run.info.run_id, run.info.status) == (first.info.run_id, 'FINISHED')
    assert history(client, run, 'val_accuracy') == list(range(30))
    assert paths(client, run) == {'config.yaml', 'figures', 'logs', 'metrics.json', 'model'}


def test_failed_training_is_marked(env, tmp_path, train):
    code, out = train('train.lr=10', 'train.warmup=0', 'train.weight_decay=1') # each step multiplies the weights by -9
    assert code == 2 and 'lower train.lr' in out
    client, run = recorded(tmp_path)
    assert run.info.status == 'FAILED' and 'model' not in paths(client, run)


@pytest.mark.parametrize('case, words', [
    (dict(MLFLOW_TRACKING_USERNAME='', MLFLOW_TRACKING_PASSWORD=''), 'asks who you are: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD'),
    (dict(MLFLOW_TRACKING_PASSWORD='wrong-horse'), 'refuses the name or password: correct MLFLOW_TRACKING_USERNAME'),
    (dict(MLFLOW_TRACKING_URI='http://ada:sesame@127.0.0.1:9'), 'no answer from the MLflow server http://127.0.0.1:9: start it, correct MLFLOW_TRACKING_URI'),
    (dict(MLFLOW_TRACKING_URI='gopher://ada:sesame@127.0.0.1'), 'MLflow cannot record in gopher://127.0.0.1'),
], ids=['no credentials', 'wrong password', 'unreachable', 'no such scheme'])
def test_useless_server_is_one_line_and_leaves_nothing(env, tmp_path, train, case, words):
    with patch.dict(os.environ, dict(MLFLOW_HTTP_REQUEST_MAX_RETRIES='0') | case): code, out = train()
    assert code == 2 and words in out and out.startswith('fashion_train: ')
    assert len(out.strip().splitlines()) == 1 and not re.search('sesame|horse', out)
    assert not list(tmp_path.iterdir())


def test_two_writers_lose_nothing(env, tmp_path):
    code = f'''
import sys
sys.path.insert(0, {str(ROOT)!r})
from fashion_nbdev.tracking import Record
record = Record(sys.argv[1])
record.start(sys.argv[1], dict(writer=sys.argv[1]), {{}})
for step in range(1000): record.metrics(dict(value=step), step)
record.close('FINISHED')
'''
    names = ('runs/a/one', 'runs/a/two')
    writers = [subprocess.Popen([sys.executable, '-c', code, name], cwd=tmp_path, env=clean_env(**env), stderr=subprocess.PIPE, text=True) for name in names]
    for w in writers: assert w.communicate(timeout=120) and w.returncode == 0
    for name in names:
        client, record = MlflowClient(env['MLFLOW_TRACKING_URI']), Record(tmp_path/name)
        values = client.get_metric_history(record.run_id, 'value')
        assert sorted((m.step, m.value) for m in values) == [(i, i) for i in range(1000)]
        assert client.get_run(record.run_id).info.status == 'FINISHED' and not record.journal.waiting()


def test_two_writers_of_the_local_file_lose_nothing(tmp_path):
    "SQLite, where writers wait for each other"
    with patch.dict(os.environ):
        os.environ.pop('MLFLOW_TRACKING_URI', None)
        records = [Record(tmp_path/'runs/a'/name) for name in ('one', 'two')]
        for r in records: r.start(r.folder.name, {}, {})
        for step in range(1000):
            for r in records: r.metrics(dict(value=step), step)
        for r in records: r.close('FINISHED')
        for r in records:
            values = MlflowClient(r.address).get_metric_history(r.run_id, 'value')
            assert sorted(m.step for m in values) == list(range(1000))


def damaged(data: bytes, share: float, seed: int) -> bytes:
    "A model file, some of whose larger weights are set to 0"
    model, rng = onnx.load_from_string(data), np.random.default_rng(seed)
    for t in model.graph.initializer:
        w = onnx.numpy_helper.to_array(t)
        if w.size > 1000: t.CopyFrom(onnx.numpy_helper.from_array(np.where(rng.random(w.shape) < share, 0, w).astype(w.dtype), t.name))
    del model.metadata_props[:]
    return pack_model(model.SerializeToString(), replace(unpack_model(data), golden=()))


def test_champion_comes_from_the_registry(env, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shipped = (ROOT/'models/fashion_mnist.onnx').read_bytes()
    (tmp_path/'worse.onnx').write_bytes(worse := damaged(shipped, .4, seed=0))
    (tmp_path/'good.onnx').write_bytes(shipped)
    served, kind = tmp_path/'served/fashion_mnist.onnx', dict(samples=True, slower=5)
    with pytest.raises(FashionError, match=f"no model 'fashion_mnist' is registered in {env['MLFLOW_TRACKING_URI']}"): fashion_promote(name='fashion_mnist', out='served')
    assert not served.exists()
    fashion_promote(model='worse.onnx', out='served', **kind)
    assert served.read_bytes() == worse
    fashion_promote(model='good.onnx', out='served', results='promote.json', **kind)
    assert served.read_bytes() == shipped and read_results('promote.json')[0]['promoted']
    with pytest.raises(SystemExit) as stopped: fashion_promote(model='worse.onnx', **kind)
    assert stopped.value.code == 1 and 'refused accuracy' in capsys.readouterr().out
    client = MlflowClient(env['MLFLOW_TRACKING_URI'])
    champion = client.get_model_version_by_alias('fashion_mnist', 'champion')
    assert champion.tags['sha256'] == hashlib.sha256(shipped).hexdigest() and champion.tags['promotion'] == 'promoted'
    with patch.dict(os.environ, MLFLOW_TRACKING_URI='http://127.0.0.1:9', MLFLOW_HTTP_REQUEST_MAX_RETRIES='0'), pytest.raises(FashionError, match='no answer from the MLflow server'):
        fashion_promote(name='fashion_mnist', out='served')
    client.set_model_version_tag('fashion_mnist', champion.version, 'sha256', '0'*64) # as if its file had been exchanged
    with pytest.raises(FashionError, match='is not the file that was registered'): fashion_promote(name='fashion_mnist', out='served')
    assert served.read_bytes() == shipped and [p.name for p in served.parent.iterdir()] == ['fashion_mnist.onnx']
    fashion_promote(name='fashion_mnist', back=True, out='served')
    assert served.read_bytes() == worse
