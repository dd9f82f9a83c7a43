"The images: what their files promise, and, with --image, that the service's is built and does what it is there for"
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
from repository import ROOT, tool

SERVICE, TRAINING = 'serve/Dockerfile', 'Dockerfile'
DOCKERFILES = pytest.mark.parametrize('name', [SERVICE, TRAINING])
MEGABYTES = 350 # that the service's image may have
HARDENED = '--read-only', '--tmpfs', '/tmp', '--cap-drop', 'ALL', '--security-opt', 'no-new-privileges'


def instructions(name: str) -> list[tuple[str, str]]:
    "A Dockerfile's instructions: (FROM, ...), (RUN, ...), ..."
    text = re.sub(r'^#.*\n', '', (ROOT/name).read_text(encoding='utf-8'), flags=re.M).replace('\\\n', ' ')
    return [(line.split()[0], ' '.join(line.split()[1:])) for line in text.splitlines() if line.strip()]


def last(name: str, instruction: str) -> str: return [rest for word, rest in instructions(name) if word == instruction][-1]


# What their files promise

@DOCKERFILES
def test_dockerfile_is_clean(name):
    done = subprocess.run([tool('hadolint'), ROOT/name], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, '')


def test_hadolint_finds_faults(tmp_path):
    (tmp_path/'Dockerfile').write_text('FROM python\nRUN cd /tmp && pip install numpy\n')
    done = subprocess.run([tool('hadolint'), tmp_path/'Dockerfile'], capture_output=True, text=True)
    assert done.returncode and 'DL3006' in done.stdout


def test_bases_are_one_image_by_digest():
    bases = {rest.split(' AS ')[0] for name in (SERVICE, TRAINING) for word, rest in instructions(name) if word == 'FROM'} - {'base'}
    assert len(bases) == 1 and re.fullmatch(r'docker\.io/library/python:3\.13-slim-\w+@sha256:[0-9a-f]{64}', *bases), bases


@DOCKERFILES
def test_what_is_copied_exists(name):
    copied = [source for word, rest in instructions(name) if word == 'COPY' and '--from' not in rest for source in rest.split()[:-1]]
    assert copied and not [source for source in copied if not (ROOT/source).exists()]
    if name == SERVICE:
        allowed = {line[1:] for line in (ROOT/f'{SERVICE}.dockerignore').read_text().splitlines() if line.startswith('!')}
        assert set(copied) == allowed, 'what is copied and what the context holds differ'


@DOCKERFILES
def test_nobody_is_root(name): assert re.fullmatch(r'[1-9]\d+:[1-9]\d+', last(name, 'USER'))


def test_service_is_small_pinned_and_watched():
    runs = ' '.join(rest for word, rest in instructions(SERVICE) if word == 'RUN')
    assert runs.count(' -r serve/') == runs.count('--require-hashes') == 3 and 'apt-get' not in runs
    assert last(SERVICE, 'STOPSIGNAL') == 'SIGTERM' and '/readyz' in last(SERVICE, 'HEALTHCHECK')
    labels = set(re.findall(r'org\.opencontainers\.image\.(\w+)=', last(SERVICE, 'LABEL')))
    assert {'title', 'description', 'licenses', 'source', 'version', 'revision', 'created'} <= labels


def test_secrets_and_data_stay_outside():
    ignored = (ROOT/'.dockerignore').read_text().split('\n')
    assert {'.git', '**/.env*', '.dvc/config.local', 'runs', 'data'} <= set(ignored)


# The service's image, built and started

def works(command: str) -> bool:
    "Whether it is installed and its engine, if it needs one, answers"
    return bool(shutil.which(command)) and subprocess.run([command, 'info'], capture_output=True).returncode == 0


@pytest.fixture(scope='module')
def builder(request) -> str:
    if not request.config.getoption('--image'): pytest.skip('building takes minutes: make container, or --image build')
    found = next((command for command in ('docker', 'podman', 'buildah') if works(command)), None)
    return found or pytest.fail('neither Docker, Podman nor Buildah works here')


@pytest.fixture(scope='module')
def image(request, builder) -> str:
    "The image that is tried: a new one, unless --image names one"
    wanted, base = request.config.getoption('--image'), request.config.getoption('--base')
    if wanted != 'build':
        if subprocess.run([builder, 'inspect', '--type', 'image', wanted], capture_output=True).returncode: subprocess.run([builder, 'pull', wanted], check=True)
        return wanted
    if not base and subprocess.run([builder, 'pull', instructions(SERVICE)[0][1].split()[0]], capture_output=True).returncode:
        pytest.fail('the base image cannot be had here: name another with --base')
    on = [] if not base else ['--build-context', f'base=docker-image://{base}'] if builder == 'docker' else ['--from', base]
    network = [] if builder == 'docker' else ['--network', 'host', '--format', 'docker'] # the format that knows health checks
    subprocess.run([builder, 'build', *on, *network, '--file', ROOT/SERVICE, '--tag', 'fashion_nbdev:tried', ROOT], check=True)
    return 'localhost/fashion_nbdev:tried' if builder != 'docker' else 'fashion_nbdev:tried'


