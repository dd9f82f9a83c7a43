"What runs elsewhere is right here: workflows, hooks, the audit, the package, and the papers that describe them"
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from datetime import date

import pytest
import yaml
from repository import ROOT, clean_env, copy_tree, load_script, pyproject, settings, tool

WORKFLOWS = sorted((ROOT/'.github/workflows').glob('*.yml'))
EACH = pytest.mark.parametrize('path', WORKFLOWS, ids=lambda p: p.stem)
DONE = dict(capture_output=True, text=True)


def read(path) -> dict: return yaml.load(path.read_text(encoding='utf-8'), yaml.BaseLoader) # `on` is a word there, not a truth


def steps(path) -> list[dict]: return [step for job in read(path)['jobs'].values() for step in job.get('steps', [])]


# GitHub Actions

@EACH
def test_workflow_is_valid(path):
    done = subprocess.run([tool('check-jsonschema'), '--builtin-schema', 'vendor.github-workflows', path], **DONE)
    assert done.returncode == 0, done.stdout


def test_workflows_are_clean_for_actionlint():
    done = subprocess.run([tool('actionlint'), *WORKFLOWS], cwd=ROOT, **DONE)
    assert done.returncode == 0, done.stdout


def audited(*paths) -> subprocess.CompletedProcess:
    return subprocess.run([tool('zizmor'), '--offline', '--no-progress', '--color', 'never', *paths], **DONE)


def test_workflows_are_safe():
    done = audited(ROOT/'.github')
    assert done.returncode == 0, done.stdout
    assert all(path.name in done.stderr for path in WORKFLOWS), 'it has looked at something else'


def test_unsafe_workflows_are_found(tmp_path):
    (tmp_path/'bad.yml').write_text('on: pull_request_target\njobs: {a: {runs-on: ubuntu-latest, steps: [{run: "echo ${{ github.event.pull_request.title }}"}, {uses: actions/checkout@v7}]}}\n')
    done = audited(tmp_path/'bad.yml')
    assert done.returncode and {'template-injection', 'unpinned-uses', 'dangerous-triggers'} <= set(re.findall(r'\[([\w-]+)\]', done.stdout))


def test_actions_are_pinned_and_say_their_version():
    used = [(path.name, line.strip()) for path in WORKFLOWS for line in path.read_text().splitlines() if re.search(r'\buses:', line)]
    assert len(used) > 10
    assert not [u for u in used if not re.search(r'uses: (\./\.github/workflows/\w+\.yml( #.*)?|[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+)$', u[1])]
    pins = {(m[1], m[2]) for _, line in used if (m := re.search(r'uses: ([\w/-]+)@(.*)', line))}
    assert len(pins) == len({action for action, _ in pins}), 'an action in two versions'


@EACH
def test_workflow_may_do_no_more_than_it_says(path):
    workflow = read(path)
    assert workflow['permissions'] == {}, 'nothing, but for what each job says'
    for job in workflow['jobs'].values():
        assert job['permissions'] and ('uses' in job or int(job['timeout-minutes']) <= 90)
        assert all(s['with']['persist-credentials'] == 'false' for s in job.get('steps', []) if 'checkout@' in s.get('uses', ''))


@EACH
def test_what_workflows_call_exists(path):
    script = '\n'.join(step['run'] for step in steps(path) if 'run' in step)
    called = set(re.findall(r'(?<![\w/.$~-])((?:\.ci|scripts|serve|tests)/[\w./]+)', script))
    assert not [name for name in called if not (ROOT/name).exists()]
    phony = re.search(r'^\.PHONY: (.*)', (ROOT/'Makefile').read_text(), re.M)[1].split()
    assert set(re.findall(r'\bmake (\w+)', script)) <= set(phony)
    assert called or {'make', 'actionlint'} & set(re.findall(r'\w+', script))
    assert max(script.count('\n') for step in steps(path) for script in [step.get('run', '')]) < 8, 'longer ones belong into a script that can be tested'


@EACH
def test_shell_in_workflows_is_clean(path):
    for script in (step['run'] for step in steps(path) if 'run' in step):
        assert '${{' not in script, 'what comes from outside comes by the environment'
        done = subprocess.run([tool('shellcheck'), '--shell', 'bash', '--severity', 'info', '--exclude', 'SC1091', '-'], input=script, **DONE)
        assert done.returncode == 0, done.stdout


def test_pythons_are_those_of_the_project():
    spoken = {s['with']['python-version'] for path in WORKFLOWS for s in steps(path) if 'setup-python@' in s.get('uses', '')}
    matrix = read(ROOT/'.github/workflows/ci.yml')['jobs']['test']['strategy']['matrix']['python']
    assert spoken == {'${{ matrix.python }}', matrix[-1]}


