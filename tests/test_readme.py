"README.md says what nbs/index.ipynb says, and what it tells a reader to do works"
import json
import re
import shlex
import subprocess
import sys
from functools import cache

import pytest
from PIL import Image
from repository import BIN, ROOT, clean_env, load_script, pyproject

from fashion_nbdev.predict import Predictor

README = (ROOT/'README.md').read_text(encoding='utf-8')
COMMANDS = pyproject()['project']['scripts']


def blocks(language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', README, re.M | re.S)


def shell_lines() -> list[list[str]]:
    "The commands of the shell blocks, as words"
    lines = ''.join(blocks('bash')).replace('\\\n', ' ').splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.strip().startswith('#')]


@cache
def options(command: str) -> set[str]:
    "The options that a command's own help lists"
    done = subprocess.run([BIN/command, '--help'], cwd=ROOT, env=clean_env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r'(?<![\w-])--\w[\w-]*', done.stdout))


def test_readme_is_made_from_the_index():
    assert load_script('readme').render() == README, 'run `make docs`'


def test_renderer_hides_keeps_and_rewrites(tmp_path):
    cell = lambda kind, source, *outputs: dict(cell_type=kind, source=source, metadata={}, **({'outputs': list(outputs)} if kind == 'code' else {}))
    shown = lambda **data: dict(output_type='execute_result', data={k.replace('_', '/'): v for k, v in data.items()})
    path = tmp_path/'index.ipynb'
    path.write_text(json.dumps(dict(nbformat=4, nbformat_minor=5, metadata={}, cells=[
        cell('markdown', '# title\n![a](images/a.png) [b](../b.md) [c](https://c.d/e) [f](#g)'),
        cell('code', '#| hide\nsecret = 1', shown(text_plain='secret')),
        cell('code', '#| echo: false\nunseen()', shown(text_markdown='| table |', text_plain='object')),
        cell('code', 'print(1)', dict(output_type='stream', name='stdout', text=['1\n'])),
        cell('code', 'plot()', shown(image_png='aGk=', text_plain='<Figure>'))])))
    readme = load_script('readme')
    assert readme.render(path) == f'''{readme.MADE}

# title
![a](nbs/images/a.png) [b](b.md) [c](https://c.d/e) [f](#g)

| table |

```python
print(1)
```

```text
1
```

```python
plot()
```
'''
    path.write_text(path.read_text().replace('"stream"', '"error", "evalue": "x"'))
    with pytest.raises(SystemExit, match='failed'): readme.render(path)


def test_links_and_pictures_exist():
    targets = re.findall(r'\]\((?![a-z]+:|#)([^)\s]+)\)|(?:src|href)="(?![a-z]+:|#)([^"]+)"', README)
    assert len(targets) >= 10
    assert not [t for pair in targets for t in pair if t and not (ROOT/t.partition('#')[0]).exists()]


def test_make_targets_exist():
    phony = re.search(r'^\.PHONY: (.*)', (ROOT/'Makefile').read_text(), re.M)[1].split()
    told = [words[1] for words in shell_lines() if words[0] == 'make'] + re.findall(r'`make (\w[\w-]*)', README)
    assert {'run', 'test'} <= set(told) <= set(phony)
    settings = {s.split('=')[0] for s in re.findall(r'`make [^`]*`', README) for s in s.strip('`').split() if '=' in s}
    assert settings <= set(re.findall(r'^(\w+) \??=', (ROOT/'Makefile').read_text(), re.M))


def test_commands_are_known():
    first = {words[0] for words in shell_lines()}
    assert first <= {'make', 'curl', 'git', 'cd', 'source', 'export', 'pip', 'python', 'conda', 'docker', 'dvc', *COMMANDS}
    assert set(re.findall(r'\bfashion_(?!nbdev|mnist|serve/)\w+', README)) <= set(COMMANDS)


def test_command_options_exist():
    told = [(words[0], w.split('=')[0]) for words in shell_lines() if words[0] in COMMANDS for w in words if w.startswith('--')]
    assert len(told) >= 2
    assert not [(command, option) for command, option in told if option not in options(command)]
    inline = set(re.findall(r'`(--\w+)`', README))
    assert inline <= set().union(*map(options, COMMANDS))


@pytest.mark.parametrize('command', COMMANDS)
def test_command_explains_itself(command):
    assert '--help' in options(command)
    done = subprocess.run([BIN/command, '--no_such_option', '1'], cwd=ROOT, env=clean_env(), capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and 'no_such_option' in done.stderr


def test_files_that_commands_name_exist():
    made = {'predictions.csv'}
    named = [w.lstrip('@') for words in shell_lines() if words[0] in {*COMMANDS, 'curl'} for w in words[1:] if re.fullmatch(r'@?[\w.-]+(/[\w.-]+)+', w) and w != 'image/png']
    assert named and not [w for w in named if w not in made and not (ROOT/w).exists()]


def test_addresses_are_those_of_the_service():
    from fashion_serve.main import create_app
    from fashion_serve.settings import load_settings
    paths = {re.sub(r'\{\w+\}', 'x', route) for route in create_app(load_settings()).openapi()['paths']}
    told = set(re.findall(r'http://127\.0\.0\.1:8000(/[\w/]*)', README)) - {'/'}
    assert told and told <= paths


def test_python_examples_run():
    code = '\n'.join(block for block in blocks('python') if '127.0.0.1:8000' not in block) # those are tested in serve/tests
    assert code
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=clean_env(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_prediction_from_a_terminal(tmp_path):
    [words] = [words for words in shell_lines() if words[0] == 'fashion_predict']
    words = [str(tmp_path/w) if w == 'predictions.csv' else w for w in words]
    done = subprocess.run([BIN/words[0], *words[1:]], cwd=ROOT, env=clean_env(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 'ankle_boot' in (tmp_path/'predictions.csv').read_text()


def test_measured_numbers_are_those_of_results():
    "Run the index again in a fresh process; its tables must be those that README.md shows"
    code = '''
import json, sys
from execnb.nbio import read_nb
from execnb.shell import CaptureShell
shell, tables = CaptureShell('nbs/index.ipynb'), []
for cell in read_nb('nbs/index.ipynb').cells:
    if cell.cell_type != 'code': continue
    out = shell.run(cell.source)
    if shell.exc: raise shell.exc
    tables += [''.join(o['data']['text/markdown']) for o in out if 'text/markdown' in o.get('data', {})]
print(json.dumps(tables))'''
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=clean_env(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    tables = [load_script('readme').from_root(t) for t in json.loads(done.stdout.splitlines()[-1])]
    assert len(tables) >= 2
    assert not [t for t in tables if t not in README], 'run `make notebooks docs`'


def test_the_picture_of_the_page_shows_the_shipped_model():
    with Image.open(ROOT/'nbs/images/page.png') as picture: shown = picture.text['version']
    assert shown == Predictor.load('clothing').info.version, 'the model was exchanged since: make screenshot'
