"What would otherwise stay green in silence: notebooks and modules that drift apart, directives that do nothing, pins that disagree"
import ast
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tokenize
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from repository import (
    BIN, ROOT, cells, changed, clean_env, digests, imported, module_notebooks, modules, notebooks, pyproject, settings, tracked,
)

FLAGS = {'notest', 'slow', 'gpu'} # tests with these are left out unless asked for
TRUTH = {'true', 'false'}
DIRECTIVES = { # every directive in use -> what may follow it (None: one module's name)
    'default_exp': None, 'export': {''}, 'exporti': {''}, 'hide': {''}, 'eval': {'false'}, 'echo': TRUTH, 'output': TRUTH,
    'warning': TRUTH, 'code-fold': TRUTH, **{flag: {''} for flag in FLAGS}}
LIGHT = {'core', 'formats', 'image', 'model_file', 'session', 'tables', 'predict'} # what serving imports
TORCH_FREE = LIGHT | {'config', 'files', 'photos', 'splits', 'data', 'report', 'results', 'evaluate', 'shifts', 'timing', 'sla', 'benchmark'}
PYTHONS = ('3.11', '3.12', '3.13')
NOTEBOOKS = pytest.mark.parametrize('path', notebooks(), ids=lambda p: p.stem)
MODULE_NOTEBOOKS = pytest.mark.parametrize('module', module_notebooks())


# Notebooks and modules

def test_every_notebook_is_numbered_or_the_index():
    numbered = set(module_notebooks().values())
    assert len(numbered) >= 5
    assert [p.name for p in notebooks() if p not in numbered] == ['index.ipynb']


def test_every_module_has_its_notebook_and_the_other_way_round():
    assert set(modules()) == set(module_notebooks()), 'a module was left behind after a rename, or a notebook exports nothing'
    for name, path in modules().items():
        assert f'File to edit: ../nbs/{module_notebooks()[name].name}.' in path.read_text(encoding='utf-8'), f'{path.name} is made from another notebook'


@MODULE_NOTEBOOKS
def test_notebook_names_its_module_first(module):
    named = [(i, c.directives['default_exp']) for i, c in enumerate(cells(module_notebooks()[module])) if 'default_exp' in c.directives]
    assert [name for _, name in named] == [module], 'its file name says otherwise'
    assert named[0][0] == 1, '`#| default_exp` stands right below the title'


@MODULE_NOTEBOOKS
def test_notebook_has_title_sentence_exports_and_tests(module):
    title, *rest = cells(module_notebooks()[module])
    assert re.match(rf'# {module}\n\n?> \S', title.source), 'the title cell is `# name` and `> one sentence`'
    tests = sum(len(re.findall(r'\b(?:test_\w+\(|expect_fail\(|assert\b)', c.source)) for c in rest if c.kind == 'code' and not c.exported)
    assert any(c.exported for c in rest), 'it exports nothing'
    assert tests >= 5, f'it holds only {tests} tests'
    assert 'nbdev_export()' in rest[-1].source and rest[-1].directives == {'hide': '', 'eval': 'false'}, 'the last cell exports, hidden and not evaluated'


@NOTEBOOKS
def test_directives_are_known_and_first(path):
    for cell in cells(path):
        lines, leading = cell.source.splitlines(), len(cell.directives)
        for i, line in enumerate(lines if cell.kind == 'code' else []):
            old = re.match(r'\s*#\s*(default_exp|exporti?|exports|hide|slow|notest|gpu)\b(?!.*\w\s\w+\s\w)', line)
            assert not old or i >= leading and not re.fullmatch(r'\s*#\s*(exporti?|exports|hide|slow|gpu|notest|default_exp \w+)\s*', line), \
                f'{cell.place}: {line!r} lacks the bar of `#|`'
            if re.match(r'\s*#\s*\|', line): assert i < leading, f'{cell.place}: {line!r} does nothing below a comment, a blank line or code'
        for name, value in (cell.directives if cell.kind == 'code' else {}).items():
            assert name in DIRECTIVES, f'{cell.place}: unknown directive {name!r}'
            allowed = DIRECTIVES[name]
            assert re.fullmatch(r'\w+', value) if allowed is None else value in allowed, f'{cell.place}: directive {name!r} cannot take {value!r}'


