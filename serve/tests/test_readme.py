"README.md's examples of asking the service work as they are printed"
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fashion_nbdev.timing import product_photo

ROOT = Path(__file__).parents[2]
README, PLACE = (ROOT / 'README.md').read_text(encoding='utf-8'), '127.0.0.1:8000'


def examples(language: str) -> list[str]: return [block for block in re.findall(rf'^```{language}\n(.*?)^```', README, re.M | re.S) if PLACE in block]


@pytest.fixture(scope='module')
def shop(started, samples, tmp_path_factory):
    "A folder with a reader's pictures, and the address of a service with the shipped models"
    folder = tmp_path_factory.mktemp('shop')
    (folder / 'photo.jpg').write_bytes(product_photo())
    (folder / 'boot.png').write_bytes(samples['ankle_boot'])
    with started('--port', '0', FASHION_DEADLINE='30') as service: yield folder, service.url.split('/')[2]


@pytest.mark.parametrize('code', examples('python'), ids=lambda code: re.search(r'(\w+)(\.http)? ', code)[1])
def test_python(shop, code):
    folder, address = shop
    done = subprocess.run([sys.executable, '-c', code.replace(PLACE, address)], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    if 'triton' in code: assert 'ankle_boot' in done.stdout.split(':')[2]


@pytest.mark.skipif(not shutil.which('curl'), reason='curl is not installed')
@pytest.mark.parametrize('line', [line for block in examples('bash') for line in block.splitlines() if line.startswith('curl')])
def test_curl(shop, line):
    folder, address = shop
    done = subprocess.run([*shlex.split(line.replace(PLACE, address)), '--silent', '--show-error', '--fail-with-body'], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    for answer in done.stdout.splitlines(): assert json.loads(answer)['predictions'][0]['probability'] > 0


def test_there_are_examples(): assert len(examples('python')) >= 2 and len(examples('bash')) >= 1
