"The cards beside the shipped models say what the model files and the results files say, and nothing else"
import json
import re
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard
from repository import ROOT, clean_env

from fashion_nbdev.card import ABOUT, model_card, percent, read_measured
from fashion_nbdev.core import FashionError
from fashion_nbdev.data import DATASETS

MODELS = sorted(p.stem for p in (ROOT/'models').glob('*.onnx'))
EACH = pytest.mark.parametrize('name', MODELS)


def measured(name: str):
    return read_measured(str(ROOT/f'models/{name}.onnx'), ROOT/'results', ROOT/'configs')


def card(name: str) -> str:
    return (ROOT/f'models/{name}.md').read_text(encoding='utf-8')


def recorded(kind: str, name: str):
    rows = json.loads((ROOT/f'results/{kind}_{name}.json').read_text(encoding='utf-8'))
    return rows


def rows_of(text: str, section: str) -> list[list[str]]:
    "The cells of a section's tables, heads left out"
    part = text.split(f'## {section}\n')[1].split('\n## ')[0]
    lines = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in part.splitlines() if line.startswith('| ')]
    return [cells for i, cells in enumerate(lines) if not set(''.join(cells)) <= set('-: ') and not (i + 1 < len(lines) and set(''.join(lines[i + 1])) <= set('-: '))]


def test_there_is_a_model_and_each_has_a_card():
    assert 'fashion_mnist' in MODELS
    assert not [name for name in MODELS if not (ROOT/f'models/{name}.md').is_file()], 'run `fashion_card --model NAME`'


@EACH
def test_card_is_made_from_the_files(name):
    assert model_card(measured(name)) == card(name), f'run `fashion_card --model {name}`'


@EACH
def test_card_is_made_by_the_command(name, tmp_path):
    code = f"from fashion_nbdev.card import fashion_card; fashion_card({name!r}, out={str(tmp_path/'card.md')!r})"
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=clean_env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path/'card.md').read_text(encoding='utf-8') == card(name)


@EACH
def test_front_matter_is_what_the_hub_reads(name):
    data, scores = ModelCard.load(ROOT/f'models/{name}.md').data, recorded('evaluate', name)
    assert {r.metric_name: r.metric_value for r in data.eval_results} == {'Accuracy': scores['accuracy'], 'Top-3 accuracy': scores['top_3'], 'Macro F1': scores['macro_f1']}
    assert data.license == 'apache-2.0' and data.library_name == 'onnx' and data.pipeline_tag == 'image-classification'
    assert data.model_name == name and data.eval_results[0].dataset_split == 'test'


@EACH
def test_numbers_are_those_of_the_results(name):
    text, scores = card(name), recorded('evaluate', name)
    info = measured(name).info
    assert scores['version'] == info.version and info.version in text
    overall = dict(rows_of(text, 'How good it is')[:3])
    for label, key in (('Accuracy', 'accuracy'), ('Right among the first three', 'top_3'), ('Macro F1', 'macro_f1')):
        shown = [float(x) for x in re.findall(r'[\d.]+', overall[label])]
        assert shown == pytest.approx([100*scores[key], *(100*x for x in scores[f'{key}_ci95'])], abs=.051)
    each = rows_of(text, 'Each class')
    assert [r[0] for r in each] == [label.en for label in info.labels]
    for cells, row in zip(each, scores['per_class'], strict=True):
        assert int(cells[1].replace(',', '')) == row['support']
        for cell, key in zip(cells[2:4], ('precision', 'recall'), strict=True): assert cell == percent(row[key], row[f'{key}_ci95'])
    pairs = sorted((n for i, line in enumerate(scores['confusion']) for j, n in enumerate(line) if i != j and n), reverse=True)[:8]
    assert [int(r[2].replace(',', '')) for r in rows_of(text, 'What is taken for what')] == pairs
    assert sum(int(r[1].replace(',', '')) for r in rows_of(text, 'How far its probabilities can be trusted')) == scores['n']


@EACH
def test_shifts_and_variants_are_those_of_the_results(name):
    text = card(name)
    if (ROOT/f'results/shifts_{name}.json').is_file():
        shifts = recorded('shifts', name)
        assert [r[1].split(' %')[0] for r in rows_of(text, 'Under other conditions')] == [f'{100*r["accuracy"]:.1f}' for r in shifts]
    variants = recorded('export', name)
    shown = rows_of(text, 'Size and speed')[:len(variants)]
    assert [r[0].removesuffix(' (shipped)') for r in shown] == [r['variant'] for r in variants]
    assert sum('(shipped)' in r[0] for r in shown) == 1


@EACH
def test_card_says_what_it_is_for_and_where_it_fails(name):
    text, dataset = card(name), recorded('evaluate', name)['dataset']
    for words in (ABOUT[dataset].purpose, *ABOUT[dataset].fails, DATASETS[dataset].licence, f"Predictor.load('{name}')"): assert words in text
    assert '![' not in text, 'a card is read where its pictures are not: beside a downloaded model file'


def test_card_of_another_version_is_refused(tmp_path):
    row = recorded('evaluate', 'fashion_mnist') | dict(version='0'*12)
    (tmp_path/'evaluate_fashion_mnist.json').write_text(json.dumps(row))
    with pytest.raises(FashionError, match='evaluate_fashion_mnist.json was measured of version 000000000000, but fashion_mnist.onnx is version'):
        read_measured(str(ROOT/'models/fashion_mnist.onnx'), tmp_path, ROOT/'configs')


def test_deepfashion_and_own_classes_have_words():
    assert set(ABOUT) == set(DATASETS)
    assert any('worn by a person' in text for text in ABOUT['deepfashion'].fails)