@NOTEBOOKS
def test_cells_keep_imports_apart(path):
    for cell in cells(path):
        if cell.kind != 'code' or re.match(r'\s*(%%|!)', cell.source): continue
        body = cell.tree.body
        imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        shown = path.stem != 'index' and cell.directives.get('eval') != 'false'
        if imports and (cell.exported or shown): assert len(imports) == len(body), f'{cell.place}: imports share a cell with other code, which nbdev_docs would run alone'
        if not cell.exported: continue
        assert not any(a.name == '*' for node in imports for a in node.names), f'{cell.place}: `import *` in an exported cell'
        assert '__all__' not in cell.source, f'{cell.place}: nbdev writes __all__'


@NOTEBOOKS
def test_notebook_stays_readable(path):
    exported = sum(bool(re.match(r'\s*[^#\s]', line)) for c in cells(path) if c.exported for line in c.source.splitlines())
    assert path.stat().st_size < 200_000, 'clear the outputs that teach nothing'
    assert len(cells(path)) <= 80
    assert exported <= 300, f'{exported} exported lines: split the notebook'


@NOTEBOOKS
def test_notebook_is_stored_clean_and_without_errors(path):
    nb = json.loads(path.read_text(encoding='utf-8'))
    assert not [c.place for c in cells(path) for out in c.outputs if out['output_type'] == 'error']
    assert not [c.place for c in cells(path) for out in c.outputs if 'Traceback (most recent call last)' in json.dumps(out)]
    ids = [c['id'] for c in nb['cells']]
    assert len(ids) == len(set(ids)), 'cell ids repeat'
    assert all(c.get('execution_count') is None for c in nb['cells'])


def test_flags_are_separate_words_and_known():
    flags = settings()['tst_flags'].split()
    assert set(flags) == FLAGS and len(flags) == len(FLAGS), 'tst_flags are separated by spaces'


def test_in_test_is_not_set():
    assert 'IN_TEST' not in os.environ, 'with IN_TEST in the environment nbdev_export does nothing: unset it'


def test_export_and_clean_leave_the_tree_as_it_was(tree):
    def run(command):
        done = subprocess.run([BIN/command], cwd=tree, env=clean_env(), capture_output=True, text=True)
        assert done.returncode == 0 and 'warn' not in done.stderr.lower(), done.stderr
    before = digests(tree)
    run('nbdev_export')
    assert changed(before, digests(tree)) == [], 'run `make export`: these modules are not what their notebooks say'
    run('nbdev_clean')
    assert changed(before, digests(tree)) == [], 'run `nbdev_clean`'
    # and both do their work when there is some
    path = tree/'nbs/00_core.ipynb'
    nb = json.loads(path.read_text())
    nb['cells'][1]['execution_count'] = 7
    nb['cells'].append(dict(cell_type='code', id='new', metadata={'tags': ['x']}, outputs=[], execution_count=1, source=['#| export\n', 'brand_new = 1']))
    path.write_text(json.dumps(nb))
    run('nbdev_export')
    assert 'brand_new = 1' in (tree/'fashion_nbdev/core.py').read_text()
    run('nbdev_clean')
    assert [c.get('execution_count') for c in json.loads(path.read_text())['cells']].count(None) == len(nb['cells'])


# Who imports whom

@pytest.mark.parametrize('module', modules())
def test_module_imports_only_lower_numbers(module):
    order = list(module_notebooks())
    wanted = {name.split('.')[1] for name in imported(modules()[module]) if name.startswith('fashion_nbdev.')} - {'__version__'}
    allowed = set(order[:order.index(module)])
    for group in (TORCH_FREE, LIGHT):
        if module in group: allowed &= group
    assert wanted <= allowed, f'{module} may not import {sorted(wanted - allowed)}'
    assert not {name for name in imported(modules()[module]) if name.split('.')[0] == 'fashion_serve'}, 'the library does not know the service'


@pytest.mark.parametrize('module', sorted(TORCH_FREE & modules().keys()))
def test_light_module_loads_no_heavy_library(module):
    heavy = ['torch', 'torchvision', 'fastai', 'timm', 'mlflow'] + ['matplotlib', 'pandas', 'scipy', 'sklearn', 'onnx'] * (module in LIGHT)
    code = f'import sys, fashion_nbdev.{module}; print(*sorted(set({heavy!r}) & set(sys.modules)))'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=clean_env(), capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, '', '')


def test_light_modules_exist():
    assert TORCH_FREE <= modules().keys()