def test_dependabot_is_valid_and_knows_every_image():
    done = subprocess.run([tool('check-jsonschema'), '--builtin-schema', 'vendor.dependabot', ROOT/'.github/dependabot.yml'], **DONE)
    assert done.returncode == 0, done.stdout
    updates = {u['package-ecosystem']: u for u in read(ROOT/'.github/dependabot.yml')['updates']}
    assert {'github-actions', 'docker', 'docker-compose'} == updates.keys()
    folders = {'/' + str(p.parent.relative_to(ROOT)).strip('.') for p in ROOT.glob('**/Dockerfile') if not {'.venv', '.git'} & set(p.parts)}
    assert set(updates['docker']['directories']) == folders


# Known vulnerabilities

def test_audit_asks_about_every_pin():
    tool('pip-audit')
    done = subprocess.run([sys.executable, ROOT/'scripts/audit.py', '--dry_run'], **DONE)
    counted = [int(n) for n in re.findall(r'would have audited (\d+) packages', done.stderr)]
    assert done.returncode == 0 and len(counted) == 4 and counted[0] > 200, done.stderr


def test_exceptions_have_a_reason_and_an_end():
    read = load_script('audit').exceptions
    assert read((ROOT/'.github/audit_exceptions.txt').read_text(), date.today()) is not None, 'look at the one that has run out'
    assert read('# why\nGHSA-1234-abcd-5678 2027-01-31 only where it writes, which is never done', date(2027, 1, 31)) == ['GHSA-1234-abcd-5678']
    for bad, said in (('GHSA-1234-abcd-5678', 'must be an id'), ('GHSA-1234-abcd-5678 2027-01-31', 'must be an id'), ('GHSA-1234-abcd-5678 2026-01-31 only where it writes', 'is there a fix')):
        with pytest.raises(SystemExit, match=said): read(bad, date(2027, 1, 31))


# The package

def test_package_is_made_whole(tmp_path):
    tree = copy_tree(tmp_path/'tree')
    done = subprocess.run([tree/'scripts/package.sh', settings()['version']], env=clean_env(PYTHON=sys.executable), timeout=300, **DONE)
    if re.search('No matching distribution|NewConnectionError|name resolution', done.stderr): pytest.skip('the package index cannot be reached')
    assert done.returncode == 0, done.stderr
    stem = f'fashion_nbdev-{settings()["version"]}'
    assert {p.name for p in (tree/'dist').iterdir()} == {f'{stem}-py3-none-any.whl', f'{stem}.tar.gz'}
    wheel = set(zipfile.ZipFile(tree/f'dist/{stem}-py3-none-any.whl').namelist())
    assert {'fashion_nbdev/predict.py', 'fashion_nbdev/models/clothing.onnx', 'fashion_serve/main.py', 'fashion_serve/page/index.html'} <= wheel
    source = set(tarfile.open(tree/f'dist/{stem}.tar.gz').getnames())
    assert {f'{stem}/{name}' for name in ('nbs/00_core.ipynb', 'pyproject.toml', 'serve/fashion_serve/main.py', 'models/clothing.onnx')} <= source


def test_package_of_another_version_is_refused():
    done = subprocess.run([ROOT/'scripts/package.sh', '9.9.9'], **DONE)
    assert done.returncode == 1 and done.stderr == f'package.sh: this is version {settings()["version"]}, not 9.9.9: tag what settings.ini says, or change that first\n'


# Hooks

def hooks() -> list[dict]: return yaml.safe_load((ROOT/'.pre-commit-config.yaml').read_text())['repos'][0]['hooks']


def test_hooks_download_nothing_and_call_what_exists():
    done = subprocess.run([tool('pre-commit'), 'validate-config', ROOT/'.pre-commit-config.yaml'], **DONE)
    assert done.returncode == 0, done.stdout
    assert [r['repo'] for r in yaml.safe_load((ROOT/'.pre-commit-config.yaml').read_text())['repos']] == ['local']
    named = {word for h in hooks() for word in h['entry'].split() if '/' in word and not word.startswith('.venv')}
    assert {h['language'] for h in hooks()} == {'system'} and named and not [n for n in named if not (ROOT/n).exists()]
    assert [h['entry'] for h in hooks() if h.get('stages') == ['pre-push']] == ['make test']
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, check=True, **DONE).stdout.split('\n') if (ROOT/'.git').exists() else None
    if tracked: assert not [h['id'] for h in hooks() if 'files' in h and not any(re.search(h['files'], f) for f in tracked)], 'a hook that is never called'


