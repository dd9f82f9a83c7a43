"What our code adds to a prediction does not grow unnoticed (benchmarks/guard.py; results/guard.json is the record)"
import sys

import pytest
from repository import ROOT

from fashion_nbdev.results import read_results

sys.path.insert(0, str(ROOT / 'benchmarks'))
import guard

RECORDED = {r['case']: r for r in read_results(guard.RECORD)}


def slower(now: dict, before: dict) -> list[str]:
    "What has clearly grown: calls by more than a tenth, time by more than two fifths of the bare work"
    return ['calls'] * (now['calls'] > 1.1*before['calls'] + 5) + ['ratio'] * (now['ratio'] > before['ratio'] + .4)


@pytest.mark.parametrize('case', guard.CASES)
def test_no_slower_than_recorded(case):
    found = [guard.measure(case)]
    while slower(found[-1], RECORDED[case]) and len(found) < 3: found.append(guard.measure(case)) # a machine that is busy gets another chance, a slowdown stays
    assert not slower(found[-1], RECORDED[case]), (found, RECORDED[case])


@pytest.mark.parametrize('case', guard.CASES)
def test_a_slowdown_is_noticed(case):
    "Everything done twice"
    twice = lambda classify: lambda files: (classify(files), classify(files))
    assert slower(guard.measure(case, slowed=twice), RECORDED[case]) == ['calls', 'ratio']