def required(*extras: str, core: bool = True) -> dict[str, Requirement]:
    "The distributions that the project asks for itself, with those of some extras"
    project = pyproject()['project']
    lines = project['dependencies'] * core + [line for e in extras for line in project['optional-dependencies'][e]]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines) if canonicalize_name(r.name) != 'fashion-nbdev'}


def undeclared(paths, declared, top_level: bool) -> set[str]:
    "Third-party distributions that files import and the project does not ask for"
    found = {name.split('.')[0] for p in paths for name in imported(p, top_level)} - set(sys.stdlib_module_names) - {'fashion_nbdev', 'fashion_serve'}
    owners = metadata.packages_distributions()
    return {name for name in found if not {canonicalize_name(d) for d in owners.get(name, [name])} & set(declared)}


def test_imports_are_declared_as_dependencies():
    service = sorted((ROOT/'serve/fashion_serve').rglob('*.py'))
    light = [p for name, p in modules().items() if name in LIGHT]
    assert not undeclared(light, required(), top_level=True), 'the light core needs only its own dependencies'
    assert not undeclared(service, required('serve', 'trace'), top_level=False)
    assert not undeclared(service, required('serve'), top_level=True), 'the service runs without torch'
    assert not undeclared(modules().values(), required('client', 'serve', 'train'), top_level=False)
    tests = [*ROOT.glob('tests/*.py'), *ROOT.glob('serve/tests/*.py'), *ROOT.glob('scripts/*.py'), *ROOT.glob('benchmarks/*.py')]
    ours = {p.stem for p in tests}
    assert not undeclared(tests, required('serve', 'trace', 'train', 'dev'), top_level=False) - ours


# Versions, pins and environments

def pins(name: str) -> list[Requirement]:
    "The pinned requirements of a file, hashes left out"
    lines = (line.split(' \\')[0].strip() for line in (ROOT/name).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith(('#', '--hash'))]


def pinned(name: str, **environment: str) -> dict[str, str]:
    "What a file pins on one kind of machine: distribution -> version"
    found = {}
    for r in pins(name):
        if r.marker and not r.marker.evaluate(environment): continue
        [spec] = r.specifier
        assert spec.operator == '==' and '*' not in spec.version, f'{name}: {r} is no pin'
        assert canonicalize_name(r.name) not in found, f'{name}: {r.name} is pinned twice for {environment}'
        found[canonicalize_name(r.name)] = spec.version
    return found


MACHINES = [dict(python_version=v, python_full_version=f'{v}.7', **os_) for v in PYTHONS for os_ in (
    dict(sys_platform='linux', os_name='posix', platform_system='Linux', platform_machine='x86_64'),
    dict(sys_platform='linux', os_name='posix', platform_system='Linux', platform_machine='aarch64'),
    dict(sys_platform='darwin', os_name='posix', platform_system='Darwin', platform_machine='arm64'),
    dict(sys_platform='win32', os_name='nt', platform_system='Windows', platform_machine='AMD64'))]
MACHINE_IDS = [f'{m["python_version"]}-{m["sys_platform"]}-{m["platform_machine"]}' for m in MACHINES]


@pytest.mark.parametrize('machine', MACHINES, ids=MACHINE_IDS)
def test_pins_cover_every_extra_everywhere(machine):
    everything = pinned('constraints.txt', **machine)
    for name, r in required(*pyproject()['project']['optional-dependencies']).items():
        if r.marker and not r.marker.evaluate(machine): continue
        assert name in everything, f'{name} is not pinned: run `make lock`'
        assert r.specifier.contains(everything[name], prereleases=True), f'{name} is pinned to {everything[name]}, not {r.specifier}: run `make lock`'


@pytest.mark.parametrize('machine', MACHINES, ids=MACHINE_IDS)
def test_serving_pins_agree_with_the_others(machine):
    everything, build = pinned('constraints.txt', **machine), pinned('serve/build-requirements.txt', **machine)
    serving = pinned('serve/requirements.txt', **machine)
    assert set(required('serve', 'trace')) <= set(serving) and set(required('build', core=False)) <= set(build), 'run `make lock`'
    openvino = pinned('serve/openvino-requirements.txt', **machine)
    assert not (serving | openvino | build).items() - everything.items(), 'run `make lock`'
    assert set(required('openvino')) <= set(openvino), 'run `make lock`'
    assert not {'torch', 'torchvision', 'fastai', 'timm', 'matplotlib', 'pandas'} & set(serving)