@pytest.fixture
def clone(tmp_path):
    "A git checkout of this tree with its hooks installed, and a way to call git in it"
    tool('pre-commit'), tool('git')
    root, home = copy_tree(tmp_path/'clone'), tmp_path/'home'
    home.mkdir()
    (root/'.venv/bin').mkdir(parents=True)
    (root/'.venv/bin/python').write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n') # a link would not know its packages
    (root/'.venv/bin/python').chmod(0o755)
    for name in ('ruff', 'pre-commit', 'nbdev_install_hooks', 'nbdev_merge', 'nbdev_trust', 'nbdev_fix'): (root/'.venv/bin'/name).symlink_to(tool(name))
    env = clean_env(HOME=str(home), GIT_CONFIG_GLOBAL=str(home/'.gitconfig'), **{f'GIT_{who}_{what}': value for who in ('AUTHOR', 'COMMITTER') for what, value in (('NAME', 'A'), ('EMAIL', 'a@b.example'))})
    env = {k: v for k, v in env.items() if k not in ('GIT_DIR', 'GIT_WORK_TREE', 'GIT_INDEX_FILE')}
    call = lambda *words: subprocess.run(words, cwd=root, env=env, timeout=300, **DONE)
    for words in (['init', '-q', '-b', 'main'], ['add', '-A'], ['commit', '-q', '-m', 'all']): assert call('git', *words).returncode == 0
    done = call('scripts/hooks.sh')
    assert done.returncode == 0, done.stdout + done.stderr
    assert call('git', 'status', '--porcelain').stdout == '', 'the installation changed the tree'
    return root, call


def test_hooks_refuse_what_is_not_right(clone):
    root, call = clone
    assert {'pre-commit', 'pre-push', 'post-merge'} <= {p.name for p in (root/'.git/hooks').iterdir()}
    (root/'scripts/readme.py').write_text((root/'scripts/readme.py').read_text() + 'import os\n')
    done = call('git', 'commit', '-q', '-a', '-m', 'an import that is not used')
    assert done.returncode and 'F401' in done.stderr + done.stdout
    call('git', 'checkout', '-q', '.')
    (root/'README.md').write_text('other words\n')
    done = call('git', 'commit', '-q', '-a', '-m', 'README by hand')
    assert done.returncode and 'run `make docs`' in done.stderr + done.stdout
    call('git', 'checkout', '-q', '.')
    (root/'LICENSE').write_text((root/'LICENSE').read_text() + '\n')
    assert call('git', 'commit', '-q', '-a', '-m', 'fine').returncode == 0


def test_notebooks_merge_cell_by_cell(clone):
    root, call = clone
    path = root/'nbs/00_core.ipynb'

    def changed(cell: int, line: str, message: str):
        nb = json.loads(path.read_text())
        nb['cells'][cell]['source'] = [line]
        path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n')
        assert call('git', 'commit', '-q', '-n', '-a', '-m', message).returncode == 0
    call('git', 'checkout', '-q', '-b', 'other')
    changed(0, '# core\n\n> theirs', 'theirs')
    call('git', 'checkout', '-q', 'main')
    changed(0, '# core\n\n> ours', 'ours')
    call('git', 'merge', '-q', 'other')
    merged = json.loads(path.read_text()) # still a notebook, with both versions as cells to choose from
    sources = [''.join(c['source']) for c in merged['cells']]
    assert '# core\n\n> ours' in sources and '# core\n\n> theirs' in sources and any(s.startswith('`<<<<<<<') for s in sources)


# The papers

def paper(name: str) -> str: return (ROOT/name).read_text(encoding='utf-8')


PAPERS = pytest.mark.parametrize('name', ['CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md'])


@PAPERS
def test_paper_names_what_exists(name):
    links = re.findall(r'\]\((?![a-z]+:|#)([^)#\s]+)', paper(name))
    assert not [link for link in links if not (ROOT/link).exists()]
    phony = re.search(r'^\.PHONY: (.*)', (ROOT/'Makefile').read_text(), re.M)[1].split()
    assert set(re.findall(r'(?:`|^)make ([a-z-]+)', paper(name), re.M)) <= set(phony)
    scripts = set(re.findall(r'\bfashion_(?!nbdev|mnist|serve)[a-z]+\b', paper(name)))
    assert scripts <= set(pyproject()['project']['scripts'])


def test_security_names_real_settings_limits_and_problems():
    from fashion_serve.errors import PROBLEMS
    from fashion_serve.settings import Settings
    text = paper('SECURITY.md')
    named = set(re.findall(r'`(FASHION_\w+)`', text))
    assert named and not {n for n in named if n.removeprefix('FASHION_').lower() not in Settings.model_fields}
    codes = set(re.findall(r'`(\d{3}) (\w+)`', text))
    assert codes and codes <= {(str(kind.status), code) for code, kind in PROBLEMS.items()}
    for name, shown in re.findall(r'`(FASHION_\w+)` \(([\d,.]+)', text):
        assert float(shown.replace(',', '')) == float(Settings.model_fields[name.removeprefix('FASHION_').lower()].default), name
    files = set(re.findall(r'`([\w/]+\.py)`', text))
    assert files and not [f for f in files if not (ROOT/'serve/fashion_serve'/f).exists() and not (ROOT/f).exists()]


def test_changelog_is_kept_and_has_this_version():
    text = paper('CHANGELOG.md')
    assert 'keepachangelog.com' in text
    versions = re.findall(r'^## \[(\d+\.\d+\.\d+)\] - (unreleased|\d{4}-\d\d-\d\d)$', text, re.M)
    assert versions[0][0] == settings()['version']
    assert set(re.findall(r'^### (.*)', text, re.M)) <= {'Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security'}
