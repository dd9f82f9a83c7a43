"The DVC pipeline as a newcomer runs it, on the short experiment: whole, again, after prose, killed half way, from another machine's storage"
import ast
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from make_photos import make_folders
from repository import BIN, ROOT, clean_env, copy_tree

COMMANDS = {'fashion_data': 'report', 'fashion_train': 'improvements', 'fashion_export': 'export', 'fashion_evaluate': 'export', 'fashion_benchmark': 'benchmark'}
FILES = 'dvc.yaml', 'pipelines/photographs/dvc.yaml'
ENDED = 'Data and pipelines are up to date.'


def stages(*files: str) -> dict[str, dict]:
    "What each stage says, without the loop around it"
    return {f'{file}:{name}': stage.get('do', stage) for file in files for name, stage in yaml.safe_load((ROOT/file).read_text())['stages'].items()}


def imports(module: str, found: set[str] | None = None) -> set[str]:
    "The module and all of the project's modules that it imports"
    found = set() if found is None else found
    if module in found: return found
    found.add(module)
    tree = ast.parse((ROOT/f'fashion_nbdev/{module}.py').read_text(encoding='utf-8'))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            for name in [node.module] if node.module else [alias.name for alias in node.names]: imports(name, found)
    return found


@pytest.mark.parametrize('name', [name for name, stage in stages(*FILES).items() if 'deps' in stage])
def test_a_stage_depends_on_the_modules_that_its_command_runs(name):
    stage = stages(*FILES)[name]
    said = {Path(dep).stem for dep in stage['deps'] if dep.startswith('fashion_nbdev/')}
    wanted = imports(COMMANDS[stage['cmd'].split()[0]])
    assert said == wanted, f'{name}: {sorted(wanted - said)} missing, {sorted(said - wanted)} too many'


@pytest.mark.parametrize('name', sorted(yaml.safe_load((ROOT/'dvc.yaml').read_text())['vars'][0]['experiments']))
def test_an_experiment_has_a_configuration_with_all_that_stages_watch(name):
    config = yaml.safe_load((ROOT/f'configs/{name}.yaml').read_text())
    watched = {key for stage in stages(FILES[0]).values() for params in stage.get('params', []) for keys in params.values() for key in keys}
    assert config['name'] == name and watched <= set(config), f'configs/{name}.yaml lacks {sorted(watched - set(config))}'


class Project:
    "A clone in a folder of its own, with the commands of this environment"
    def __init__(self, folder: Path, **env: str):
        self.root = copy_tree(folder)
        self.env = clean_env(PATH=f'{BIN}{os.pathsep}{os.environ["PATH"]}', PYTHONPATH=f'{folder}{os.pathsep}{folder/"serve"}', FASHION_CACHE_DIR=str(folder.parent/'cache'),
                             DVC_NO_ANALYTICS='1', GIT_CONFIG_GLOBAL=os.devnull, **env)
        self.env.pop('MLFLOW_TRACKING_URI', None)
        self.run('git', 'init', '-q')

    def run(self, *args: str, ok: bool = True, **more) -> subprocess.CompletedProcess:
        done = subprocess.run(args, cwd=self.root, env=self.env | more, capture_output=True, text=True, timeout=600)
        assert not ok or done.returncode == 0, f'{" ".join(args)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}'
        return done

    def repro(self, ok: bool = True) -> str: return self.run('dvc', 'repro', 'benchmark@short', ok=ok).stdout

    def result(self, name: str) -> dict: return json.loads((self.root/f'runs/short/{name}').read_text())

    def kill_when(self, path: str, *args: str):
        "Start a command and kill it with all its children as soon as a file is there"
        process = subprocess.Popen(args, cwd=self.root, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            until = time.monotonic() + 300
            while not (self.root/path).exists():
                assert process.poll() is None and time.monotonic() < until, f'ended with {process.poll()} before {path} was there'
                time.sleep(0.01)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope='module')
def project(tmp_path_factory) -> Project:
    "A clone whose short experiment has run once, killed half way"
    project = Project(tmp_path_factory.mktemp('pipeline')/'clone')
    project.kill_when('runs/short/pipeline/checkpoint/last.pt', 'dvc', 'repro', 'benchmark@short')
    assert not (project.root/'runs/short/pipeline/metrics.json').exists()
    project.first = project.repro()
    return project


def test_killed_it_goes_on_where_it_was(project):
    log = (project.root/'runs/short/pipeline/logs/training.log').read_text()
    starts = [int(n) for n in re.findall(r'start at epoch (\d+)', log)]
    assert len(starts) == 2 and starts[1] > 1, starts
    assert "Stage 'prepare@short' didn't change, skipping" in project.first
    assert project.result('evaluate_short.json')['verdict'].startswith('agrees')
    assert project.result('evaluate_short.json')['accuracy'] > 0.5


