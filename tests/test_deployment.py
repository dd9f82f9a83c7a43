"Putting the service into operation: compose file, cluster manifests, the smoke test, and a deployment that goes back by itself"
import fcntl
import getpass
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fashion_serve.metrics import WAIT
from fashion_serve.settings import Settings
from repository import BIN, ROOT, clean_env, settings, tool

SERVE, CLUSTER = ROOT/'serve', ROOT/'serve/kubernetes'
FINDS = dict(capture_output=True, text=True)


@pytest.fixture(scope='module')
def compose() -> dict: return yaml.safe_load((SERVE/'compose.yaml').read_text(encoding='utf-8'))


def manifests() -> dict[str, dict]:
    "Kind -> the manifest of that kind"
    return {m['kind']: m for path in sorted(CLUSTER.glob('*.yaml')) for m in [yaml.safe_load(path.read_text(encoding='utf-8'))]}


def as_if_unset(value: str) -> str:
    "A value of the compose file where none of the variables that it names is set"
    return re.sub(r'\$\{\w+:-(.*?)\}', r'\1', value)


def known(name: str) -> bool:
    "Whether a variable is one of the service's settings"
    return name.startswith('FASHION_') and name.removeprefix('FASHION_').lower() in Settings.model_fields


# compose.yaml

def test_compose_file_is_valid():
    done = subprocess.run([tool('check-jsonschema'), '--builtin-schema', 'vendor.compose-spec', SERVE/'compose.yaml'], **FINDS)
    assert done.returncode == 0, done.stdout


def test_compose_schema_finds_faults(tmp_path):
    (tmp_path/'compose.yaml').write_text('services: {a: {imagine: x}}\n')
    assert subprocess.run([tool('check-jsonschema'), '--builtin-schema', 'vendor.compose-spec', tmp_path/'compose.yaml'], **FINDS).returncode == 1


def test_mounted_files_exist_and_are_all_of_the_monitoring(compose):
    places = [as_if_unset(v) for s in compose['services'].values() for v in s.get('volumes', [])]
    mounted = {v.split(':')[0] for v in places if v.startswith('.')} - {'./config'}
    assert (SERVE/'config').is_dir() and not [m for m in mounted if not (SERVE/m).is_file()]
    assert {Path(m).name for m in mounted} == {p.name for p in (SERVE/'monitoring').iterdir()} - {'rules_test.yml'}
    named = {v.split(':')[0] for v in places if not v.startswith('.')}
    assert named == set(compose['volumes'])


def test_images_of_others_are_pinned_by_digest(compose):
    others = {name: s['image'] for name, s in compose['services'].items() if 'build' not in s}
    assert set(others) == {'prometheus', 'alertmanager', 'grafana'}
    assert not [image for image in others.values() if not re.fullmatch(r'docker\.io/\w+/\w+:v?\d+\.\d+\.\d+@sha256:[0-9a-f]{64}', image)]


def test_everything_is_confined_and_watched(compose):
    for name, s in compose['services'].items():
        assert s['read_only'] and s['cap_drop'] == ['ALL'] and s['security_opt'] == ['no-new-privileges:true'] and s['cpus'] and s['mem_limit'], name
        assert 'build' in s or s['healthcheck']['test'], name
        assert all(re.match(r'127\.0\.0\.1:|\$\{FASHION_PUBLISH:-127\.0\.0\.1:', port) for port in s.get('ports', [])), f'{name} is open to every network'
    service = compose['services']['fashion_serve']
    assert (service['cpus'], service['mem_limit']) == (2, '2g')


def test_settings_in_the_compose_file_are_known(compose):
    service = compose['services']['fashion_serve']
    assert service['environment'] and not [name for name in service['environment'] if not known(name)]
    given = Settings(**{name.removeprefix('FASHION_').lower(): as_if_unset(value) for name, value in service['environment'].items()})
    assert given.workers == service['cpus'], 'version 1 of control groups may not tell the service how many cores it has'
    assert service['ports'] == [f'${{FASHION_PUBLISH:-127.0.0.1:8000}}:{service["environment"]["FASHION_PORT"]}']


