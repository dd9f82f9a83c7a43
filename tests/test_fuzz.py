"A few seconds of what `make fuzz` does for minutes"
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not find_spec('atheris'), reason='atheris is for Linux on x86-64 only')
def test_damaged_pictures_are_answered_or_refused(tmp_path):
    done = subprocess.run([sys.executable, ROOT/'scripts'/'fuzz.py', '5'], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and 'no error but ImageError' in done.stdout, done.stdout + done.stderr[-3000:]
    assert int(done.stdout.split()[0].replace(',', '')) > 200, done.stdout
