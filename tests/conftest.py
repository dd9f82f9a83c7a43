"Notebooks first, since they take longest; a run that lost tests on the way, or changed the tree, is a failure"
import os
from pathlib import Path

import pytest
from repository import ROOT, changed, copy_tree, digests


def pytest_addoption(parser):
    parser.addoption('--least', type=int, default=0, help='fail when fewer tests than this pass')
    parser.addoption('--image', default='', help="try the service's image: build (minutes; with Docker, Podman or Buildah), or the name of one that exists")
    parser.addoption('--base', default='', help='build it on this image, where the registry cannot be reached')


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: 'test_notebooks' not in item.nodeid)


def pytest_configure(config):
    config.tree_before = digests(ROOT) if os.environ.get('CI') and not hasattr(config, 'workerinput') else None


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    config = session.config
    if hasattr(config, 'workerinput') or config.option.collectonly: return
    passed = len(config.pluginmanager.get_plugin('terminalreporter').stats.get('passed', []))
    config.complaints = []
    if passed < config.option.least: config.complaints.append(f'only {passed} tests passed, at least {config.option.least} were expected')
    if config.tree_before is not None and (files := changed(config.tree_before, digests(ROOT))):
        config.complaints.append(f'the tests changed the tree: {", ".join(files[:10])}')
    if config.complaints and session.exitstatus == 0: session.exitstatus = 1


def pytest_terminal_summary(terminalreporter, config):
    for complaint in getattr(config, 'complaints', []): terminalreporter.write_line(f'FAILED {complaint}', red=True)


@pytest.fixture
def tree(tmp_path) -> Path:
    "A copy of the repository that the test may change"
    return copy_tree(tmp_path/'tree')