def test_monitoring_finds_the_services_by_name(compose):
    prometheus = yaml.safe_load((SERVE/'monitoring/prometheus.yml').read_text())
    targets = [t for job in prometheus['scrape_configs'] for c in job['static_configs'] for t in c['targets']]
    targets += [t for a in prometheus['alerting']['alertmanagers'] for c in a['static_configs'] for t in c['targets']]
    source = yaml.safe_load((SERVE/'monitoring/grafana_provisioning.yml').read_text())['datasources'][0]
    assert {*targets, source['url'].removeprefix('http://')} == {'fashion_serve:8000', 'alertmanager:9093', 'prometheus:9090'}
    assert {t.split(':')[0] for t in targets} <= set(compose['services'])


def test_grafana_shows_the_dashboard_without_a_hand(compose):
    grafana = compose['services']['grafana']
    inside = dict(v.split(':')[:2] for v in grafana['volumes'])
    [provider] = yaml.safe_load((SERVE/'monitoring/grafana_dashboards.yml').read_text())['providers']
    assert Path(inside['./monitoring/grafana_dashboard.json']).parent == Path(provider['options']['path'])
    assert inside['./monitoring/grafana_dashboard.json'] == grafana['environment']['GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH']
    assert [v['type'] for v in json.loads((SERVE/'monitoring/grafana_dashboard.json').read_text())['templating']['list']] == ['datasource'], 'it finds its source by itself'


# Kubernetes

def validated(*paths: Path) -> subprocess.CompletedProcess:
    return subprocess.run([tool('kubernetes-validate'), '--strict', *paths], **FINDS)


def test_manifests_are_valid():
    done = validated(*[p for p in CLUSTER.glob('*.yaml') if p.name != 'kustomization.yaml'])
    assert done.returncode == 0, done.stdout + done.stderr
    assert {'Deployment', 'Service', 'HorizontalPodAutoscaler', 'PodDisruptionBudget', 'NetworkPolicy'} <= manifests().keys()


def test_validation_finds_faults(tmp_path):
    (tmp_path/'d.yaml').write_text((CLUSTER/'deployment.yaml').read_text().replace('livenessProbe', 'livelinessProbe'))
    assert validated(tmp_path/'d.yaml').returncode and 'livelinessProbe' in validated(tmp_path/'d.yaml').stdout


def test_kustomization_lists_all_and_the_version():
    k = manifests()['Kustomization']
    assert set(k['resources']) == {p.name for p in CLUSTER.glob('*.yaml')} - {'kustomization.yaml'}
    [image] = k['images']
    assert image['name'] == container()['image'] and image['newTag'] == settings()['version']
    assert image['newName'] == f'ghcr.io/{settings()["user"]}/{settings()["repo"]}'


def container() -> dict: return manifests()['Deployment']['spec']['template']['spec']['containers'][0]


def test_manifests_point_at_each_other():
    m, labels = manifests(), manifests()['Deployment']['spec']['template']['metadata']['labels']
    selectors = [m['Deployment']['spec']['selector']['matchLabels'], m['Service']['spec']['selector'],
                 m['PodDisruptionBudget']['spec']['selector']['matchLabels'], m['NetworkPolicy']['spec']['podSelector']['matchLabels']]
    assert all(s == labels for s in selectors)
    assert m['HorizontalPodAutoscaler']['spec']['scaleTargetRef']['name'] == m['Deployment']['metadata']['name']
    [port] = container()['ports']
    assert m['Service']['spec']['ports'][0]['targetPort'] == port['name'] and port['containerPort'] == Settings.model_fields['port'].default
    assert 'replicas' not in m['Deployment']['spec'], 'the autoscaler says how many'


