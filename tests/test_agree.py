"Two runs of the benchmarks are compared by the spread that each states (benchmarks/agree.py)"
import subprocess
import sys

import pytest
from repository import ROOT

from fashion_nbdev.results import read_results, write_results

sys.path.insert(0, str(ROOT / 'benchmarks'))
import agree

SAME = dict(model='m', runtime='ours', batch_size=1, threads=1, slower=1, slower_low=1, slower_high=1)


def measured(low: float, ratio: float, high: float, date: str, **other) -> list[dict]:
    return [SAME | dict(date=date), SAME | dict(runtime='other', slower=ratio, slower_low=low, slower_high=high, date=date) | other]


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A repository whose results are committed once"
    def git(*args): subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *args], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setattr(agree, 'ROOT', tmp_path)
    git('init')
    write_results(tmp_path / 'results/runtimes.csv', measured(1.8, 2.0, 2.2, 'monday'))
    git('add', '.')
    git('commit', '-m', 'first')
    return tmp_path / 'results'


@pytest.mark.parametrize(('low', 'ratio', 'high', 'same'), [(2.1, 2.4, 2.6, True), (1.2, 1.5, 1.8, True), (2.3, 2.4, 2.6, False), (1.5, 1.6, 1.7, False)])
def test_spreads_that_overlap_agree(project, low, ratio, high, same):
    write_results(project / 'runtimes.csv', measured(low, ratio, high, 'tuesday'))
    assert agree.main() == int(not same)
    row, = read_results(project / 'agreement.csv')
    assert (row['measured'], float(row['before']), float(row['after']), row['agree']) == ('m, other, 1, 1', 2.0, ratio, same)


def test_only_what_was_measured_again_counts(project):
    with pytest.raises(SystemExit, match='nothing was measured again since HEAD'): agree.main()
    write_results(project / 'runtimes.csv', [*measured(1.8, 2.0, 2.2, 'monday'), *measured(5, 6, 7, 'tuesday', model='new')])
    with pytest.raises(SystemExit, match='nothing was measured again'): agree.main()
    with pytest.raises(SystemExit, match='nothing was measured again since nowhere'): agree.main('nowhere')


@pytest.mark.parametrize('name', agree.STATED)
def test_every_ratio_says_which_model_file_it_is_of(name):
    assert all(row.get('version') for row in read_results(ROOT / 'results' / name))


def test_another_model_file_is_no_second_run(project):
    write_results(project / 'runtimes.csv', measured(5.1, 5.4, 5.6, 'tuesday', version='another'))
    with pytest.raises(SystemExit, match='nothing was measured again'): agree.main()