def test_again_it_does_nothing(project):
    assert ENDED in project.repro()


def test_prose_reruns_nothing(project):
    path = project.root/'nbs/04_baseline.ipynb'
    notebook = json.loads(path.read_text(encoding='utf-8'))
    next(c for c in notebook['cells'][1:] if c['cell_type'] == 'markdown')['source'] += ['\nAnd a remark.']
    notebook['cells'].insert(3, dict(cell_type='markdown', id='remark', metadata={}, source=['A new paragraph.']))
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    project.run('nbdev_export')
    assert ENDED in project.repro()


def test_what_it_shows(project):
    assert 'accuracy' in project.run('dvc', 'metrics', 'show').stdout
    project.run('git', 'add', '-A')
    project.run('git', '-c', 'user.name=t', '-c', 'user.email=t@example.org', 'commit', '-qm', 'first')
    config = project.root/'configs/short.yaml'
    config.write_text(config.read_text().replace('batch_size: 32', 'batch_size: 64'))
    assert re.search(r'short\.yaml\s+train\.batch_size\s+32\s+64', project.run('dvc', 'params', 'diff').stdout)
    assert re.search(r'train@short', project.run('dvc', 'status').stdout)
    config.write_text(config.read_text().replace('batch_size: 64', 'batch_size: 32'))
    page = project.run('dvc', 'plots', 'show').stdout
    assert page.strip().endswith('.html')