def test_pods_are_confined_and_asked_for_their_health():
    pod, c = manifests()['Deployment']['spec']['template']['spec'], container()
    assert pod['securityContext']['runAsNonRoot'] and not pod['automountServiceAccountToken'] and not pod['enableServiceLinks']
    user = re.search(r'^USER (\d+)', (SERVE/'Dockerfile').read_text(), re.M)[1]
    assert pod['securityContext']['runAsUser'] == int(user)
    assert c['securityContext'] == dict(allowPrivilegeEscalation=False, readOnlyRootFilesystem=True, capabilities=dict(drop=['ALL']))
    assert [c[f'{kind}Probe']['httpGet']['path'] for kind in ('startup', 'readiness', 'liveness')] == ['/readyz', '/readyz', '/livez']
    assert c['resources']['limits'] == dict(cpu='2', memory='2Gi')
    assert not [e['name'] for e in c['env'] if not known(e['name'])]


def test_metric_for_scaling_exists():
    assert f'metric: {{name: {WAIT._name}}}' in (CLUSTER/'autoscaler.yaml').read_text()


# A deployment, with a stand-in for Docker's engine that starts real services

DOCKER = r'''#!__PYTHON__
"docker compose, as far as deploy.sh uses it: an image is a folder of models, and `up` starts the service with it"
import os, signal, subprocess, sys, time
from pathlib import Path
state, words = Path(os.environ['STATE']), sys.argv[1:]
assert words[:2] == ['compose', '--file'], words
folder, (verb, *rest) = Path(words[2]).parent, words[3:]
own = dict(line.split('=', 1) for line in (folder/'.env').read_text().splitlines() if line)
image = own['FASHION_IMAGE']
def stop():
    if not (state/'pid').exists(): return
    pid = int((state/'pid').read_text())
    (state/'pid').unlink()
    try:
        os.kill(pid, signal.SIGTERM)
        while Path(f'/proc/{pid}').exists() and 'Z' not in Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2][:3]: time.sleep(.05)
    except OSError: pass # it has ended
if verb in ('up', 'down'): stop()
if verb == 'up':
    assert {'--detach', '--no-build', '--wait'} <= set(rest) and (folder/'monitoring/rules.yml').is_file(), rest
    if not (state/image).is_dir(): sys.exit(f'{image}: no such image')
    env = os.environ | own | dict(FASHION_PORT=(state/'port').read_text(), FASHION_MODELS_DIR=str(state/image), FASHION_DEADLINE='30', FASHION_WORKERS='1')
    with open(state/'log', 'w') as log: service = subprocess.Popen([os.environ['SERVICE']], env=env, stdout=log, stderr=log, start_new_session=True)
    (state/'pid').write_text(str(service.pid))
    (state/'served').open('a').write(image + '\n')
elif verb == 'exec':
    assert rest[:2] == ['-T', 'fashion_serve'], rest
    sys.exit(subprocess.run(rest[2:], env=own | dict(PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}', FASHION_PORT=(state/'port').read_text())).returncode)
elif verb == 'logs': print((state/'log').read_text() if (state/'log').exists() else '')
'''