def closure(*extras: str) -> set[str]:
    "Everything installed that these extras of the project need, directly or not"
    todo, seen = [(name, frozenset(r.extras)) for name, r in required(*extras).items()], set()
    while todo:
        name, wanted = item = todo.pop()
        if item in seen: continue
        seen.add(item)
        try: lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError: continue # for another kind of machine
        for r in map(Requirement, lines):
            if not r.marker or any(r.marker.evaluate({'extra': e}) for e in wanted | {''}): todo.append((canonicalize_name(r.name), frozenset(r.extras)))
    return {name for name, _ in seen}


def test_pins_hold_here_to_the_last_package():
    here, serving = pinned('constraints.txt'), pinned('serve/requirements.txt')
    assert not closure('serve', 'train', 'dev') - set(here) - {'pip'}, 'not pinned: run `make lock`'
    assert not closure('serve', 'trace') - set(serving), 'missing from serve/requirements.txt: run `make lock`'
    other = {name: (metadata.version(name), here[name]) for name in closure('serve', 'train', 'dev') & set(here)
             if metadata.distributions(name=name) and next(iter(metadata.distributions(name=name)), None)
             and metadata.version(name).split('+')[0] != here[name]}
    assert not other, f'installed and pinned versions differ: {other}; run `make env`'


@pytest.mark.parametrize('name', ['serve/requirements.txt', 'serve/openvino-requirements.txt', 'serve/build-requirements.txt'])
def test_serving_pins_have_hashes(name):
    for block in re.split(r'\n(?=[a-z])', (ROOT/name).read_text())[1:]:
        assert re.search(r'--hash=sha256:[0-9a-f]{64}', block), block.splitlines()[0]
    assert len(pins(name)) >= 5


def test_version_is_the_same_everywhere():
    import fashion_nbdev
    project = pyproject()
    assert settings()['version'] == fashion_nbdev.__version__
    assert 'version' in project['project']['dynamic'] and project['tool']['hatch']['version']['path'] == 'fashion_nbdev/__init__.py'
    assert settings()['description'] == project['project']['description']
    assert not (ROOT/'setup.py').exists(), "nbdev's setup.py does not work here"
    assert settings()['update_pyproject'] == 'False'


def test_supported_pythons_are_the_same_everywhere():
    oldest, newest = PYTHONS[0], PYTHONS[-1]
    until = f'3.{int(newest.split(".")[1]) + 1}'
    span = f'>={oldest},<{until}'
    assert pyproject()['project']['requires-python'] == span
    assert settings()['min_python'] == oldest
    assert pyproject()['tool']['ruff']['target-version'] == 'py' + oldest.replace('.', '')
    conda = yaml.safe_load((ROOT/'environment.yaml').read_text())['dependencies']
    assert f'python{span}' in conda and {'pip': ['-c constraints.txt', '-e .[dev]']} in conda
    workflow = yaml.safe_load((ROOT/'.github/workflows/ci.yml').read_text())
    assert workflow['jobs']['test']['strategy']['matrix']['python'] == list(PYTHONS)
    assert '.ci/run' in [step.get('run') for step in workflow['jobs']['test']['steps']]
    finder = (ROOT/'scripts/environment.sh').read_text()
    assert f'(3, {oldest[2:]}) <= sys.version_info[:2] <= (3, {newest[2:]})' in finder


def test_console_scripts_point_at_functions():
    for name, target in pyproject()['project']['scripts'].items():
        module, function = target.split(':')
        path = ROOT/('serve' if module.startswith('fashion_serve') else '.')/(module.replace('.', '/') + '.py')
        assert function == name
        assert any(isinstance(n, ast.FunctionDef) and n.name == function for n in ast.parse(path.read_text()).body), f'{target} does not exist'


# Environments are made completely or not at all