def test_of_two_at_once_one_is_told(project):
    (project.root/'runs/short/metrics_short.json').unlink()
    first = subprocess.Popen(['dvc', 'repro', 'benchmark@short'], cwd=project.root, env=project.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    running = 'Running stage'
    while running not in (line := first.stdout.readline()): assert line, 'nothing was run'
    second = project.run('dvc', 'repro', 'benchmark@short', ok=False)
    assert second.returncode and 'is busy' in second.stderr, second.stderr
    rest = first.communicate(timeout=300)[0]
    assert first.returncode == 0, rest
    assert ENDED in project.repro()


def test_a_lock_that_a_killed_one_left_stops_nobody(project):
    gone = subprocess.Popen(['true'])
    gone.wait()
    written = project.root/'runs/short/metrics_short.json'
    written.unlink()
    (project.root/'.dvc/tmp/rwlock').write_text(json.dumps(dict(write={str(written): dict(pid=gone.pid, cmd='dvc repro')}, read={})))
    done = project.run('dvc', 'repro', 'benchmark@short')
    assert f'(Pid {gone.pid})' in done.stderr and 'had been killed' in done.stderr, done.stderr
    assert written.exists() and ENDED in project.repro()


@pytest.fixture
def s3():
    "A real S3 server on loopback"
    from moto.server import ThreadedMotoServer
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    server = ThreadedMotoServer(ip_address='127.0.0.1', port=port, verbose=False)
    server.start()
    yield f'http://127.0.0.1:{port}'
    server.stop()


def outputs(project: Project) -> dict[str, str]:
    "What DVC keeps of the run, by SHA-256"
    kept = [project.root/f'runs/short/{name}' for name in ('data', 'pipeline/best_model', 'pipeline/model_fp32.onnx')]
    files = [p for path in kept for p in (sorted(path.rglob('*')) if path.is_dir() else [path])]
    return {str(p.relative_to(project.root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_storage_on_s3_gives_back_what_it_got(project, s3, tmp_path):
    "The kind of storage that DagsHub offers: a bucket behind an address, key and token from the environment"
    import boto3
    keys = dict(AWS_ACCESS_KEY_ID='key', AWS_SECRET_ACCESS_KEY='token', AWS_DEFAULT_REGION='us-east-1')
    boto3.client('s3', endpoint_url=s3, aws_access_key_id='key', aws_secret_access_key='token', region_name='us-east-1').create_bucket(Bucket='dvc')
    project.run('dvc', 'remote', 'add', '--local', '-f', 's3', 's3://dvc')
    project.run('dvc', 'remote', 'modify', '--local', 's3', 'endpointurl', s3)
    before = outputs(project)
    assert 'runs/short/pipeline/best_model/model.safetensors' in before
    project.run('dvc', 'push', '-r', 's3', 'benchmark@short', '--with-deps', **keys)
    shutil.rmtree(project.root/'.dvc/cache')
    for path in ('runs/short/data', 'runs/short/pipeline/best_model'): shutil.rmtree(project.root/path)
    (project.root/'runs/short/pipeline/model_fp32.onnx').unlink()
    project.run('dvc', 'pull', '-r', 's3', 'benchmark@short', '--with-deps', **keys)
    assert outputs(project) == before
    assert ENDED in project.repro()
    (project.root/'runs/short/pipeline/model_fp32.onnx').unlink()
    shutil.rmtree(project.root/'.dvc/cache')
    (empty := tmp_path/'empty').touch()
    nobody = dict(AWS_CONFIG_FILE=str(empty), AWS_SHARED_CREDENTIALS_FILE=str(empty), AWS_EC2_METADATA_DISABLED='true', AWS_DEFAULT_REGION='us-east-1')
    said = project.run('dvc', 'pull', '-r', 's3', 'export@short', ok=False, **nobody)
    assert said.returncode and 'Unable to locate credentials' in said.stderr, said.stderr
    project.run('dvc', 'remote', 'modify', '--local', 's3', 'endpointurl', 'http://127.0.0.1:9')
    said = project.run('dvc', 'pull', '-r', 's3', 'export@short', ok=False, AWS_MAX_ATTEMPTS='1', **keys)
    assert said.returncode and 'Could not connect to the endpoint' in said.stderr and 'Traceback' not in said.stderr, said.stderr
    project.run('dvc', 'remote', 'modify', '--local', 's3', 'endpointurl', s3)
    project.run('dvc', 'pull', '-r', 's3', 'benchmark@short', '--with-deps', **keys)
    assert outputs(project) == before


def test_storage_in_a_folder_works_at_once(project):
    "As the repository is configured: a folder beside it"
    before = outputs(project)
    project.run('dvc', 'push', 'benchmark@short', '--with-deps')
    assert (project.root.parent/'fashion_nbdev-storage').is_dir()
    shutil.rmtree(project.root/'.dvc/cache')
    (project.root/'runs/short/pipeline/model_fp32.onnx').unlink()
    project.run('dvc', 'pull', 'benchmark@short', '--with-deps')
    assert outputs(project) == before


def test_a_damaged_cache_and_changed_data_are_noticed(project):
    model = project.root/'runs/short/pipeline/model_fp32.onnx'
    name = hashlib.md5(model.read_bytes(), usedforsecurity=False).hexdigest()
    kept, before = project.root/'.dvc/cache/files/md5'/name[:2]/name[2:], model.read_bytes()
    kept.chmod(0o644)
    kept.write_bytes(b'damaged')
    model.unlink()
    project.run('dvc', 'checkout', 'export@short', ok=False)
    assert 'model_fp32.onnx' in project.run('dvc', 'status', 'export@short').stdout
    assert ENDED not in project.repro() and ENDED in project.repro(), 'made again'
    assert len(model.read_bytes()) == pytest.approx(len(before), rel=0.01)
    data = project.root/'samples/fashion-mnist/t10k-labels-idx1-ubyte.gz'
    good = data.read_bytes()
    data.write_bytes(good[:100])
    said = project.run('dvc', 'repro', 'prepare@short', ok=False)
    assert said.returncode and 't10k-labels-idx1-ubyte.gz: damaged or cut-off gzip file' in said.stdout + said.stderr, said.stderr
    data.write_bytes(good)
    assert ENDED in project.repro()


def test_own_data_join_the_pipeline(project):
    "As the README says: dvc add, a configuration, a line in dvc.yaml"
    make_folders(project.root/'data/catalogue', ['apron', 'boot', 'cape'], {'': 60})
    project.run('dvc', 'add', 'data/catalogue')
    assert 'data/catalogue.dvc' in project.run('git', 'status', '--porcelain', '-uall').stdout
    config = yaml.safe_load((project.root/'configs/short.yaml').read_text())
    config |= dict(name='catalogue', data=dict(dataset='folder', archive='data/catalogue', labels=['apron', 'boot', 'cape'], valid_size=30, test_size=30))
    (project.root/'configs/catalogue.yaml').write_text(yaml.safe_dump(config))
    pipeline = project.root/'dvc.yaml'
    line = "      catalogue: {data: data/catalogue, after: runs/catalogue/data, models: models, results: results, benchmark: ''}\n"
    pipeline.write_text(re.sub(r'(?m)^(\s+)short: ', lambda m: line + m[0], pipeline.read_text(), count=1))
    project.run('dvc', 'repro', 'prepare@catalogue')
    assert json.loads((project.root/'runs/catalogue/data/report.json').read_text())['splits']['test']['n'] == 30