class Host:
    "A machine that services are deployed to: its folders, and the stand-in"
    def __init__(self, folder: Path):
        self.state, self.releases = folder/'state', folder/'releases with a space'
        for name in (self.state, folder/'bin', self.state/'good', self.state/'better', self.state/'mixed_up'): name.mkdir()
        for name in ('good', 'better'): shutil.copy(ROOT/'models/fashion_mnist.onnx', self.state/name)
        shutil.copy(ROOT/'models/clothing.onnx', self.state/'mixed_up/fashion_mnist.onnx')
        with socket.create_server(('127.0.0.1', 0)) as free: (self.state/'port').write_text(str(free.getsockname()[1]))
        (folder/'bin/docker').write_text(DOCKER.replace('__PYTHON__', sys.executable))
        (folder/'bin/docker').chmod(0o755)
        self.env = dict(PATH=f'{folder}/bin:{os.environ["PATH"]}', STATE=str(self.state), FASHION_RELEASES=str(self.releases), SERVICE=str(BIN/'fashion_serve'), PYTHONPATH=os.environ.get('PYTHONPATH', ''))

    def deploy(self, *args: str, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run([SERVE/'deploy.sh', *args], env=clean_env(**self.env, **env), timeout=120, **FINDS)

    @property
    def serves(self) -> str: return (self.releases/'current/.env').read_text().splitlines()[-1]

    @property
    def served(self) -> list[str]: return (self.state/'served').read_text().split()

    def smoke(self, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, SERVE/'smoke.py', f'http://127.0.0.1:{(self.state/"port").read_text()}', '--wait', '5'], env=clean_env(**env), **FINDS)


@pytest.fixture
def host(tmp_path):
    "A host with nothing on it; what was started there is ended"
    yield (made := Host(tmp_path))
    if (made.releases/'current').exists(): subprocess.run([tmp_path/'bin/docker', 'compose', '--file', made.releases/'current/compose.yaml', 'down'], env=clean_env(**made.env))


def test_deployment_and_what_replaces_it(host):
    host.releases.mkdir()
    (host.releases/'.env').write_text('FASHION_LOG_SHARE=0\n')
    first, second = host.deploy('good'), host.deploy('better')
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert 'ankle_boot' in second.stdout and second.stdout.endswith('deploy.sh: better is in service\n')
    assert host.serves == 'FASHION_IMAGE=better' and 'FASHION_LOG_SHARE=0' in (host.releases/'current/.env').read_text()
    assert host.smoke().returncode == 0


@pytest.mark.parametrize('bad', ['mixed_up', 'no_such_image'])
def test_bad_image_goes_back_to_the_one_before(host, bad):
    assert host.deploy('good').returncode == 0
    done = host.deploy(bad)
    assert done.returncode == 1 and done.stderr.endswith(f'deploy.sh: {bad} did not come into service; good serves again\n')
    assert host.serves == 'FASHION_IMAGE=good' and host.served[-1] == 'good' and host.smoke().returncode == 0


def test_first_image_that_is_bad_leaves_nothing(host):
    done = host.deploy('mixed_up')
    assert done.returncode == 1 and 'takes an ankle boot for' in done.stderr and done.stderr.endswith('nothing serves\n')
    assert not (host.releases/'current').exists() and not (host.state/'pid').exists() and host.smoke().returncode == 1


def let_in(host: Host, key: str, *more: str):
    "Settings of the host: who asks needs this key"
    (keys := host.state/'keys.txt').write_text(f'deployment {hashlib.sha256(key.encode()).hexdigest()}\n')
    host.releases.mkdir(exist_ok=True)
    (host.releases/'.env').write_text('\n'.join([f'FASHION_KEYS_FILE={keys}', *more]))


def test_deployment_where_keys_are_asked_for(host):
    key, other = 'open sesame', 'another one'
    let_in(host, key, f'FASHION_SMOKE_KEY="{key}"')
    done = host.deploy('good')
    assert done.returncode == 0 and 'ankle_boot' in done.stdout, done.stderr
    assert host.smoke(FASHION_SMOKE_KEY=key).returncode == 0
    assert key not in (host.releases/'current/.env').read_text(), 'the service need not know it'
    let_in(host, other) # since then
    done = host.deploy('mixed_up', FASHION_SMOKE_KEY=other)
    assert done.returncode == 1 and 'takes an ankle boot for' in done.stderr and done.stderr.endswith('good serves again\n'), done.stderr


def test_deployment_without_the_key_says_what_to_set(host):
    let_in(host, 'open sesame')
    for done in host.deploy('good'), host.deploy('good', FASHION_SMOKE_KEY='wrong'):
        [said] = [line for line in done.stderr.splitlines() if line.startswith('smoke.py: ')]
        assert done.returncode == 1 and said.endswith('answers with status 401: set FASHION_SMOKE_KEY to a key that the service knows by its FASHION_KEYS_FILE')


