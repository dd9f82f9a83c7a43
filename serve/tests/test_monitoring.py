"Prometheus' rules and the dashboard: each expression asks for series that the service has, and an alert fires in earnest"
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / 'monitoring'


def metric_names() -> set[str]:
    from fashion_serve import metrics
    own = {sample for family in metrics._registry.collect() for sample in (family.name, f'{family.name}_total', f'{family.name}_bucket', f'{family.name}_sum', f'{family.name}_count')}
    return own | {'process_cpu_seconds_total', 'process_resident_memory_bytes', 'process_open_fds', 'up'}


def expressions() -> list[str]:
    board = json.loads((FOLDER / 'grafana_dashboard.json').read_text())
    rules = (FOLDER / 'rules.yml').read_text()
    return [target['expr'] for panel in board['panels'] for target in panel['targets']] + [rules]


def test_every_series_exists():
    wanted = {name for e in expressions() for name in re.findall(r'\b(?:fashion|process)_[a-z_]+(?=[{\[\s)])', e)} - {'fashion_serve'}
    assert wanted and wanted <= metric_names(), wanted - metric_names()


def test_every_alert_is_made_to_fire():
    groups, tests = (yaml.safe_load((FOLDER / name).read_text())[key] for name, key in (('rules.yml', 'groups'), ('rules_test.yml', 'tests')))
    alerts = {rule['alert'] for group in groups for rule in group['rules'] if 'alert' in rule}
    fired = {case['alertname'] for test in tests for case in test['alert_rule_test'] if case['exp_alerts']}
    assert alerts and alerts == fired, alerts ^ fired


@pytest.fixture(scope='module')
def promtool() -> str:
    return shutil.which('promtool') or pytest.skip('promtool is not installed: apt-get install prometheus')


def test_rules(promtool):
    for arguments in (['check', 'rules', 'rules.yml'], ['test', 'rules', 'rules_test.yml'], ['check', 'config', 'prometheus.yml']):
        done = subprocess.run([promtool, *arguments], cwd=FOLDER, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_real_prometheus_sees_an_alert_fire(promtool, started, models_dir, tmp_path):
    "Nobody is ready: the service is stopped while Prometheus looks"
    rules = (FOLDER / 'rules.yml').read_text().replace('for: 15s', 'for: 1s')
    (tmp_path / 'rules.yml').write_text(rules)
    with socket.create_server(('127.0.0.1', 0)) as free: port = free.getsockname()[1]
    with started('--port', '0', '--models_dir', str(models_dir)) as service:
        target = service.url.removeprefix('http://').rstrip('/')
        (tmp_path / 'prometheus.yml').write_text(f'global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [rules.yml]\nscrape_configs: [{{job_name: fashion_serve, static_configs: [{{targets: ["{target}"]}}]}}]\n')
        with subprocess.Popen(['prometheus', f'--config.file={tmp_path}/prometheus.yml', f'--storage.tsdb.path={tmp_path}/data', f'--web.listen-address=127.0.0.1:{port}'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as prometheus:
            try:
                assert eventually(lambda: value(port, 'sum(fashion_workers_ready)') >= 1), 'it was never scraped'
                assert eventually(lambda: firing(port) == set()), firing(port) # before it was first scraped it was down
                service.stop()
                assert eventually(lambda: 'Down' in firing(port)), firing(port)
            finally: prometheus.terminate()


def get(port: int, path: str) -> dict:
    try:
        with urllib.request.urlopen(f'http://127.0.0.1:{port}/api/v1/{path}', timeout=5) as answer: return json.load(answer)['data']
    except OSError: return {} # not up yet


def value(port: int, query: str) -> float:
    found = get(port, 'query?query=' + urllib.request.quote(query)).get('result') or [{'value': [0, 0]}]
    return float(found[0]['value'][1])


def firing(port: int) -> set[str]: return {alert['labels']['alertname'] for alert in get(port, 'alerts').get('alerts', []) if alert['state'] == 'firing'}


def eventually(condition, seconds: float = 40) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition(): return True
        time.sleep(.3)
    return False