@contextmanager
def in_engine(engine: str, image: str, port: int):
    "The service in a container as compose.yaml has it, and a way to run commands in it"
    call = lambda *words: subprocess.run([engine, *words], check=True, capture_output=True, text=True).stdout.strip()
    container = call('run', '--detach', '--publish', f'127.0.0.1:{port}:{port}', *HARDENED, '--env', f'FASHION_PORT={port}', '--env', 'FASHION_DEADLINE=30', image)
    try:
        yield lambda *words: call('exec', container, *words)
        call('stop', '--time', '30', container)
        assert call('inspect', '--format', '{{.State.ExitCode}}', container) == '0', 'it does not end by itself'
    finally: subprocess.run([engine, 'rm', '--force', container], capture_output=True)


@contextmanager
def in_buildah(image: str, port: int):
    "Likewise where nothing can run containers: the image's files as the root folder, which is enough for all but what an engine isolates"
    call = lambda *words: subprocess.run(['buildah', *words], check=True, capture_output=True, text=True).stdout.strip()
    container = call('from', image)
    run = ['buildah', 'run', '--isolation', 'chroot', '--network', 'host', '--env', f'FASHION_PORT={port}', '--env', 'FASHION_DEADLINE=30', container, '--']
    service = subprocess.Popen([*run, 'fashion_serve'], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield lambda *words: subprocess.run([*run, *words], check=True, capture_output=True, text=True).stdout.strip()
    finally:
        os.killpg(service.pid, signal.SIGTERM)
        service.wait(40)
        call('rm', container)


@pytest.fixture(scope='module')
def container(builder, image):
    "The port of a running service, and a way to run commands beside it"
    with socket.create_server(('127.0.0.1', 0)) as free: port = free.getsockname()[1]
    with in_buildah(image, port) if builder == 'buildah' else in_engine(builder, image, port) as inside: yield port, inside


def test_service_in_the_container_answers(container):
    done = subprocess.run([sys.executable, ROOT/'serve/smoke.py', f'http://127.0.0.1:{container[0]}'], capture_output=True, text=True)
    assert done.returncode == 0 and 'ankle_boot' in done.stdout, done.stderr


def test_models_in_the_container_are_those_of_the_repository(container):
    code = 'import fashion_nbdev, hashlib, json, pathlib; print(json.dumps({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (pathlib.Path(fashion_nbdev.__file__).parent/"models").glob("*.onnx")}))'
    ours = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (ROOT/'models').glob('*.onnx')}
    assert json.loads(container[1]('python', '-c', code)) == ours and ours


def test_container_holds_no_torch_and_no_root(container):
    code = 'import importlib.util as u, os; print([n for n in ("torch", "pip", "fastai", "matplotlib") if u.find_spec(n)], os.getuid())'
    assert container[1]('python', '-c', code) == '[] 10001'


def test_container_cannot_be_written_to(container, builder):
    if builder == 'buildah': pytest.skip('buildah does not isolate what it runs')
    code = 'import os, tempfile; tempfile.TemporaryFile(); print([f for f in ("/", "/opt/fashion", "/etc", "/usr") if os.access(f, os.W_OK)])'
    assert container[1]('python', '-c', code) == '[]'


def test_container_says_it_is_healthy(container):
    command = json.loads(last(SERVICE, 'HEALTHCHECK').partition('CMD ')[2])
    container[1](*command)
    with pytest.raises(subprocess.CalledProcessError): container[1]('env', 'FASHION_PORT=1', *command)


def test_image_is_small(image, builder):
    if builder == 'buildah':
        [found] = json.loads(subprocess.run(['buildah', 'images', '--json', image], check=True, capture_output=True).stdout)
        number, unit = found['size'].split()
        size = float(number) * {'KB': .001, 'MB': 1, 'GB': 1000}[unit]
    else: size = int(subprocess.run([builder, 'image', 'inspect', '--format', '{{.Size}}', image], check=True, capture_output=True, text=True).stdout) / 1e6
    assert size < MEGABYTES, f'{size:.0f} MB'