def test_old_releases_go(host):
    host.releases.mkdir()
    for i in range(8): (host.releases/f'2020010{i}T000000.0Z').mkdir()
    assert host.deploy('good').returncode == 0
    assert sorted(p.name for p in host.releases.iterdir() if p.is_dir() and not p.is_symlink())[0] == '20200104T000000.0Z'


def test_two_deployments_at_once_and_none_named(host):
    host.releases.mkdir()
    with (host.releases/'.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = host.deploy('good')
    assert done.returncode == 1 and done.stderr.startswith('deploy.sh: another deployment is at work')
    assert host.deploy().returncode == 2


def test_deployment_to_another_host_by_ssh(host, tmp_path):
    sshd, keygen, _ = tool('sshd') if shutil.which('sshd') else tool('/usr/sbin/sshd'), tool('ssh-keygen'), tool('ssh')
    for name in ('host_key', 'own_key'): subprocess.run([keygen, '-q', '-t', 'ed25519', '-N', '', '-f', tmp_path/name], check=True)
    with socket.create_server(('127.0.0.1', 0)) as free: port = free.getsockname()[1]
    there = ' '.join(f'"{name}={value}"' for name, value in host.env.items())
    (tmp_path/'sshd_config').write_text(f'ListenAddress 127.0.0.1:{port}\nHostKey {tmp_path}/host_key\nAuthorizedKeysFile {tmp_path}/own_key.pub\n'
                                        f'StrictModes no\nPasswordAuthentication no\nPidFile none\nPermitRootLogin yes\nSetEnv {there}\n')
    client = f'-F none -i {tmp_path}/own_key -p {port} -o UserKnownHostsFile={tmp_path}/known_hosts'
    (tmp_path/'known_hosts').write_text(f'[127.0.0.1]:{port} {(tmp_path/"host_key.pub").read_text()}')
    (tmp_path/'bin/ssh').write_text(f'#!/bin/sh\nexec {tool("ssh")} {client} "$@"\n') # a user's ~/.ssh/config, in effect
    (tmp_path/'bin/ssh').chmod(0o755)
    if os.getuid() == 0: Path('/run/sshd').mkdir(exist_ok=True)
    with subprocess.Popen([sshd, '-D', '-e', '-f', tmp_path/'sshd_config'], stderr=subprocess.PIPE, text=True) as server:
        try:
            assert 'Server listening' in server.stderr.readline()
            target = f'{getpass.getuser()}@127.0.0.1'
            done = host.deploy('good', target)
            assert done.returncode == 0 and done.stdout.endswith('deploy.sh: good is in service\n'), done.stderr
            done = host.deploy("mixed_up' ; touch x; '", target)
            assert done.returncode == 1 and 'good serves again' in done.stderr and host.serves == 'FASHION_IMAGE=good'
        finally: server.terminate()


def test_smoke_test_says_what_is_wrong():
    with socket.create_server(('127.0.0.1', 0)) as free: port = free.getsockname()[1]
    done = subprocess.run([sys.executable, SERVE/'smoke.py', f'http://127.0.0.1:{port}', '--wait', '0.5'], **FINDS)
    assert done.returncode == 1 and done.stderr == f'smoke.py: http://127.0.0.1:{port}/readyz answers with [Errno 111] Connection refused\n'


@pytest.mark.parametrize('path', sorted([*ROOT.glob('scripts/*.sh'), *ROOT.glob('serve/*.sh'), ROOT/'.ci/run']), ids=lambda p: p.name)
def test_shell_scripts_are_clean(path):
    done = subprocess.run([tool('shellcheck'), '--severity', 'warning', path], **FINDS)
    assert done.returncode == 0, done.stdout