def make(tree, *args: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(['make', *args], cwd=tree, env=clean_env(**env), capture_output=True, text=True, timeout=60)


def script(path, text: str):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize('target', ['serve-env', 'env'])
def test_unusable_python_is_one_clear_line(tree, target):
    script(tree/'shim', '#!/bin/sh\necho "no such version here" >&2\nexit 127\n')
    for python in (str(tree/'shim'), 'no-such-python'):
        done = make(tree, target, PYTHON=python)
        assert done.returncode != 0
        assert [line for line in done.stderr.splitlines() if not line.startswith('make')] == [
            f'PYTHON={python} is not a Python from 3.11 to 3.13 that runs; name one that is, such as PYTHON=/usr/bin/python3.12.']


def test_python_is_looked_for_behind_a_broken_shim(tree):
    (tree/'first').mkdir()
    for name in ('python3', 'python3.13', 'python3.12', 'python3.11', 'python'): script(tree/'first'/name, '#!/bin/sh\nexit 127\n')
    (tree/'second').mkdir()
    # This one only pretends: it starts making an environment whose pip fails, as at a lost connection.
    script(tree/'second/python3', f'''#!/bin/sh
case "$*" in
    "--version") echo "Python 3.11.0" ;;
    "-m venv "*) mkdir -p "$3/bin"; printf '#!/bin/sh\\necho lost the connection >&2\\nexit 1\\n' > "$3/bin/python"; chmod +x "$3/bin/python" ;;
    *) exec {sys.executable} "$@" ;;
esac
''')
    path = f'{tree}/first:{tree}/second:/usr/bin:/bin'
    for target, venv in (('serve-env', '.venv-serve'), ('env', '.venv')):
        done = make(tree, target, PATH=path, PYTHON='')
        assert 'Python 3.11.0' in done.stdout and done.returncode != 0 and 'lost the connection' in done.stderr
        assert (tree/venv/'bin').exists() and not (tree/venv/'.made').exists(), 'a half-made environment must not count as made'


def test_python_without_venv_says_what_to_install(tree):
    script(tree/'python3', f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\nexec {sys.executable} "$@"\n')
    done = make(tree, 'serve-env', PYTHON=str(tree/'python3'))
    assert done.returncode != 0 and 'apt-get install python3-venv' in done.stderr


def test_make_help_lists_every_target():
    phony = re.search(r'^\.PHONY: (.*)', (ROOT/'Makefile').read_text(), re.M)[1].split()
    listed = re.findall(r'^make (\S+)', make(ROOT, 'help').stdout, re.M)
    assert set(phony) == set(listed) and {'run', 'env', 'test', 'notebooks', 'docs', 'lock', 'clean'} <= set(listed)


# What is in the repository

def texts():
    "Tracked text files"
    for path in tracked():
        data = path.read_bytes()
        if b'\0' not in data[:8000]: yield path.relative_to(ROOT), data


HOSTS = r'pypi\.org|pythonhosted\.org|artifactory|nexus\.|devpi|jfrog|index-url\s*[= ]\s*http|registry\.npmjs'
PLACES = r'(?<![\w.~-])(?:/work/|/home/(?!ada\b)\w+|/Users/\w|/root/|/opt/py|/tmp/(?:tmp|pytest|nb)\w*)|file:///[a-z]'


def test_no_registry_hosts_or_places_of_one_machine():
    found = [f'{path}: {m[0].decode()!r}' for path, data in texts() if path.name != 'test_repository.py'
             for pattern in (HOSTS, PLACES) for m in re.finditer(pattern.encode(), data)]
    assert not found
    for bad in ('https://pypi.org/simple', '--index-url=https://x'): assert re.search(HOSTS, bad)
    for bad in ('"/work/main/x"', 'in /tmp/tmpab12', "'/home/bob/x'", 'file:///data'): assert re.search(PLACES, bad)


def test_models_hold_no_places_of_one_machine():
    models = sorted((ROOT/'models').glob('*.onnx'))
    assert models and not [p.name for p in models if re.search(PLACES.encode(), p.read_bytes()) or b'site-packages' in p.read_bytes()]


def test_text_files_have_plain_line_ends():
    assert not [str(path) for path, data in texts() if b'\r\n' in data]


def test_nothing_ignored_is_tracked():
    if not (ROOT/'.git').exists(): pytest.skip('not a git checkout')
    listed = subprocess.run(['git', 'ls-files', '-ci', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\n')
    assert not [f for f in listed if f][:5]


def test_nothing_tracked_is_huge():
    assert not [p.name for p in tracked() if p.stat().st_size > 10_000_000]


def test_licence_is_apache_2():
    text = (ROOT/'LICENSE').read_text()
    assert 'Apache License' in text and 'Version 2.0, January 2004' in text and len(text) > 11_000
    assert pyproject()['project']['license'] == 'Apache-2.0' and settings()['license'] == 'apache2'


def test_ci_runs_make_test():
    run = ROOT/'.ci/run'
    assert os.access(run, os.X_OK) and run.read_text().rstrip().endswith('exec make test') and 'set -euo pipefail' in run.read_text()
    recipe = subprocess.run(['make', '-n', 'test'], cwd=ROOT, env=clean_env(), capture_output=True, text=True).stdout
    for part in ('environment.sh dev', 'ruff check', 'pytest', '--least', '-u IN_TEST', 'OMP_NUM_THREADS=1'): assert part in recipe, part


@pytest.mark.parametrize(('user', 'sudo', 'by'), [(0, False, ''), (1000, True, 'sudo '), (1000, False, None)])
@pytest.mark.parametrize('fails', [False, True])
def test_ci_installs_what_the_machine_lacks_where_it_may(tmp_path, user, sudo, by, fails):
    for name in ('bash', 'dirname', 'env', 'sh', 'true'): (tmp_path/name).symlink_to(shutil.which(name))
    for name in ('python3', 'git', 'chromium', 'chromedriver'): script(tmp_path/name, '#!/bin/sh\n')
    script(tmp_path/'id', f'#!/bin/sh\necho {user}\n')
    script(tmp_path/'make', '#!/bin/sh\necho "make $*"\n')
    script(tmp_path/'apt-get', f'#!/bin/sh\necho "${{BY}}apt-get $* ($DEBIAN_FRONTEND)" >> "{tmp_path}/asked"\nexit {int(fails)}\n')
    script(tmp_path/'sudo', f'#!/bin/sh\n[ "$1" = -n ] && {str(sudo).lower()} || exit 1\nshift\nBY="sudo " exec "$@"\n')
    (tmp_path/'asked').touch()
    done = subprocess.run([ROOT/'.ci/run'], env=clean_env(PATH=str(tmp_path)), capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith('make test\n') and 'skipping the tests of the alerts' in done.stdout, done.stdout + done.stderr
    assert 'for want of root' in done.stdout if by is None else ('prometheus could not be installed' in done.stdout) == fails
    calls = [] if by is None else ['update -qq', 'install -y -qq --no-install-recommends prometheus']
    assert (tmp_path/'asked').read_text().splitlines() == [f'{by}apt-get {call} (noninteractive)' for call in calls]


def undocumented(source: str) -> list[str]:
    "Parameters and returns of public functions and methods without a docment; a method on one line says all in one comment"
    said = {t.start[0] for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}
    found = []
    for node in ast.parse(source).body:
        methods = isinstance(node, ast.ClassDef)
        if getattr(node, 'name', '_').startswith('_'): continue
        for f in node.body if methods else [node]:
            if not isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) or f.name.startswith('_') and f.name != '__init__': continue
            if f.name in ('forward', 'backward') or any(ast.unparse(d) == 'property' for d in f.decorator_list): continue # called by torch; read without parameters
            args = [a for a in f.args.posonlyargs + f.args.args + f.args.kwonlyargs if a.arg not in ('self', 'cls')]
            at, where = [a.lineno for a in args], f'{node.name}.{f.name}' if methods else f.name
            found += [f'{where}: {a.arg}' for a in args if not (a.annotation and ast.unparse(a.annotation).startswith('Param('))
                      and (a.lineno not in said or at.count(a.lineno) > 1 and not (methods and a.lineno == f.lineno))]
            if f.returns and ast.unparse(f.returns) not in ('None', 'Iterator[None]') and not said & {*range(f.returns.end_lineno, max(f.body[0].lineno, f.returns.end_lineno + 1))}:
                found.append(f'{where}: return')
    return found


@MODULE_NOTEBOOKS
def test_public_functions_have_docments(module):
    missing = [name for c in cells(module_notebooks()[module]) if c.exported for name in undocumented(c.source)]
    assert not missing, 'say behind each what a caller must know: `n: int, # of images`, `) -> dict: # name -> share`'


def test_docments_are_looked_for():
    assert undocumented('def f(a, b=1) -> int:\n    return a\nclass C:\n    def __init__(self, a): self.a = a\n') == ['f: a', 'f: b', 'f: return', 'C.__init__: a']
    assert undocumented('def f(\n    a, # one\n    b=1,\n) -> int: # two\n    return a\nclass _C:\n    def g(self, a): pass\n') == ['f: b']
    assert not undocumented('class C:\n    def f(self, a, b): pass # both\n    @property\n    def g(self) -> int: return 1\n    def forward(self, x): return x\n')
